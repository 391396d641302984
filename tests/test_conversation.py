"""Who said what when: of what a model writes, and of parts of a recording that overlap."""

from __future__ import annotations

import dataclasses
import functools
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycrispasr.decoding.conversation import Conversation, Utterance
from pycrispasr.decoding.reader import Turn
from pycrispasr.decoding.recording import Recording
from pycrispasr.models.families.moss_diarize import TurnReader
from pycrispasr.results.segment import Segment
from pycrispasr.results.transcript import Timings, Transcript
from pycrispasr.segmentation.parts import PartsSegmenter
from pycrispasr.segmentation.segmenter import AudioSegment
from pycrispasr.text import join


def read(text: str, size: int = 3) -> tuple[list[Turn], list[str]]:
    """The turns of a text in tokens of so many bytes, and what is said in each."""
    reader, said = TurnReader(), dict[int, bytearray]()
    content = text.encode()
    pieces = [piece for at in range(0, len(content), size) for piece in reader.read(content[at : at + size])]
    for piece in [*pieces, *reader.end()]:
        said.setdefault(piece.turn, bytearray()).extend(piece.content)
    assert all(turn.closed for turn in reader.turns)
    return list(reader.turns), [bytes(said.get(i, b"")).decode() for i in range(len(reader.turns))]


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("[0.12][S01]Hello.[1.48][1.6][S02]Yes.[2.04]", [(0.12, 1.48, 1, "Hello."), (1.6, 2.04, 2, "Yes.")]),
        ("[7.56][S10] a [1:23] [01:02:03][S02]你好[01:02:04.5]", [(7.56, 83, 10, " a "), (3723, 3724.5, 2, "你好")]),
        ("hello [x] there", [(None, None, None, "hello [x] there")]),
        ("[0.0]no speaker[1.0]", [(0, 1, None, "no speaker")]),
        ("[0.0][S01]see [12] below[3.0]", [(0, 3, 1, "see [12] below")]),
        ("[0.0][S01]a[1.0][S02]b[2.0]", [(0, 1, 1, "a"), (1, 2, 2, "b")]),
        ("[S01]a[S02]b", [(None, None, 1, "a"), (None, None, 2, "b")]),
        ("[S01][0.5]a[0.9]", [(0.5, 0.9, 1, "a")]),
        ("[0.0][S01]cut off [0.", [(0, None, 1, "cut off [0.")]),
        ("[0.0][S01]a[1.0", [(0, None, 1, "a[1.0")]),
        ("[[0.0][S01]a[1.0]]", [(None, 0, None, "["), (0, None, 1, "a[1.0]]")]),
        ("", []),
        ("[1.0]", []),
    ],
)
def test_what_a_model_may_write(text: str, turns: list[tuple[float, float, int, str]], size: int) -> None:
    found, said = read(text, size)
    assert [(turn.start, turn.end, turn.speaker, one) for turn, one in zip(found, said, strict=True)] == turns


PIECES = st.sampled_from(
    [
        "[",
        "]",
        "[S01]",
        "[S02]",
        "[S",
        "01]",
        "[0.5]",
        "[2.0]",
        "[1:00]",
        "[9:00:00]",
        "0.",
        "5",
        " ",
        "a",
        "word",
        "你",
    ]
)


@given(st.lists(PIECES, max_size=20), st.integers(1, 9), st.sampled_from(["ok", "truncated", "looped", "failed"]))
def test_segments_begin_one_after_the_other_inside_the_recording_and_no_word_is_lost(
    parts: list[str], size: int, status: Any
) -> None:
    recording = Recording(conversation=Conversation())
    recording.append(AudioSegment(0, np.zeros(3 * 16000, np.float32)))
    recording.n_samples = 3 * 16000
    task = recording.waiting.popleft()
    task.reader = TurnReader()
    content = "".join(parts).encode()
    for number, at in enumerate(range(0, len(content), size)):
        task.add(number, 0.5, content[at : at + size])
        recording.hear(task)
    task.end_text()
    given_before = list(recording.finals)
    task.end_with(status)
    recording._settle()
    transcript = recording.transcript()
    segments = transcript.segments
    assert list(segments[: len(given_before)]) == given_before
    assert all(0 <= one.start <= one.end <= 3 for one in segments)
    assert all(a.start <= b.start for a, b in pairwise(segments))
    assert transcript.text == functools.reduce(join, (segment.text for segment in segments), "")
    reader = TurnReader()
    said = b"".join(piece.content for piece in [*reader.read(content), *reader.end()])
    assert "".join(transcript.text.split()) == "".join(said.decode().split())
    assert transcript.complete == (status == "ok")
    missing = any(one.speaker is None and one.text for one in segments)
    assert any("named no speaker" in sentence for sentence in transcript.warnings) == missing


def utterances(*spoken: tuple[int | None, float, float, str]) -> list[Utterance]:
    return [Utterance(number, Segment(start, end, text, (), "ok")) for number, start, end, text in spoken]


def shown(segments: list[Segment]) -> list[tuple[str | None, str]]:
    return [(segment.speaker, segment.text) for segment in segments]


def test_speakers_of_two_parts_are_matched_by_who_speaks_when_in_the_overlap() -> None:
    conversation = Conversation(["Ann", "Ben"], overlap=20)
    first = utterances((1, 0, 10, "a"), (2, 10, 45, "b"), (1, 81, 88, "c"), (2, 90, 99, "d"))
    second = utterances((1, 81.2, 88.1, "c"), (2, 90.1, 99, "d"), (1, 101, 110, "e"), (3, 111, 120, "f"))
    found = list(conversation.update(0, 0, 100, first[:2], done=False))
    assert shown(found) == [("Ann", "a"), ("Ben", "b")]  # before the overlap nothing waits
    assert list(conversation.update(0, 0, 100, first, done=True)) == []
    # Whatever number the second part gives to whom.
    swapped = [Utterance({1: 2, 2: 1, 3: 3}[one.speaker or 0], one.segment) for one in second]
    for parts in (second, swapped):
        again = Conversation(["Ann", "Ben"], overlap=20)
        got = [*again.update(0, 0, 100, first, done=True), *again.update(1, 80, None, parts, done=True)]
        assert shown(got) == [
            ("Ann", "a"), ("Ben", "b"), ("Ann", "c"), ("Ben", "d"), ("Ann", "e"), ("Speaker 3", "f"),
        ]  # fmt: skip
        assert ["speaker 3" in sentence for sentence in again.warnings] == [True]


def test_what_the_first_part_did_not_hear_to_its_end_is_taken_from_the_second() -> None:
    conversation = Conversation(overlap=20)
    first = utterances((1, 0, 70, "a"), (1, 82, 100, "it goes on and"))
    second = utterances((1, 82, 110, "it goes on and on"))
    got = [*conversation.update(0, 0, 100, first, done=True), *conversation.update(1, 80, None, second, done=True)]
    assert got[-1].text == "it goes on and on"


def test_what_is_stopped_keeps_what_was_heard() -> None:
    conversation = Conversation(overlap=20)
    list(conversation.update(0, 0, 100, utterances((1, 0, 10, "a"), (1, 85, 99, "b")), done=True))
    assert shown(list(conversation.rest())) == [("Speaker 1", "b")]


SPOKEN = st.lists(st.tuples(st.integers(1, 3), st.floats(0, 30), st.floats(0.1, 9)), max_size=12)


@given(st.lists(SPOKEN, min_size=1, max_size=4))
def test_what_is_given_does_not_depend_on_when_it_is_known_and_nothing_away_from_seams_is_left_out(
    parts: list[list[tuple[int, float, float]]],
) -> None:
    heard = []
    for place, part in enumerate(parts):
        begin = 20.0 * place
        spoken = sorted((begin + start, speaker, length) for speaker, start, length in part)
        heard.append(
            utterances(
                *(
                    (speaker, start, min(start + length, begin + 30), f"{place}-{i}")
                    for i, (start, speaker, length) in enumerate(spoken)
                )
            )
        )
    ends = [20.0 * place + 30 if place + 1 < len(parts) else None for place in range(len(parts))]
    at_once, by_and_by = Conversation(overlap=10), Conversation(overlap=10)
    whole, slowly = [], []
    for place, one in enumerate(heard):
        whole += at_once.update(place, 20.0 * place, ends[place], one, done=True)
        for count in range(len(one) + 1):
            slowly += by_and_by.update(place, 20.0 * place, ends[place], one[:count], done=False)
        slowly += by_and_by.update(place, 20.0 * place, ends[place], one, done=True)
    assert shown(slowly) == shown(whole)
    texts = [segment.text for segment in whole]
    assert len(set(texts)) == len(texts)
    for place, one in enumerate(heard):
        begin = 20.0 * place
        lonely = {u.segment.text for u in one if u.segment.start > begin + 10 and u.segment.end < begin + 20}
        assert lonely <= set(texts)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=30))
def test_parts_cover_a_recording_with_their_overlaps_however_it_comes(sizes: list[int]) -> None:
    sound = np.arange(sum(sizes), dtype=np.float32)
    segmenter, at, parts = PartsSegmenter(1.0, 0.25), 0, list[AudioSegment]()
    for size in sizes:
        parts += segmenter.push(sound[at : at + size])
        at += size
    parts += segmenter.finish()
    assert parts[0].start == 0
    assert [part.overlapped for part in parts] == [True] * (len(parts) - 1) + [False]
    for part in parts:
        assert np.array_equal(part.samples, sound[part.start : part.start + len(part.samples)])
        assert len(part.samples) <= 16000
    for one, other in pairwise(parts):
        assert one.start + len(one.samples) - other.start == 4000
    assert parts[-1].start + len(parts[-1].samples) == len(sound)


def transcript(*segments: Segment) -> Transcript:
    text = functools.reduce(join, (segment.text for segment in segments), "")
    timings: Any = {field.name: 0 for field in dataclasses.fields(Timings)}
    return Transcript(text, segments, 10.0, None, True, Timings(**timings))


def test_every_format_names_the_speakers() -> None:
    spoken = transcript(
        Segment(0, 1, "Hello there.", (), "ok", speaker="Ann <1>"),
        Segment(1, 2, "And again.", (), "ok", speaker="Ann <1>"),
        Segment(2, 3, "Yes.", (), "ok", speaker="Speaker 2"),
        Segment(3, 4, "who?", (), "ok"),
    )
    assert spoken.to_txt() == "Ann <1>: Hello there.\nAnn <1>: And again.\nSpeaker 2: Yes.\nwho?"
    assert spoken.to_tsv().splitlines()[:2] == ["start\tend\tspeaker\ttext", "0\t1000\tAnn <1>\tHello there."]
    assert spoken.to_tsv().splitlines()[-1] == "3000\t4000\t\twho?"
    assert "<v Ann &lt;1&gt;>Hello there.\n" in spoken.to_vtt()
    assert "<v Speaker 2>Yes.\n" in spoken.to_vtt()
    assert "\nwho?\n" in spoken.to_vtt()
    lines = spoken.to_srt().splitlines()
    assert lines[2::4] == ["Ann <1>: Hello there.", "And again.", "Speaker 2: Yes.", "who?"]
    assert spoken.to_audacity().splitlines()[2] == "2.000000\t3.000000\tSpeaker 2: Yes."
    assert [one["speaker"] for one in spoken.to_dict()["segments"]] == ["Ann <1>", "Ann <1>", "Speaker 2", None]
    assert spoken.text == "Hello there. And again. Yes. who?"
