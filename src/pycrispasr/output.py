"""Where results go: a file for each recording and format, which is there whole or not at all. See `docs/output.md`."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import re
import urllib.parse
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from pycrispasr import formats
from pycrispasr.atomic import replacing
from pycrispasr.errors import OutputError, UsageError
from pycrispasr.formats import FORMATS, Format
from pycrispasr.result import Transcript

_ENDINGS: dict[Format, str] = {"audacity": "labels.txt"}  # where that is not the format's name


def stems(recordings: Sequence[str], folder: str | os.PathLike[str] | None, *, roots: Iterable[str] = ()) -> list[Path]:
    """A path for each recording, to which each format adds its ending, so that no two of them share a file.

    A recording's files have its name without its ending: "talk.mp3" becomes "talk.srt". Where two recordings would have
    the same files then, or a recording could be overwritten itself, they have the whole name: "talk.mp3.srt" and
    "talk.wav.srt". Where these are taken too, a number follows: "talk.mp3-2.srt". The same recordings in the same order
    always have the same files.

    Args:
        recordings: Paths, URLs, or "-" for standard input, whose files are called "stdin".
        folder: Where the files go, or None: beside each recording, or in the current folder where it is no file.
        roots: Folders in which recordings were found. In `folder` these keep their place below them.
    """
    roots = sorted(roots, key=len, reverse=True)  # the innermost first
    names = [_name(recording) for recording in recordings]
    homes = [_home(recording, folder, roots) for recording in recordings]
    short = [home / os.path.splitext(name)[0] for home, name in zip(homes, names, strict=True)]
    counts = collections.Counter(map(_key, short))
    endings = tuple(f".{kind}" for kind in FORMATS)
    sources = {path for path in (os.path.abspath(one).casefold() for one in recordings) if path.endswith(endings)}
    taken: set[str] = set()
    chosen = []
    for home, name, stem in zip(homes, names, short, strict=True):
        first = [stem] if counts[_key(stem)] == 1 else []
        numbered = (home / f"{name}-{number}" for number in itertools.count(2))
        path = next(
            path
            for path in itertools.chain(first, [home / name], numbered)
            if _key(path) not in taken and (not sources or sources.isdisjoint(_results(path)))
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
        found[kind] = stem.with_name(f"{stem.name}{'.partial' if partial else ''}.{_ENDINGS.get(kind, kind)}")
    return found


def pending(stem: Path, kinds: Iterable[Format], *, overwrite: bool = False, resume: bool = False) -> list[Format]:
    """The formats that are still to be written: ask before the work is done.

    A file that is there is complete: it gets its name when it is, and partial ones have other names.

    Args:
        stem: The recording's, of `stems`.
        kinds: The formats that are wanted.
        overwrite: Write all of them.
        resume: Write those that are not there.

    Raises:
        OutputError: A file is there, and neither `overwrite` nor `resume` is set.
        UsageError: There is no such format, or both are set.
    """
    if overwrite and resume:
        raise UsageError("overwrite and resume cannot both be set: the one replaces files, the other keeps them")
    there = {kind: path for kind, path in files(stem, kinds).items() if os.path.lexists(path)}
    if there and not overwrite and not resume:
        path = str(next(iter(there.values())))
        raise OutputError(f"{path!r} is already there: --overwrite replaces it, --resume keeps it, -o names a folder")
    return [kind for kind in kinds if overwrite or kind not in there]


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
        except OSError as error:
            raise OutputError(
                f"{str(path)!r} cannot be written ({error.strerror or error}): name a writable folder with -o"
            ) from error
        if not partial:
            with contextlib.suppress(OSError):
                files(stem, [kind], partial=True)[kind].unlink()
    return list(written.values())


def _name(recording: str) -> str:
    if recording == "-":
        return "stdin"
    if "://" in recording:
        url = urllib.parse.urlsplit(recording)
        name = PurePath(urllib.parse.unquote(url.path)).name or url.netloc
        return re.sub(r'[\x00-\x1f<>:"/\\|?*]', "_", name) or "url"  # what some system's names cannot have
    return os.path.basename(os.path.abspath(recording))


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
