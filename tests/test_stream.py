"""Tokens as they are decoded: their text, their order, and the end of a stream that is left."""

from __future__ import annotations

import inspect
import threading

import numpy as np
import pytest

from pycrispasr import AudioError, Model, UsageError
from pycrispasr.decoding.recording import Task
from pycrispasr.live.stabilizer import separator as separator_between
from pycrispasr.runtimes import native

from .sounds import make_tones


def test_a_stream_gives_the_transcript_s_tokens(nano: Model) -> None:
    sound = make_tones(40)
    transcript = nano.transcribe(sound, sample_rate=16000, max_new_tokens=20)
    tokens = list(nano.stream(sound, sample_rate=16000, max_new_tokens=20))
    assert tokens == [token for segment in transcript.segments for token in segment.tokens]


def test_the_first_token_comes_before_the_second_is_decoded(nano: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    second = threading.Event()
    run = native.NativeSession.run

    def slow(self: native.NativeSession, sequences: list[int], seconds: float) -> None:
        assert second.wait(60)
        run(self, sequences, seconds)

    monkeypatch.setattr(native.NativeSession, "run", slow)
    stream = nano.stream(make_tones(1), sample_rate=16000, max_new_tokens=50)
    next(stream)
    second.set()
    assert len(list(stream)) == 49


def test_wrong_arguments_are_told_at_the_call(nano: Model) -> None:
    with pytest.raises(AudioError):
        nano.stream(make_tones(1))
    with pytest.raises(UsageError):
        nano.stream(make_tones(1), sample_rate=16000, max_new_tokens=0)


def test_leaving_a_stream_frees_its_session(nano: Model) -> None:
    stream = nano.stream(make_tones(1), sample_rate=16000)
    next(stream)
    job = inspect.getgeneratorlocals(stream)["job"]
    stream.close()
    assert job.closed

    stream = nano.stream(make_tones(1), sample_rate=16000)
    for _ in stream:
        break
    job = inspect.getgeneratorlocals(stream)["job"]
    del stream
    assert job.closed


def test_a_stream_may_never_be_started(nano: Model) -> None:
    nano.stream(make_tones(1), sample_rate=16000).close()


def texts_of(contents: list[bytes]) -> tuple[list[str], str]:
    """The tokens' texts, and the task's."""
    task = Task(0, np.zeros(16000, np.float32))
    for index, content in enumerate(contents):
        task.add(index, 1.0, content)
    return [token.text for token in task.tokens], task.segment("").text


def test_a_character_is_given_with_the_token_that_completes_it() -> None:
    texts, text = texts_of([bytes([byte]) for byte in "a你🎉!".encode()])
    assert texts == ["a", "", "", "你", "", "", "", "🎉", "!"]
    assert text == "a你🎉!"


def test_bytes_that_are_no_utf_8_are_replaced() -> None:
    assert texts_of([b"a\xffb", b"\xe4\xbd"]) == (["a\ufffdb", ""], "a\ufffdb\ufffd")


def test_surrounding_whitespace_belongs_to_tokens_and_not_to_the_text() -> None:
    assert texts_of([b" hello "]) == ([" hello "], "hello")


@pytest.mark.parametrize(
    ("before", "after", "separator"),
    [
        ("", "hello", ""),
        ("hello", "", ""),
        ("hello", "world", " "),
        ("hello ", "world", ""),
        ("hello", " world", ""),
        ("你好", "世界", ""),
        ("你好。", "世界", ""),
        ("hello", "世界", ""),
        ("你好", "world", ""),
        ("naïve.", "Été", " "),
    ],
)
def test_texts_are_joined_as_they_are_written(before: str, after: str, separator: str) -> None:
    assert separator_between(before, after) == separator


def test_the_first_text_of_a_later_segment_begins_with_the_separator() -> None:
    task = Task(480000, np.zeros(16000, np.float32))
    for content in (b"", b"world", b"again"):
        task.add(1, 1.0, content)
    segment = task.segment("hello")
    assert [token.text for token in segment.tokens] == ["", " world", "again"]
    assert (segment.text, segment.start, segment.end) == ("worldagain", 30, 31)
