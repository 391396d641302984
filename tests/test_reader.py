"""What a model writes is taken apart into the language and the text, however its tokens are cut."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycrispasr.decoding.reader import PlainReader, Reader
from pycrispasr.decoding.recording import Recording, Task
from pycrispasr.models.families import FAMILIES
from pycrispasr.models.families.qwen3_asr import FAMILY, LanguageReader
from pycrispasr.results.segment import Segment
from pycrispasr.segmentation.segmenter import AudioSegment
from pycrispasr.text import join

PREFIX = b"language English<asr_text>"


def cut(text: bytes, places: list[int]) -> list[bytes]:
    """Tokens of these bytes."""
    ends = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in pairwise(ends)]


def written(tokens: list[bytes], reader: Reader, *, ended: bool = True) -> Task:
    task = Task(0, np.zeros(16000, np.float32))
    task.reader = reader
    for number, content in enumerate(tokens):
        task.add(number, 0.5, content)
    if ended:
        task.end_text()
    task.end_with("ok")
    return task


PARTS = st.sampled_from(
    [b"language ", b"Language ", b"English", b"None", b"French", b"<asr_text>", b"<asr_", b"text>", b" ", b"\n", b"Hi",
     "你好".encode(), "你".encode()[:2], b"\xff", b"", b"[", b"]",
     b"[0.", b"5]", b"[S01]", b"[S02]", b"[0.2]", b"[9:59:59]"]
)  # fmt: skip
TOKENS = st.lists(st.one_of(PARTS, st.binary(max_size=6)), max_size=12)


@given(TOKENS, st.sampled_from(sorted(FAMILIES)), st.booleans())
def test_the_texts_of_the_segments_joined_are_the_text_whatever_a_model_writes(
    tokens: list[bytes], family: str, ended: bool
) -> None:
    recording = Recording()
    for start in (0, 16000):
        recording.append(AudioSegment(start, np.zeros(16000, np.float32)))
        task = recording.waiting.popleft()
        task.reader = FAMILIES[family].reader(None)
        for number, content in enumerate(tokens):
            task.add(number, 0.5, content)
        if ended:
            task.end_text()
        recording.complete(task, {"looped": 0, "truncated": 0}, ())
    transcript = recording.transcript()
    joined = ""
    for segment in transcript.segments:
        joined = join(joined, segment.text)
        whole = "".join(token.text for token in segment.tokens)  # without a character that is not complete
        assert stripped(whole) == stripped(segment.text)
    assert transcript.text == joined
    assert task.n_steps == len(tokens)
    assert task.steps == sorted(task.steps) == [token.id for token in task.tokens]
    if task.reader.turns is None:  # else a token may end one turn and begin another
        assert len(set(task.steps)) == len(task.steps)


def stripped(text: str) -> str:
    return re.sub(r"[\s�]+\Z", "", text).lstrip()


@given(st.text(max_size=40), st.lists(st.integers(0, 100), max_size=8))
def test_the_language_never_appears_in_the_text_however_its_tokens_are_cut(text: str, places: list[int]) -> None:
    task = written(cut(PREFIX + text.encode(), places), LanguageReader())
    assert task.text == text.encode().decode().strip()
    assert task.reader.language == "en"
    assert b"".join(token.text.encode() for token in task.tokens).decode() == text


@given(st.integers(0, len(PREFIX) - 1), st.lists(st.integers(0, 100), max_size=8))
def test_a_language_that_is_cut_off_is_no_text(length: int, places: list[int]) -> None:
    task = written(cut(PREFIX[:length], places), LanguageReader(), ended=False)
    assert (task.text, task.tokens) == ("", [])


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="<", exclude_categories=["Cs"]), max_size=5)))
def test_without_the_tag_everything_is_text_when_the_model_has_ended_it(parts: list[str]) -> None:
    text = "".join(parts)
    reader = LanguageReader()
    task = written([part.encode() for part in parts], reader)
    if reader.language is None and task.tokens:
        assert task.text == text.strip()
        assert [token.id for token in task.tokens] == list(range(len(parts)))


@pytest.mark.parametrize(
    ("tokens", "text", "language"),
    [
        ([b"language", b" None", b"<asr_text>"], "", None),
        ([b"language", b" None"], "", None),
        ([b"language", b" German"], "", "de"),
        ([b"language", b" is", b" a", b" gift"], "language is a gift", None),
        ([b"Language", b" French", b"<asr_text>", b"Oui"], "Language French<asr_text>Oui", None),
        ([b"language", b" Klingon", b"<asr_text>", b"nuqneH"], "nuqneH", "Klingon"),
        ([b"language", b" English", b"<asr_text>", b"a", b"<asr_text>", b"b"], "a<asr_text>b", "en"),
        ([b"language ", b"x" * 60, b"<asr_text>"], "language " + "x" * 60 + "<asr_text>", None),
    ],
)
def test_what_a_model_may_write(tokens: list[bytes], text: str, language: str | None) -> None:
    task = written(tokens, LanguageReader())
    assert (task.text, task.reader.language) == (text, language)


def test_where_the_language_was_told_everything_is_text() -> None:
    reader = FAMILY.reader("fr")
    task = written([b"language ", b"English<asr_text>", b"x"], reader)
    assert isinstance(reader, PlainReader)
    assert (task.text, task.segment("").language) == ("language English<asr_text>x", "fr")


def test_the_language_of_a_transcript_is_that_of_most_of_its_audio() -> None:
    recording = Recording()
    for start, seconds, language in ((0, 4, "en"), (4, 5, "fr"), (9, 3, "en"), (12, 20, None)):
        recording.finals.append(Segment(start, start + seconds, "x", (), "ok", language=language))
    assert recording.transcript().language == "en"
