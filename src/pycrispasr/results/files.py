"""Where results go: a file for each recording and format, which is there whole or not at all. See `docs/output.md`."""

from __future__ import annotations

import collections
import contextlib
import errno
import hashlib
import itertools
import os
import re
import urllib.parse
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from pycrispasr.atomic import replacing
from pycrispasr.audio import addresses
from pycrispasr.errors import OutputError, UsageError
from pycrispasr.results import formats, manifest
from pycrispasr.results.formats import FORMATS, Format
from pycrispasr.results.transcript import Transcript

_LONGEST = 255  # bytes in a name, on nearly all file systems
_MARK = "user.pycrispasr.recording"  # an attribute of a result's file
_ENDINGS: dict[Format, str] = {"audacity": "labels.txt"}  # where that is not the format's name


def stems(
    recordings: Sequence[str],
    folder: str | os.PathLike[str] | None,
    *,
    roots: Iterable[str] = (),
    kinds: Iterable[Format] = (),
) -> list[Path]:
    """A path for each recording, to which each format adds its ending, so that no two of them share a file.

    A recording's files have its name without its ending: "talk.mp3" becomes "talk.srt". Where two recordings would have
    the same files then, or a recording could be overwritten itself, they have the whole name: "talk.mp3.srt" and
    "talk.wav.srt". Where these are taken too, a number follows: "talk.mp3-2.srt". The same recordings in the same order
    always have the same files.

    Args:
        recordings: Paths, URLs, or "-" for standard input, whose files are called "stdin".
        folder: Where the files go, or None: beside each recording, or in the current folder where it is no file.
        roots: Folders in which recordings were found. In `folder` these keep their place below them.
        kinds: Formats whose files may be there from before, as when work goes on. A path is left alone then where one
            of them belongs to another recording ("talk.txt" of "talk.wav" is not that of "talk.mp3").
    """
    kinds = tuple(kinds)
    roots = sorted(roots, key=len, reverse=True)  # the innermost first
    names = [_name(recording) for recording in recordings]
    homes = [_home(recording, folder, roots) for recording in recordings]
    short = [home / os.path.splitext(name)[0] for home, name in zip(homes, names, strict=True)]
    counts = collections.Counter(map(_key, short))
    endings = tuple(f".{kind}" for kind in FORMATS)
    sources = {path for path in (os.path.abspath(one).casefold() for one in recordings) if path.endswith(endings)}
    taken: set[str] = set()
    chosen = []
    for recording, home, name, stem in zip(recordings, homes, names, short, strict=True):
        first = [stem] if counts[_key(stem)] == 1 else []
        numbered = (home / f"{name}-{number}" for number in itertools.count(2))
        path = next(
            path
            for path in itertools.chain(first, [home / name], numbered)
            if _key(path) not in taken
            and (not sources or sources.isdisjoint(_results(path)))
            and not any(_is_of_another(file, recording) for file in files(path, kinds).values())
        )
        taken.add(_key(path))
        chosen.append(path)
    return chosen


def files(stem: Path, kinds: Iterable[Format], *, partial: bool = False) -> dict[Format, Path]:
    """The file of each format; with `partial` those for a transcription that was stopped, "talk.partial.srt".

    Raises:
        UsageError: There is no such format.
    """
    found = {}
    for kind in kinds:
        if kind not in FORMATS:
            raise UsageError(f"there is no format {kind!r}: choose among {', '.join(FORMATS)}")
        ending = f"{'.partial' if partial else ''}.{_ENDINGS.get(kind, kind)}"
        found[kind] = stem.with_name((_shortened(stem.name, ending) if partial else stem.name) + ending)
    return found


def _shortened(name: str, ending: str) -> str:
    """A name which with its ending is no longer than names can be: cut, with a sum that tells it from others."""
    content = os.fsencode(name)
    if len(content) + len(ending) <= _LONGEST:
        return name
    digest = hashlib.sha256(content).hexdigest()[:12]
    return f"{os.fsdecode(content[:100]).encode(errors='ignore').decode()}-{digest}"


def pending(stem: Path, kinds: Iterable[Format], *, overwrite: bool = False, resume: bool = False) -> list[Format]:
    """The formats that are still to be written: ask before the work is done.

    A file that is there is complete: it gets its name when it is, and partial ones have other names.

    Args:
        stem: The recording's, of `stems`.
        kinds: The formats that are wanted.
        overwrite: Write all of them.
        resume: Write those that are not there.

    Raises:
        OutputError: A file is there, and neither `overwrite` nor `resume` is set; or its name is too long.
        UsageError: There is no such format, or both are set.
    """
    if overwrite and resume:
        raise UsageError("overwrite and resume cannot both be set: the one replaces files, the other keeps them")
    there = {kind: path for kind, path in files(stem, kinds).items() if _is_there(path)}
    if there and not overwrite and not resume:
        path = str(next(iter(there.values())))
        raise OutputError(f"{path!r} is already there: --overwrite replaces it, --resume keeps it, -o names a folder")
    return [kind for kind in kinds if overwrite or kind not in there]


def _is_there(path: Path) -> bool:
    """Whether there is such a file.

    Raises:
        OutputError: There cannot be one: the name is too long for the file system.
    """
    home = path.parent
    while not home.exists() and home != home.parent:
        home = home.parent
    for tried in (path, home / path.name):  # while folders are missing, the system does not look at the name
        try:
            tried.lstat()
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise OutputError(
                    f"{str(path)!r} cannot be written: its name has {len(os.fsencode(path.name))} bytes, more than the "
                    "file system allows: rename the recording, or name a list for all texts with --results"
                ) from None
        except ValueError as error:  # a zero byte
            raise OutputError(f"{str(path)!r} cannot be written: {error}") from None
    return os.path.lexists(path)


def write(
    transcript: Transcript,
    stem: Path,
    kinds: Iterable[Format],
    *,
    audio: str | None = None,
    overwrite: bool = False,
    partial: bool = False,
    max_line_chars: int = 42,
    max_lines: int = 2,
    max_cue_seconds: float = 7.0,
) -> list[Path]:
    """Writes a transcript in each format, in UTF-8, and makes the folder for it.

    Each file takes its name when it is whole; what fails, or is interrupted, leaves nothing behind. Complete files take
    the place of the partial ones for the same recording.

    Args:
        transcript: What was said.
        stem: The recording's, of `stems`.
        kinds: The formats.
        audio: The name of the recording, for JSON.
        overwrite: Replace files that are there.
        partial: The transcription was stopped: write "talk.partial.srt" for "talk.srt", also where it is there.
        max_line_chars: See `formats.cues`.
        max_lines: See `formats.cues`.
        max_cue_seconds: See `formats.cues`.

    Returns:
        The files.

    Raises:
        OutputError: A file is there and `overwrite` is not set, or it cannot be written. The files of formats before it
            stay.
        UsageError: There is no such format, or a limit is out of range.
    """
    kinds = list(kinds)
    if not partial:
        pending(stem, kinds, overwrite=overwrite)
    written = files(stem, kinds, partial=partial)
    for kind, path in written.items():
        content = formats.render(
            transcript,
            kind,
            audio=audio,
            max_line_chars=max_line_chars,
            max_lines=max_lines,
            max_cue_seconds=max_cue_seconds,
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as part:
                # Names of files can have bytes that are no text; JSON has the same escapes for them.
                part.write_text(content, encoding="utf-8", errors="backslashreplace", newline="\n")
                _mark(part, audio)
        except OSError as error:
            raise OutputError(
                f"{str(path)!r} cannot be written ({error.strerror or error}): name a writable folder with -o"
            ) from error
        if not partial:
            with contextlib.suppress(OSError):
                files(stem, [kind], partial=True)[kind].unlink()
    return list(written.values())


def _identity(recording: str) -> bytes:
    """What tells a recording from others, also when it is moved: its name and its size; or its address."""
    if recording == "-" or "://" in recording:
        return os.fsencode(addresses.shown(recording))
    try:
        size = os.stat(recording).st_size
    except (OSError, ValueError):
        size = -1
    return b"%d %s" % (size, os.fsencode(os.path.basename(recording)))


def _mark(path: Path, recording: str | None) -> None:
    """Notes in a result's file whose it is, where the system has a place for that."""
    if recording is not None and hasattr(os, "setxattr"):
        with contextlib.suppress(OSError):
            os.setxattr(path, _MARK, _identity(recording))


def _is_of_another(path: Path, recording: str) -> bool:
    """Whether a result is there that is another recording's.

    Where it does not say whose it is, it is this one's, unless a recording of the same name and another ending lies
    beside this one.
    """
    if not os.path.lexists(path):
        return False
    if hasattr(os, "getxattr"):
        with contextlib.suppress(OSError):
            return os.getxattr(path, _MARK) != _identity(recording)
    if recording == "-" or "://" in recording:
        return False
    source = Path(recording)
    if path.name.startswith(source.name):  # "talk.mp3.txt"
        return False
    with contextlib.suppress(OSError):
        return any(
            one.stem == source.stem and one.name != source.name and manifest.is_recording(one.name)
            for one in source.parent.iterdir()
        )
    return False


def _name(recording: str) -> str:
    if recording == "-":
        return "stdin"
    if "://" in recording:
        host, _, path = addresses.shown(recording).partition("://")[2].partition("?")[0].partition("/")
        name = PurePath(urllib.parse.unquote(path)).name or host
        if not name.strip("."):  # a folder, or the one above it
            return "url"
        return re.sub(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*]', "_", name)  # what some system's names cannot have
    return os.path.basename(os.path.abspath(recording)) or "recording"  # of "/", which has no name


def _home(recording: str, folder: str | os.PathLike[str] | None, roots: list[str]) -> Path:
    is_file = recording != "-" and "://" not in recording
    if folder is None:
        return Path(recording).parent if is_file else Path()
    for root in roots if is_file else ():
        with contextlib.suppress(ValueError):  # not below it
            return Path(folder) / PurePath(recording).relative_to(root).parent
    return Path(folder)


def _results(stem: Path) -> list[str]:
    """All files that there could be."""
    every = [path for partial in (False, True) for path in files(stem, FORMATS, partial=partial).values()]
    return [os.path.abspath(path).casefold() for path in every]


def _key(path: Path) -> str:
    """The same for paths whose files could be the same, on systems that ignore case, too."""
    return re.sub(r"(\.partial|\.labels)+$", "", os.path.normpath(path).casefold())
