"""openai-whisper's module `utils`: results as files, and small helpers."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, TextIO

from pycrispasr.compat import common
from pycrispasr.compat.common import compression_ratio as compression_ratio
from pycrispasr.compat.common import format_timestamp as format_timestamp
from pycrispasr.text import plain

_PAUSE = 3.0  # seconds between words after which lines of limited width begin a new subtitle
_ENDLESS = 1000


def exact_div(x: int, y: int) -> int:
    """A quotient without rest.

    Raises:
        AssertionError: There is a rest.
    """
    if x % y:
        raise AssertionError(f"{x} is no multiple of {y}")
    return x // y


def str2bool(string: str) -> bool:
    """True for "True", False for "False".

    Raises:
        ValueError: It is neither.
    """
    if string not in ("True", "False"):
        raise ValueError(f"Expected one of {{'True', 'False'}}, got {string}")
    return string == "True"


def optional_int(string: str) -> int | None:
    """A whole number, or None for "None"."""
    return None if string == "None" else int(string)


def optional_float(string: str) -> float | None:
    """A number, or None for "None"."""
    return None if string == "None" else float(string)


def get_start(segments: Sequence[dict[str, Any]]) -> float | None:
    """When the first word of segments begins, or else the first segment; None without segments."""
    for segment in segments:
        if segment.get("words"):
            return float(segment["words"][0]["start"])
    return float(segments[0]["start"]) if segments else None


def get_end(segments: Sequence[dict[str, Any]]) -> float | None:
    """When the last word of segments ends, or else the last segment; None without segments."""
    return common.last_time(segments)


class ResultWriter:
    """Writes results into files of one format.

    Args:
        output_dir: The folder for them.
    """

    extension: ClassVar[str]

    def __init__(self, output_dir: str) -> None:
        self.output_dir = output_dir

    def __call__(
        self, result: dict[str, Any], audio_path: str, options: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Writes a result into a file that is named after its recording.

        Args:
            result: What `transcribe` gave.
            audio_path: The recording.
            options: Those of `SubtitlesWriter.iterate_result`.
            kwargs: The same.
        """
        stem = os.path.splitext(os.path.basename(audio_path))[0]
        path = os.path.join(self.output_dir, f"{stem}.{self.extension}")
        with open(path, "w", encoding="utf-8") as file:
            self.write_result(result, file=file, options=options, **kwargs)

    def write_result(
        self, result: dict[str, Any], file: TextIO, options: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Writes a result into an open file."""
        raise NotImplementedError


class WriteTXT(ResultWriter):
    """A line for each segment."""

    extension = "txt"

    def write_result(
        self,
        result: dict[str, Any],
        file: TextIO,
        options: dict[str, Any] | None = None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """As `ResultWriter`."""
        file.writelines(f"{plain(segment['text']).strip()}\n" for segment in result["segments"])


class SubtitlesWriter(ResultWriter):
    """What both formats of subtitles share."""

    always_include_hours: ClassVar[bool]
    decimal_marker: ClassVar[str]

    def iterate_result(
        self,
        result: dict[str, Any],
        options: dict[str, Any] | None = None,
        *,
        max_line_width: int | None = None,
        max_line_count: int | None = None,
        highlight_words: bool = False,
        max_words_per_line: int | None = None,
    ) -> Iterator[tuple[str, str, str]]:
        """Subtitles: the times of their beginnings and ends, and their texts.

        Without words in the result each segment is one.

        Args:
            result: What `transcribe` gave.
            options: The limits below, in a dictionary.
            max_line_width: Letters in a line.
            max_line_count: Lines of a subtitle. With both limits segments may be joined and cut.
            highlight_words: A subtitle for each word, in which it is underlined.
            max_words_per_line: Words in a line.
        """
        given = options or {}
        width = max_line_width or given.get("max_line_width")
        lines = max_line_count or given.get("max_line_count")
        words = max_words_per_line or given.get("max_words_per_line")
        segments = result["segments"]
        if not segments or "words" not in segments[0]:
            for segment in segments:
                yield (*self._times(segment, segment), _shown(segment["text"].strip()))
            return
        for cue in _cues(segments, width, lines, words):
            text = "".join(word["word"] for word in cue)
            if not (highlight_words or given.get("highlight_words", False)):
                yield (*self._times(cue[0], cue[-1]), _shown(text))
                continue
            last = self.format_timestamp(cue[0]["start"])
            for number, word in enumerate(cue):
                start, end = self._times(word, word)
                if last != start:
                    yield last, start, _shown(text)
                yield (
                    start,
                    end,
                    _shown("".join(_marked(one["word"]) if i == number else one["word"] for i, one in enumerate(cue))),
                )
                last = end

    def format_timestamp(self, seconds: float) -> str:
        """A time as this format has it."""
        return format_timestamp(seconds, self.always_include_hours, self.decimal_marker)

    def _times(self, first: dict[str, Any], last: dict[str, Any]) -> tuple[str, str]:
        return self.format_timestamp(first["start"]), self.format_timestamp(last["end"])


def _cues(
    segments: Sequence[dict[str, Any]], width: int | None, lines: int | None, words: int | None
) -> Iterator[list[dict[str, Any]]]:
    """Words of one subtitle after the other; the first one of a further line begins with a line break."""
    keeps_segments = width is None or lines is None
    cue: list[dict[str, Any]] = []
    letters, rows = 0, 1  # in the line, in the cue
    last = get_start(segments) or 0.0
    for segment in segments:
        for number, original in enumerate(segment["words"]):
            word = dict(original)
            paused = not keeps_segments and word["start"] - last > _PAUSE
            is_next = bool(cue) and keeps_segments and number % (words or _ENDLESS) == 0
            has_room = letters + len(word["word"]) <= (width or _ENDLESS)
            if letters and has_room and not paused and not is_next:
                letters += len(word["word"])
            else:
                word["word"] = word["word"].strip()
                if cue and (is_next or (lines is not None and (paused or rows >= lines))):
                    yield cue
                    cue, rows = [], 1
                elif letters:
                    rows += 1
                    word["word"] = "\n" + word["word"]
                letters = len(word["word"].strip())
            cue.append(word)
            last = word["start"]
    if cue:
        yield cue


def _shown(text: str) -> str:
    """A text that cannot end its subtitle: no arrow, no empty line, no control characters."""
    return re.sub(r"\n\s*\n", "\n", re.sub("--+>", "->", plain(text)))


def _marked(word: str) -> str:
    """A word that is underlined, without the whitespace before it."""
    bare = word.lstrip()
    return f"{word[: len(word) - len(bare)]}<u>{bare}</u>"


class WriteVTT(SubtitlesWriter):
    """WebVTT."""

    extension = "vtt"
    always_include_hours = False
    decimal_marker = "."

    def write_result(
        self, result: dict[str, Any], file: TextIO, options: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """As `ResultWriter`."""
        file.write("WEBVTT\n\n")
        for start, end, text in self.iterate_result(result, options, **kwargs):
            file.write(f"{start} --> {end}\n{text}\n\n")


class WriteSRT(SubtitlesWriter):
    """SubRip."""

    extension = "srt"
    always_include_hours = True
    decimal_marker = ","

    def write_result(
        self, result: dict[str, Any], file: TextIO, options: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """As `ResultWriter`."""
        for number, (start, end, text) in enumerate(self.iterate_result(result, options, **kwargs), 1):
            file.write(f"{number}\n{start} --> {end}\n{text}\n\n")


class WriteTSV(ResultWriter):
    """A table with tabs: beginnings and ends in milliseconds, and texts."""

    extension = "tsv"

    def write_result(
        self,
        result: dict[str, Any],
        file: TextIO,
        options: dict[str, Any] | None = None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """As `ResultWriter`."""
        file.write("start\tend\ttext\n")
        for segment in result["segments"]:
            times = f"{round(1000 * segment['start'])}\t{round(1000 * segment['end'])}"
            text = " ".join(plain(segment["text"]).split())
            file.write(f"{times}\t{text}\n")


class WriteJSON(ResultWriter):
    """The result itself."""

    extension = "json"

    def write_result(
        self,
        result: dict[str, Any],
        file: TextIO,
        options: dict[str, Any] | None = None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """As `ResultWriter`."""
        json.dump(result, file)


_WRITERS: dict[str, type[ResultWriter]] = {
    writer.extension: writer for writer in (WriteTXT, WriteVTT, WriteSRT, WriteTSV, WriteJSON)
}


def get_writer(output_format: str, output_dir: str) -> Callable[..., None]:
    """What writes a result: call it with the result, the path of the recording, and options for subtitles.

    Args:
        output_format: "txt", "vtt", "srt", "tsv", "json", or "all".
        output_dir: The folder for the files.

    Raises:
        KeyError: There is no such format.
    """
    if output_format != "all":
        return _WRITERS[output_format](output_dir)
    writers = [writer(output_dir) for writer in _WRITERS.values()]

    def write_all(
        result: dict[str, Any], audio_path: str, options: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        for writer in writers:
            writer(result, audio_path, options, **kwargs)

    return write_all
