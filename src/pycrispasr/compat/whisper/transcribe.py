"""openai-whisper's module `transcribe`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pycrispasr.compat import common
from pycrispasr.results.cues import spaced_words
from pycrispasr.results.segment import Segment
from pycrispasr.text import separator

if TYPE_CHECKING:
    from pycrispasr.compat.whisper.model import Whisper


def transcribe(  # noqa: D417  the others are in docs/drop-in.md
    model: Whisper,
    audio: Any,
    *,
    verbose: bool | None = None,
    temperature: float | tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    compression_ratio_threshold: float | None = 2.4,
    logprob_threshold: float | None = -1.0,
    no_speech_threshold: float | None = 0.6,
    condition_on_previous_text: bool = True,
    initial_prompt: str | None = None,
    carry_initial_prompt: bool = False,
    word_timestamps: bool = False,
    prepend_punctuations: str = common.PREPENDED,
    append_punctuations: str = common.APPENDED,
    clip_timestamps: str | list[float] = "0",
    hallucination_silence_threshold: float | None = None,
    language: str | None = None,
    task: str = "transcribe",
    sample_len: int | None = None,
    **decode_options: Any,
) -> dict[str, Any]:
    """Transcribes a whole recording.

    Options that are not listed here ask for what cannot be done: values other than their defaults warn or raise, as
    `docs/drop-in.md` lists.

    Args:
        model: What `load_model` gave.
        audio: A path, or samples at 16 kHz.
        verbose: True prints segments as they are made.
        initial_prompt: What the audio may be about, as text; a model that takes no context has a warning instead.
        carry_initial_prompt: Either value: a context is that of every segment.
        language: A code or an English name of Whisper's that the model takes; None: the model finds out, for each
            segment. A model that takes none has "en" and, with a warning, "zh".
        task: "transcribe".
        word_timestamps: Give each segment its words and their times.
        sample_len: Where the text of 30 seconds is cut.
        decode_options: Options of `DecodingOptions`.

    Returns:
        "text", "segments" (dictionaries with "id", "seek", "start", "end", "text", "tokens", "temperature",
        "avg_logprob", "compression_ratio", "no_speech_prob" and, where asked for, "words") and "language": Whisper's
        code of what was asked for, else of the language in which the model says most of the audio is; of a model that
        names none, "en" or "zh" by the text's script. None without text.

    Raises:
        AudioError: The audio cannot be read, or is too short.
        UsageError: The model takes languages, but not this one.
        UnsupportedOperationError: Another task is asked for, or a part of the audio; or another language, and the model
            takes none.
        TypeError: There is no such option.
    """
    options = dict(
        temperature=temperature, compression_ratio_threshold=compression_ratio_threshold,
        logprob_threshold=logprob_threshold, no_speech_threshold=no_speech_threshold,
        condition_on_previous_text=condition_on_previous_text, initial_prompt=initial_prompt,
        carry_initial_prompt=carry_initial_prompt, prepend_punctuations=prepend_punctuations,
        append_punctuations=append_punctuations, clip_timestamps=clip_timestamps,
        hallucination_silence_threshold=hallucination_silence_threshold, **decode_options,
    )  # fmt: skip
    hints = common.check(model.model, options, language, task)
    run = common.Run(
        model.model,
        common.load(audio),
        vad="auto",
        max_new_tokens=sample_len,
        word_timestamps=word_timestamps,
        hints=hints,
    )
    heard: list[Segment] = []
    segments: list[dict[str, Any]] = []
    text = ""
    for segment in run:
        heard.append(segment)
        made = _segment(len(segments), segment, separator(text, segment.text))
        segments.append(made)
        text += made["text"]
        if verbose:
            print(
                f"[{common.format_timestamp(segment.start)} --> {common.format_timestamp(segment.end)}] {segment.text}",
                flush=True,
            )
    language = hints.language or next(iter(common.shares(model.model, heard)), None)
    return {"text": text, "segments": segments, "language": language}


def _segment(number: int, segment: Segment, space: str) -> dict[str, Any]:
    made: dict[str, Any] = {
        "id": number,
        "seek": round(segment.start * 100),
        "start": segment.start,
        "end": segment.end,
        "text": space + segment.text,
        **common.numbers(segment),
    }
    if segment.words is not None:
        made["words"] = [
            {"word": word.text, "start": word.start, "end": word.end, "probability": word.probability}
            for word in spaced_words(segment)
        ]
        if made["words"]:
            made["words"][0]["word"] = space + made["words"][0]["word"]
    return made
