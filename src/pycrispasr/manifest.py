"""Which recordings to transcribe: files, folders, lists of them; and lists of results."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from pycrispasr.errors import AudioNotFoundError, OutputError, UsageError
from pycrispasr.result import Transcript, without_nan

ENDINGS = frozenset(
    (
        *("wav", "wave", "flac", "ogg", "oga", "opus", "mp3", "aif", "aiff", "aifc", "au", "caf", "w64", "rf64", "m4a"),
        *(
            "m4b",
            "aac",
            "ac3",
            "amr",
            "wma",
            "mka",
            "mp4",
            "m4v",
            "mov",
            "mkv",
            "webm",
            "avi",
            "mpg",
            "mpeg",
            "ts",
            "3gp",
        ),
    )
)
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
        name: The same as the list has it.
        fields: All that the list says about it.
    """

    audio: str
    name: str
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


def expand(paths: Iterable[str], *, recursive: bool = False) -> Iterator[str]:
    """Recordings, with the sound and film files that are in folders in their place, by name.

    Args:
        paths: Paths, addresses, or "-".
        recursive: Look into folders, and into those within; hidden ones are left out.

    Raises:
        UsageError: A path is a folder, and `recursive` is not set.
        AudioNotFoundError: There is no such file in a folder.
    """
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        if not recursive:
            raise UsageError(f"{path!r} is a folder: add --recursive to transcribe what is in it")
        found = False
        for folder, folders, files in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                if not name.startswith(".") and name.rpartition(".")[2].lower() in ENDINGS:
                    found = True
                    yield os.path.join(folder, name)
        if not found:
            raise AudioNotFoundError(f"there is no audio file in {path!r}")


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
    entries = []
    for number, row in enumerate(_rows(path), start=1):
        name = next((row[column] for column in AUDIO if row.get(column)), None)
        if not isinstance(name, str):
            raise UsageError(f"entry {number} of {str(path)!r} names no recording: it needs a column {AUDIO[0]!r}")
        is_path = "://" not in name and name != "-"
        entries.append(Entry(str(path.parent / name) if is_path else name, name, row))
    return entries


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"the list {str(path)!r} cannot be read: {reason}") from None
    if not _is_json(path):
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        for row in rows:
            row.pop(None, None)  # more cells than names
        return rows
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                content = json.loads(line)
            except json.JSONDecodeError as error:
                raise UsageError(f"line {number} of {str(path)!r} is no JSON: {error.msg}") from None
            found.append(content if isinstance(content, dict) else {})
    return found


class Results:
    """A list of results that grows while the work is done: CSV, or JSON Lines with segments too.

    A context manager. Every entry is written at once, so that what was done stays when the work is stopped.

    Args:
        path: Its ending says which.
        overwrite: Replace a list that is there.
        resume: Go on with it.

    Raises:
        OutputError: It is there, and neither is set; or it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False, resume: bool = False) -> None:
        self._path = Path(path)
        self.done: frozenset[str] = frozenset()
        """The names of recordings that are in it already, when the work goes on."""
        self._names: list[str] | None = None
        if self._path.exists() and not overwrite:
            if not resume:
                raise OutputError(f"{str(path)!r} is already there: --overwrite replaces it, --resume goes on with it")
            self._take_up()
        with self._errors():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file: TextIO = self._path.open("w" if overwrite else "a", encoding="utf-8", newline="")

    def add(self, entry: Entry, transcript: Transcript) -> None:
        """Writes an entry's result.

        Raises:
            OutputError: It cannot be written.
        """
        row = entry.fields | {"audio": entry.name} | summary(transcript)
        with self._errors():
            if _is_json(self._path):
                row["segments"] = transcript.to_dict()["segments"]
                self._file.write(json.dumps(dict(without_nan(list(row.items()))), ensure_ascii=False) + "\n")
            else:
                if self._names is None:
                    self._names = list(row)
                    csv.writer(self._file).writerow(self._names)
                csv.DictWriter(self._file, self._names, extrasaction="ignore").writerow(row)
            self._file.flush()

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        with self._errors():
            self._file.close()

    def _take_up(self) -> None:
        """Finds out what is in a list; a last line that was cut off is taken away."""
        with self._errors():
            content = self._path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                with self._path.open("r+b") as file:
                    file.truncate(len(whole))
        if whole:
            if not _is_json(self._path):
                self._names = next(csv.reader(io.StringIO(whole.decode("utf-8-sig"), newline="")), None)
            self.done = frozenset(row["audio"] for row in _rows(self._path) if row.get("audio"))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"{str(self._path)!r} cannot be written: {error.strerror or error}") from error


def summary(transcript: Transcript) -> dict[str, Any]:
    """What a list of results says about a recording: `RESULTS`, with the worst of its segments' statuses."""
    statuses = {segment.status for segment in transcript.segments}
    worst = next((s for s in ("failed", "cancelled", "looped", "truncated") if s in statuses), "ok")
    error = next((segment.error for segment in transcript.segments if segment.error), None)
    values = (transcript.text, worst, transcript.complete, round(transcript.duration, 3), error)
    return dict(zip(RESULTS, values, strict=True))


def _is_json(path: Path) -> bool:
    return path.suffix.lower() in (".jsonl", ".json", ".ndjson")
