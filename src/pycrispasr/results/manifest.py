"""Which recordings to transcribe: files, folders, lists of them; and lists of results."""

from __future__ import annotations

import collections
import contextlib
import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pycrispasr.atomic import replacing
from pycrispasr.audio import addresses
from pycrispasr.errors import AudioError, AudioNotFoundError, OutputError, UsageError
from pycrispasr.results.transcript import Transcript
from pycrispasr.text import json_text, plain

ENDINGS = frozenset((
    # What libsndfile reads.
    "aif", "aifc", "aiff", "au", "avr", "caf", "flac", "htk", "mat", "mat4", "mat5", "mp1", "mp2", "mp3", "mpc2k",
    "nist", "oga", "ogg", "opus", "paf", "pvf", "rf64", "sd2", "sds", "sf", "snd", "sph", "svx", "voc", "w64", "wav",
    "wave", "wavex", "bwf", "wve", "xi", "iff", "8svx", "16svx",
    # What FFmpeg reads besides: sound,
    "aa", "aa3", "aac", "aax", "ac3", "ac4", "adts", "adx", "amr", "ape", "apm", "apc", "ast", "awb", "bit", "brstm",
    "bfstm", "bcstm", "dff", "dsf", "dss", "dts", "dtshd", "dfpwm", "ec3", "eac3", "fsb", "g722", "gsm", "hca", "ircam",
    "kss", "latm", "lbc", "loas", "lvf", "m4a", "m4b", "m4p", "m4r", "mka", "mlp", "mmf", "mpa", "mpc", "nut", "ofr",
    "oma", "omg", "paf", "qcp", "ra", "rso", "sbc", "sox", "spx", "tak", "thd", "truehd", "tta", "vag", "vqf", "weba",
    "wma", "wv", "xwma", "xwm", "acm", "aea", "aix", "apl", "aptx", "binka", "bonk", "dtk", "g723_1", "g729", "genh",
    "iamf", "lc3", "m2a", "mac", "mca", "msbc", "msf", "mtaf", "osq", "qoa", "rka", "rsd", "shn", "ss2", "svag", "vpk",
    "vqe", "vql", "wsd", "xvag",
    # and films.
    "3g2", "3gp", "3gpp", "amv", "asf", "avi", "divx", "dv", "evo", "f4a", "f4b", "f4v", "flv", "gxf", "ism", "isma",
    "ismv", "m2t", "m2ts", "m2v", "m4s", "m4v", "mj2", "mk3d", "mkv", "mov", "mp4", "mpe", "mpeg", "mpg", "mpv",
    "mts", "mxf", "mxg", "nsv", "ogm", "ogv", "ogx", "qt", "rec", "rm", "rmvb", "swf", "tod", "mod", "trp", "ts", "ty",
    "vob", "webm", "wmv", "wtv", "dav", "dif", "imx", "ivr", "kux", "moflex", "psp", "usm", "viv", "xmv",
))  # fmt: skip
"""Endings of the files that are taken from folders."""

AUDIO = ("audio", "audio_filepath", "path", "file")
"""What a list may call the recording."""

RESULTS = ("text", "status", "complete", "duration", "error")
"""What a list of results adds."""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A recording to transcribe.

    Attributes:
        audio: A path, an address, or "-" for standard input.
        name: The same as the list has it; of an address what may be shown.
        fields: All that the list says about it, addresses as they may be shown.
    """

    audio: str
    name: str
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def shown(self) -> str:
        """The path or address as it may be shown."""
        return addresses.shown(self.audio)


def is_recording(name: str) -> bool:
    """Whether a file of this name is taken from a folder."""
    return name.rpartition(".")[2].lower() in ENDINGS and not name.startswith(".")


def expand(
    paths: Iterable[str], *, recursive: bool = False, passed_over: collections.Counter[str] | None = None
) -> Iterator[str]:
    """Recordings, with the sound and film files that are in folders in their place, by name.

    Args:
        paths: Paths, addresses, or "-".
        recursive: Look into folders, and into those within; hidden ones are left out.
        passed_over: Gets the number of files, other than hidden ones, that are no recordings by their names' endings,
            by ending.

    Raises:
        UsageError: A path is a folder, and `recursive` is not set.
        AudioNotFoundError: There is no such file in a folder.
        AudioError: A folder cannot be read.
    """
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        if not recursive:
            raise UsageError(f"{path!r} is a folder: add --recursive to transcribe what is in it")
        found = False
        for folder, folders, files in os.walk(path, onerror=_refuse):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                if is_recording(name):
                    found = True
                    yield os.path.join(folder, name)
                elif passed_over is not None and not name.startswith("."):
                    passed_over[os.path.splitext(name)[1].lower()] += 1
        if not found:
            raise AudioNotFoundError(f"there is no audio file in {path!r}")


def _refuse(error: OSError) -> None:
    raise AudioError(f"the folder {error.filename!r} cannot be read: {error.strerror}") from error


def read(path: str | os.PathLike[str]) -> list[Entry]:
    """A list of recordings.

    Args:
        path: CSV with a line of names, or JSON Lines (".jsonl", ".json", ".ndjson"). The recording is in the column
            "audio", "audio_filepath", "path" or "file"; a relative path starts where the list is. Other columns come
            back with the results.

    Raises:
        UsageError: The list cannot be read, or an entry names no recording.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"the list {str(path)!r} cannot be read: {error.strerror or error}") from None
    entries = []
    for number, row in enumerate(_rows(content, path)[1], start=1):
        name = next((row[column] for column in AUDIO if row.get(column)), None)
        if not isinstance(name, str):
            raise UsageError(f"entry {number} of {str(path)!r} names no recording: it needs a column {AUDIO[0]!r}")
        if not _can_be(name):
            raise UsageError(f"entry {number} of {str(path)!r} has a name that no file can have: {name!r}")
        is_path = "://" not in name and name != "-"
        columns = {column: addresses.shown(row[column]) for column in AUDIO if isinstance(row.get(column), str)}
        entries.append(Entry(str(path.parent / name) if is_path else name, addresses.shown(name), row | columns))
    return entries


def _can_be(name: str) -> bool:
    """Whether the system can have a file of this name."""
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeError:
        return False


def _rows(content: bytes, path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """The names of a list's columns, where these stand in its first line, and its entries."""
    try:
        text = content.decode("utf-8-sig")
        if not _is_json(path):
            with _any_length():
                reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
                rows = list(reader)
            for row in rows:
                row.pop(None, None)  # more cells than names
            return list(reader.fieldnames or ()), rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"the list {str(path)!r} cannot be read: {error}") from None
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:  # a number may have too many digits for Python
                told = error.msg if isinstance(error, json.JSONDecodeError) else error
                raise UsageError(f"line {number} of {str(path)!r} is no JSON: {told}") from None
            found.append(entry if isinstance(entry, dict) else {})
    return [], found


@contextlib.contextmanager
def _any_length() -> Iterator[None]:
    """Lets csv read cells of more than 128 KiB: the text of three hours."""
    before = csv.field_size_limit(1 << 30)
    try:
        yield
    finally:
        csv.field_size_limit(before)


class Results:
    """A list of results that grows while the work is done: CSV, or JSON Lines with segments too.

    A context manager. Every entry is written at once, so that what was done stays when the work is stopped. A column of
    the list of recordings whose name is one of ours comes back as "input_text", "input_duration", ...

    Args:
        path: Its ending says which.
        entries: The recordings that may be added.
        overwrite: Replace a list that is there, when the first result is added.
        resume: Go on with it, without the entries that failed.

    Raises:
        OutputError: It is there, and neither is set; or it cannot be written.
        UsageError: It is to go on, and is no such list.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        entries: Iterable[Entry],
        *,
        overwrite: bool = False,
        resume: bool = False,
    ) -> None:
        self._path = Path(path)
        self._left = collections.Counter[str]()  # rows that `take` has not given to an entry
        self._names = list(dict.fromkeys(name for entry in entries for name in _fields(entry)))
        self._names += RESULTS
        self._begin = True  # with the first result
        with self._errors():
            if not overwrite and self._path.exists() and self._path.stat().st_size:
                if not resume:
                    raise OutputError(
                        f"{str(path)!r} is already there: --overwrite replaces it, --resume goes on with it"
                    )
                self._take_up()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)

    @property
    def done(self) -> frozenset[str]:
        """The names of recordings that are in it already, when the work goes on."""
        return frozenset(name for name, count in self._left.items() if count > 0)

    def take(self, entry: Entry) -> bool:
        """Whether the entry is in the list from before. Each row of it counts once: a list may name one twice."""
        name = _written(entry.name)
        self._left[name] -= 1
        return self._left[name] >= 0

    def add(self, entry: Entry, transcript: Transcript) -> None:
        """Writes an entry's result.

        Raises:
            OutputError: It cannot be written. Nothing of it is in the list then.
        """
        content = self._lines([_fields(entry) | _result(transcript)], header=self._begin)
        with self._errors():
            if self._begin:
                self._file.truncate(0)
            whole = os.fstat(self._file.fileno()).st_size
            try:
                while content:
                    content = content[self._file.write(content) :]
            except OSError:
                self._file.truncate(whole)
                raise
        self._begin = False

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _take_up(self) -> None:
        """Finds out what is in the list, and takes out what failed, and a last entry that was cut off."""
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        while not _is_json(self._path) and whole.count(b'"') % 2:  # that newline was inside a cell
            whole = whole[: whole[:-1].rfind(b"\n") + 1]
        names, rows = _rows(whole, self._path)
        kept = [row for row in rows if row.get("status") != "failed"]
        self._names = names or self._names
        self._begin = not kept
        self._left = collections.Counter(_written(row["audio"]) for row in kept if isinstance(row.get("audio"), str))
        if kept and (len(kept) < len(rows) or whole != content):
            with replacing(self._path) as part:
                part.write_bytes(self._lines(kept, header=True))

    def _lines(self, rows: list[dict[str, Any]], *, header: bool) -> bytes:
        if _is_json(self._path):
            text = "".join(json_text(row) + "\n" for row in rows)
        else:
            table = io.StringIO(newline="")
            writer = csv.DictWriter(table, self._names, extrasaction="ignore")
            if header:
                writer.writeheader()
            writer.writerows(map(_plain, rows))
            text = table.getvalue()
        return text.encode(errors="backslashreplace")  # names of files can have bytes that are no text

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"{str(self._path)!r} cannot be written: {error.strerror or error}") from error


def _written(name: str) -> str:
    """A name as CSV has it: bytes that are no text are escaped in it."""
    return name.encode(errors="backslashreplace").decode()


def summary(transcript: Transcript) -> dict[str, Any]:
    """What a list of results says about a recording: `RESULTS`, with the worst of its segments' statuses."""
    statuses = {segment.status for segment in transcript.segments}
    worst = next((s for s in ("failed", "cancelled", "looped", "truncated") if s in statuses), "ok")
    error = next((segment.error for segment in transcript.segments if segment.error), None)
    values = (transcript.text, worst, transcript.complete, round(transcript.duration, 3), error)
    return dict(zip(RESULTS, values, strict=True))


def _fields(entry: Entry) -> dict[str, Any]:
    """What comes back of an entry."""
    taken = (*RESULTS, "segments")
    fields = {f"input_{name}" if name in taken else name: value for name, value in entry.fields.items()}
    return fields | {"audio": entry.name}


def _result(transcript: Transcript) -> dict[str, Any]:
    return summary(transcript) | {"segments": transcript.to_dict()["segments"]}


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose results have no control characters; what came from a list of recordings goes back as it is."""
    return row | {name: plain(row[name]) for name in RESULTS if isinstance(row.get(name), str)}


def _is_json(path: Path) -> bool:
    return path.suffix.lower() in (".jsonl", ".json", ".ndjson")
