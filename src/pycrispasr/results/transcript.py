"""What a transcription gives: plain frozen data."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from pycrispasr.errors import UsageError
from pycrispasr.results import formats
from pycrispasr.results.segment import Segment, Status, Token, Word, without_nan

if TYPE_CHECKING:
    from typing_extensions import Self

_T = TypeVar("_T")

WordTimes = Literal["calibrated", "approximate", "aligner"]


@dataclasses.dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went.

    Attributes:
        log_mel: Seconds of work on the log-mel spectrogram.
        encoder: Seconds in the audio encoder.
        adapter: Seconds in the adapter.
        prefill: Seconds in which the decoder read the prompt with the audio.
        decode: Seconds in which the decoder wrote tokens.
        hypotheses: Seconds of all this for text before the end of the audio; what of it could be kept counts there.
        total: Seconds inside the session, all of the above and the rest.
        prompt_tokens: Tokens read: the prompts with their audio rows.
        tokens: Tokens written.
    """

    log_mel: float = 0.0
    encoder: float = 0.0
    adapter: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    hypotheses: float = 0.0
    total: float = 0.0
    prompt_tokens: int = 0
    tokens: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Transcript:
    """The text of a recording.

    Attributes:
        text: The whole text, without surrounding whitespace.
        segments: One for each piece of at most 30 seconds of audio, in order.
        duration: Seconds of audio.
        language: Code of the language; of several, the one in which most of the audio is. None where the model does not
            tell it. See `Segment.language`.
        complete: True when every segment's status is "ok", and no audio was lost on the way.
        timings: Where the time went.
        warnings: What was odd about the audio, in sentences: clipping, a constant offset, a file cut short; and why a
            segment has no word times.
        word_times: Where the times of words and tokens are from: "aligner" for a model that is made to tell them;
            "calibrated" where it is known which heads of the model that wrote the text tell them, "approximate" where
            the most likely ones were taken. None where no times were asked for.
    """

    text: str
    segments: tuple[Segment, ...]
    duration: float
    language: str | None
    complete: bool
    timings: Timings
    warnings: tuple[str, ...] = ()
    word_times: WordTimes | None = None

    @property
    def words(self) -> tuple[Word, ...]:
        """The words of all segments, in order, as far as they have times."""
        return tuple(word for segment in self.segments for word in segment.words or ())

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries, lists, strings and numbers, ready for `json.dumps`; None for NaN."""
        return dataclasses.asdict(self, dict_factory=without_nan)

    def to_txt(self) -> str:
        """The text alone, in one piece and without a newline at its end."""
        return formats.to_txt(self)

    def to_srt(self, *, max_line_chars: int = 42, max_lines: int = 2, max_cue_seconds: float = 7.0) -> str:
        """SubRip subtitles: the content of a .srt file.

        Args:
            max_line_chars: The longest line. Wide characters, such as Chinese ones, count double. Only a word that is
                longer is cut in two.
            max_lines: The most lines that are shown at once.
            max_cue_seconds: How long they are shown at the most.

        Raises:
            UsageError: `max_line_chars` is below 2, `max_lines` below 1, or `max_cue_seconds` below 0.1 or infinite.
        """
        return formats.to_srt(self, max_line_chars=max_line_chars, max_lines=max_lines, max_cue_seconds=max_cue_seconds)

    def to_vtt(self, *, max_line_chars: int = 42, max_lines: int = 2, max_cue_seconds: float = 7.0) -> str:
        """WebVTT subtitles: the content of a .vtt file.

        Where words have times, these stand before them, for players that follow the voice. A note names each segment
        that failed.

        Args:
            max_line_chars: As for `to_srt`.
            max_lines: As for `to_srt`.
            max_cue_seconds: As for `to_srt`.

        Raises:
            UsageError: As for `to_srt`.
        """
        return formats.to_vtt(self, max_line_chars=max_line_chars, max_lines=max_lines, max_cue_seconds=max_cue_seconds)

    def to_tsv(self) -> str:
        """A table: start and end in milliseconds and the text of each segment, separated by tabs, below a header."""
        return formats.to_tsv(self)

    def to_audacity(self) -> str:
        """Labels that Audacity imports: one for each word where words have times, else for each segment."""
        return formats.to_audacity(self)

    def to_json(self, *, indent: int | None = None) -> str:
        """One JSON object, as `docs/transcript.schema.json` describes it.

        Args:
            indent: Spaces for each level, or None for one line.
        """
        return formats.to_json(self, indent=indent)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """A transcript out of what `to_json` made of it, or out of a file of `pycrispasr transcribe -f json`.

        Fields that it does not know are left out, and so is the recording's name.

        Args:
            text: One JSON object.

        Raises:
            UsageError: It is none, or not that of a transcript.
        """
        try:
            content = json.loads(text)
            segments = tuple(map(_segment, content["segments"]))
            return cls(
                text=_is(str, content["text"]),
                segments=segments,
                duration=_seconds(content["duration"]),
                language=_text(content["language"]),
                complete=_is(bool, content["complete"]),
                timings=_timings(content["timings"]),
                warnings=tuple(_is(str, warning) for warning in content["warnings"]),
                word_times=None if content["word_times"] is None else _one_of(WordTimes, content["word_times"]),
            )
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
            raise UsageError(
                f"this is not the JSON of a transcript ({error!r:.80}): pass what `to_json` or `-f json` wrote"
            ) from None


def _segment(content: Any) -> Segment:
    return Segment(
        start=_seconds(content["start"]),
        end=_seconds(content["end"], not_before=content["start"]),
        text=_is(str, content["text"]),
        tokens=tuple(map(_token, content["tokens"])),
        status=_one_of(Status, content["status"]),
        words=None if content["words"] is None else tuple(map(_word, content["words"])),
        error=_text(content["error"]),
        language=_text(content["language"]),
    )


def _timings(content: Any) -> Timings:
    found = {field.name: _seconds(content[field.name]) for field in dataclasses.fields(Timings)}
    prompt_tokens, tokens = int(found.pop("prompt_tokens")), int(found.pop("tokens"))
    return Timings(prompt_tokens=prompt_tokens, tokens=tokens, **found)


def _token(content: Any) -> Token:
    start, end = (None if content[name] is None else _seconds(content[name]) for name in ("start", "end"))
    return Token(_is(int, content["id"]), _is(str, content["text"]), _probability(content), start, end)


def _word(content: Any) -> Word:
    start = _seconds(content["start"])
    return Word(_is(str, content["text"]), start, _seconds(content["end"], not_before=start), _probability(content))


def _probability(content: Any) -> float:
    return math.nan if content["probability"] is None else _seconds(content["probability"])


def _seconds(value: Any, not_before: float = 0.0) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not not_before <= value < math.inf:
        raise ValueError(value)
    return float(value)


def _is(kind: type[_T], value: Any) -> _T:
    if not isinstance(value, kind):
        raise TypeError(value)
    return value


def _text(value: Any) -> str | None:
    return None if value is None else _is(str, value)


def _one_of(choices: Any, value: Any) -> Any:
    if value not in get_args(choices):
        raise ValueError(value)
    return value
