"""Subtitles keep every word, in order and in time, and other programs' parsers read what is written."""

from __future__ import annotations

import contextlib
import dataclasses
import html
import io
import itertools
import json
import math
import re
import unicodedata
from pathlib import Path
from typing import Any

import jsonschema
import pysubs2
import pytest
import webvtt
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pycrispasr import Model, Partial, Segment, Timings, Token, Transcript, UsageError, Word
from pycrispasr.results import formats
from pycrispasr.text import pieces, plain

SCHEMA = Path(__file__).parent.parent / "docs" / "transcript.schema.json"


def transcript(*segments: Segment) -> Transcript:
    text = " ".join(segment.text for segment in segments if segment.text)
    complete = all(segment.status == "ok" for segment in segments)
    return Transcript(text, segments, max((s.end for s in segments), default=0.0), None, complete, Timings())


def said(start: float, end: float, text: str, words: tuple[Word, ...] | None = None) -> Segment:
    return Segment(start, end, text, (), "ok", words)


def spoken(text: str, start: float = 0.0, each: float = 0.25, pause: float = 0.0) -> Segment:
    """A segment whose words follow each other after the same pauses."""
    texts = [piece.strip() for piece in pieces(text)]
    starts = [start + i * (each + pause) for i in range(len(texts))]
    words = tuple(Word(word, at, at + each, 0.5) for word, at in zip(texts, starts, strict=True))
    return said(start, starts[-1] + each, text, words)


def columns(text: str) -> int:
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def in_ms(time: str) -> int:
    hours, minutes, seconds = time.split(":")
    return int(hours) * 3_600_000 + int(minutes) * 60_000 + round(float(seconds) * 1000)


TEXTS = st.lists(
    st.sampled_from(["a", "it's", "3,000", "no,", "7", "你", "好", "。", "「", "你好", "x" * 90, "-->", "(", "<b>",
                     "--->", "&lt;", "NOTE",
                     "7\n00:00:01,000 --> 00:00:02,000\nx", "\x1b[2J", "\u202eab", "a\u2028b", "c\x85\x85d", "\x9b\0"])
    | st.text(st.characters(codec="utf-8"), min_size=1, max_size=6),
    max_size=40,
).map(" ".join)  # fmt: skip
TIMES = st.floats(0, 40) | st.sampled_from([0.0, 0.001, 30.0])


@st.composite
def transcripts(draw: st.DrawFn) -> Transcript:
    segments, at = [], draw(st.sampled_from([0.0, 350_000.0]))
    for _ in range(draw(st.integers(0, 4))):
        start = at + draw(TIMES)
        at = start + draw(TIMES)
        text, words = " ".join(draw(TEXTS).split()), None
        if text and draw(st.booleans()):
            texts = [piece.strip() for piece in pieces(text)]
            marks = sorted(start + (at - start) * draw(st.floats(0, 1)) for _ in range(2 * len(texts)))
            words = tuple(
                Word(word, *span, 0.5) for word, span in zip(texts, zip(*[iter(marks)] * 2, strict=True), strict=True)
            )
        segments.append(said(start, at, text, words))
    return transcript(*segments)


FAST = transcript(said(1.0, 2.0, " ".join(f"w{i}" for i in range(500))))
LAYOUTS = st.fixed_dictionaries(
    {
        "max_line_chars": st.integers(2, 90),
        "max_lines": st.integers(1, 3),
        "max_cue_seconds": st.floats(0.1, 20, exclude_max=True),
    }
)
USUAL = {"max_line_chars": 42, "max_lines": 2, "max_cue_seconds": 7.0}


@settings(max_examples=300, deadline=None)
@given(spoken=transcripts(), layout=LAYOUTS)
@example(FAST, USUAL)
@example(transcript(said(3, 3, "zero seconds, " * 20)), USUAL)
@example(transcript(said(0, 30, ""), said(30, 30, "")), USUAL)
@example(transcript(said(0, 30, "你好世界。" * 60)), USUAL)
@example(transcript(said(0, 30, "x" * 1000)), USUAL)
def test_cues_keep_every_word_and_all_limits(spoken: Transcript, layout: dict[str, Any]) -> None:
    found = formats.cues(spoken, **layout)
    assert "".join("".join(cue.text.split()) for cue in found) == "".join(
        "".join(plain(segment.text).split()) for segment in spoken.segments
    )
    for cue in found:
        assert 1 <= len(cue.lines) <= layout["max_lines"]
        for line in cue.lines:
            assert line.strip() == line != ""
            assert columns(line) <= layout["max_line_chars"]
        milliseconds = round(cue.end * 1000) - round(cue.start * 1000)
        assert 1 <= milliseconds <= layout["max_cue_seconds"] * 1000
        assert "".join(word.text for word in cue.words) in ("", "".join(cue.text.split()))
    for before, after in itertools.pairwise(found):
        assert before.end <= after.start


@settings(max_examples=200, deadline=None)
@given(spoken=transcripts(), limit=st.integers(10, 60))
def test_only_words_longer_than_a_line_are_cut(spoken: Transcript, limit: int) -> None:
    lines = [line for cue in formats.cues(spoken, max_line_chars=limit) for line in cue.lines]
    wanted = [word for segment in spoken.segments for word in plain(segment.text).split() if columns(word) <= limit]
    # A text without spaces may be wrapped anywhere, so only words of one piece are looked for.
    shown = iter(word for line in lines for word in line.split())
    assert all(word in shown for word in wanted if len(pieces(word)) == 1)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["one", "two", "three", "four."]), min_size=1, max_size=60), st.floats(0, 0.5))
def test_cues_have_their_words_times_exactly(words: list[str], pause: float) -> None:
    segment = spoken(" ".join(words), start=10.0, pause=round(pause, 2))
    found = formats.cues(transcript(segment), max_cue_seconds=100)
    assert [word for cue in found for word in cue.words] == list(segment.words or ())
    for cue in found:
        assert cue.start == pytest.approx(cue.words[0].start, abs=0.0006)
        assert cue.end == pytest.approx(cue.words[-1].end, abs=0.0006)


@settings(max_examples=200, deadline=None)
@given(spoken=transcripts(), layout=LAYOUTS)
def test_parsers_of_others_read_the_same_cues(spoken: Transcript, layout: dict[str, Any]) -> None:
    wanted = formats.cues(spoken, **layout)
    times = [(round(cue.start * 1000), round(cue.end * 1000)) for cue in wanted]
    if CLOCK.search(
        " ".join(cue.text for cue in wanted)
    ):  # pysubs2 takes two times in a line for a cue's, arrow or not
        return
    read = pysubs2.SSAFile.from_string(spoken.to_srt(**layout), format_="srt")
    assert [(event.start, event.end) for event in read] == times
    captions = list(webvtt.from_buffer(io.StringIO(spoken.to_vtt(**layout))))
    assert [tuple(in_ms(time) for time in (caption.start, caption.end)) for caption in captions] == times
    if not any(cue.words for cue in wanted):  # pysubs2 takes a line with two words' times for a cue's times
        read = pysubs2.SSAFile.from_string(spoken.to_vtt(**layout), format_="vtt")
        assert [(event.start, event.end) for event in read] == times


CLOCK = re.compile(r"\d[:.,]\d")
ARROW = re.compile(r"([\d:]+[,.]\d{3}) --> ([\d:]+[,.]\d{3})")


def read_subtitles(content: str) -> list[tuple[int, int, list[str]]]:
    """Beginnings, ends in milliseconds and lines of cues, as their formats say: an empty line ends one."""
    found = []
    for block in content.rstrip("\n").split("\n\n"):
        lines = block.split("\n")
        place = next((i for i, line in enumerate(lines) if "-->" in line), None)
        if place is not None:
            start, end = ARROW.fullmatch(lines[place]).groups()
            found.append((in_ms(start.replace(",", ".")), in_ms(end.replace(",", ".")), lines[place + 1 :]))
    return found


@settings(max_examples=300, deadline=None)
@given(spoken=transcripts(), layout=LAYOUTS)
def test_no_text_breaks_out_of_its_cue(spoken: Transcript, layout: dict[str, Any]) -> None:
    cues = formats.cues(spoken, **layout)
    wanted = [(round(cue.start * 1000), round(cue.end * 1000), list(cue.lines)) for cue in cues]
    srt = read_subtitles(spoken.to_srt(**layout))
    assert srt == [(start, end, [re.sub("--+>", "->", line) for line in lines]) for start, end, lines in wanted]
    vtt = read_subtitles(spoken.to_vtt(**layout))
    assert wanted == [
        (start, end, [html.unescape(re.sub(r"<[\d:.]+>", "", line)) for line in lines]) for start, end, lines in vtt
    ]


HOSTILE = (
    "\x1b]0;owned\x07 a\x9b31m\x00 \u202egnp.exe\u2069\r\n\r\n9\n00:00:00,000 --> 99:00:00,000\n<c>&\x85b\u2028c \t--->"
)


@pytest.mark.parametrize("kind", formats.FORMATS)
@pytest.mark.parametrize("with_words", [True, False])
def test_a_hostile_vocabulary_reaches_no_file(kind: formats.Format, with_words: bool) -> None:
    words = (Word(HOSTILE, 0.0, 1.0, 0.5), Word("\x1b", 1.0, 1.5, 0.5), Word("end", 1.5, 2.0, 0.5))
    segment = said(0.0, 2.0, f"{HOSTILE} \x1b end", words if with_words else None)
    failed = Segment(2.0, 3.0, "", (), "failed", None, HOSTILE)
    hostile = transcript(segment, failed)
    content = formats.render(hostile, kind)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", content)
    if kind == "json":
        assert "\n" not in content[:-1]
        assert json.loads(content)["text"] == hostile.text
        assert json.loads(hostile.to_json(indent=2)) == json.loads(content)
    elif kind in ("srt", "vtt"):
        assert len(re.findall("-->", content)) == len(read_subtitles(content)) == len(formats.cues(hostile))
    elif kind in ("tsv", "audacity"):
        assert {line.count("\t") for line in content.splitlines()} == {2}


def test_events_escape_what_steers_a_terminal() -> None:
    line = formats.event_to_json(Partial(0.0, 1.0, HOSTILE, "\u2028"))
    assert line.isprintable()
    assert json.loads(line)["committed"] == HOSTILE


def test_subtitles_have_the_text_that_their_parsers_read() -> None:
    segments = said(0, 4, 'Fish & chips: 3 < 4 --> "yes".'), said(3600 * 100 + 1.5, 3600 * 100 + 4, "你好，世界。")
    assert transcript(*segments).to_srt() == (
        '1\n00:00:00,000 --> 00:00:04,000\nFish & chips: 3 < 4 -> "yes".\n\n'
        "2\n100:00:01,500 --> 100:00:04,000\n你好，世界。\n"
    )
    written = transcript(*segments).to_vtt()
    assert written == (
        'WEBVTT\n\n00:00:00.000 --> 00:00:04.000\nFish &amp; chips: 3 &lt; 4 --&gt; "yes".\n\n'
        "100:00:01.500 --> 100:00:04.000\n你好，世界。\n"
    )
    assert [caption.text for caption in webvtt.from_buffer(io.StringIO(written))][1] == "你好，世界。"


def test_words_with_times_have_them_in_vtt() -> None:
    segment = spoken("one <two> three", start=1.0)
    written = transcript(segment).to_vtt()
    assert written == (
        "WEBVTT\n\n00:00:01.000 --> 00:00:01.750\n"
        "one <00:00:01.250>&lt;two&gt; <00:00:01.500>three\n"
    )  # fmt: skip
    (caption,) = webvtt.from_buffer(io.StringIO(written))
    assert caption.text == "one &lt;two&gt; three"


def test_times_in_vtt_cues_grow_and_lie_inside() -> None:
    words = (Word("a", 1, 1, 1), Word("b", 1, 1, 1), Word("c", 1.5, 2, 1), Word("d", 1.4, 3, 1), Word("e", 3, 3, 1))
    written = transcript(said(1, 3, "a b c d e", words)).to_vtt()
    assert written.splitlines()[-1] == "a b <00:00:01.500>c d e"


def test_a_pause_between_words_begins_a_new_cue() -> None:
    segment = spoken("one two", pause=1.0)
    assert [(cue.start, cue.end, cue.text) for cue in formats.cues(transcript(segment))] == [
        (0.0, 0.25, "one"),
        (1.25, 1.5, "two"),
    ]


def test_cues_end_rather_after_sentences_and_clauses() -> None:
    text = "We walked along the river until it was dark. Then, as nobody came, we all went home and slept."
    assert [cue.lines for cue in formats.cues(transcript(said(0, 7, text)))] == [
        ("We walked along the", "river until it was dark."),
        ("Then, as nobody came, we", "all went home and slept."),
    ]
    text = text.replace(".", "")
    first = formats.cues(transcript(said(0, 7, text)))[0]
    assert first.lines[-1].endswith("nobody came,")


def test_chinese_lines_begin_with_no_closing_mark_and_end_with_no_opening_one() -> None:
    lines = [
        line
        for limit in range(6, 20)
        for cue in formats.cues(transcript(said(0, 9, "他说「你好」，然后就走了。" * 9)), max_line_chars=limit)
        for line in cue.lines
    ]
    assert not any(line[0] in "」，。" or line[-1] == "「" for line in lines)


def test_words_whose_text_has_other_spaces_are_put_together_as_usual() -> None:
    words = tuple(Word(text, i, i + 0.9, 1) for i, text in enumerate(["so", "你", "好", "ok"]))
    (cue,) = formats.cues(transcript(said(0, 4, "So: 你好 ok", words)))
    assert cue.text == "so你好ok"


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_line_chars": 1},
        {"max_lines": 0},
        {"max_cue_seconds": 0.0},
        {"max_cue_seconds": math.inf},
        {"max_cue_seconds": math.nan},
    ],
)
def test_limits_that_no_cue_can_keep_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=rf"{next(iter(wrong))} cannot be {next(iter(wrong.values()))}: it must be"):
        formats.cues(FAST, **wrong)


FAILED = Segment(4.0, 9.0, "", (), "failed", None, "out of\nmemory --> stopped")


def test_a_segment_without_text_is_no_cue_and_a_failed_one_is_told_of() -> None:
    broken = transcript(said(0, 4, "yes"), FAILED, said(9, 12, ""))
    assert broken.to_srt() == "1\n00:00:00,000 --> 00:00:04,000\nyes\n"
    assert broken.to_vtt() == (
        "WEBVTT\n\nNOTE 4.000-9.000 s failed: out of memory -> stopped\n\n00:00:00.000 --> 00:00:04.000\nyes\n"
    )
    assert [caption.text for caption in webvtt.from_buffer(io.StringIO(broken.to_vtt()))] == ["yes"]
    assert broken.to_tsv() == "start\tend\ttext\n0\t4000\tyes\n"
    assert broken.to_audacity() == (
        "0.000000\t4.000000\tyes\n4.000000\t9.000000\t[4.000-9.000 s failed: out of memory --> stopped]\n"
    )
    assert json.loads(broken.to_json())["segments"][1]["error"] == FAILED.error


def test_tables_have_one_line_for_each_segment_whatever_its_text() -> None:
    odd = transcript(said(0.0004, 1.5, "tab\there\nand there"), spoken("two words", start=2.0))
    assert odd.to_tsv() == "start\tend\ttext\n0\t1500\ttab here and there\n2000\t2500\ttwo words\n"
    assert odd.to_audacity() == (
        "0.000400\t1.500000\ttab here and there\n2.000000\t2.250000\ttwo\n2.250000\t2.500000\twords\n"
    )


@pytest.mark.parametrize("kind", formats.FORMATS)
def test_a_file_ends_with_a_newline_and_has_what_the_method_gives(kind: formats.Format) -> None:
    whole = transcript(spoken("Ünï 你好."))
    content = formats.render(whole, kind)
    assert content.endswith("\n")
    assert content.rstrip("\n") == getattr(whole, f"to_{kind}")().rstrip("\n")
    assert "Ünï" in content
    assert formats.render(transcript(), kind) in {
        "srt": [""],
        "vtt": ["WEBVTT\n"],
        "tsv": ["start\tend\ttext\n"],
        "audacity": [""],
        "txt": ["\n"],
    }.get(kind, [transcript().to_json() + "\n"])


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UsageError, match="no format 'doc': choose among txt, srt"):
        formats.render(FAST, "doc")  # type: ignore[arg-type]


def test_the_limits_reach_the_files() -> None:
    for kind in ("srt", "vtt"):
        slow = transcript(said(0, 30, "some words " * 30))
        usual = formats.render(slow, kind)
        for limit in ({"max_line_chars": 3}, {"max_lines": 1}, {"max_cue_seconds": 0.1}):
            limited = formats.render(slow, kind, **limit)
            assert usual != limited == getattr(slow, f"to_{kind}")(**limit)


def test_json_is_as_its_schema_says(tiny: Model) -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    check = jsonschema.Draft202012Validator(schema)
    check.check_schema(schema)
    heard = tiny.transcribe("samples/digits.wav")
    with_all = Transcript(
        "a b", (spoken("a b"), FAILED, dataclasses.replace(FAILED, tokens=(Token(-1, "x", math.nan, 0.5, 0.75),))),
        9.0, "en", False, Timings(), ("clipped",), "calibrated",
    )  # fmt: skip
    for one in (heard, with_all):
        check.validate(json.loads(one.to_json()))
        check.validate(json.loads(formats.render(one, "json", audio="a.wav")))
        check.validate(json.loads(one.to_json(indent=2)))
        for name, wrong in (("segments", None), ("duration", "9"), ("complete", 1), ("segments", [{"text": "a"}])):
            assert not check.is_valid(json.loads(one.to_json()) | {name: wrong})


def test_the_schema_describes_every_field() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    for kind in (Segment, Token, Word, Timings):
        described = schema["$defs"][kind.__name__.lower()]
        names = {field.name for field in dataclasses.fields(kind)}
        assert set(described["properties"]) == names == set(described["required"])
    names = {field.name for field in dataclasses.fields(Transcript)}
    assert set(schema["properties"]) == names | {"audio"}
    assert set(schema["required"]) == names
    assert set(schema["$defs"]["segment"]["properties"]["status"]["enum"]) == {
        "ok", "truncated", "looped", "failed", "cancelled"
    }  # fmt: skip


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_transcript_comes_back_from_json_and_damage_is_a_usage_error(data: st.DataObject) -> None:
    words = (Word("a", 0.1, 0.2, 0.5), Word("b", 0.2, 0.3, 0.25))
    tokens = (Token(3, "a", 0.5, 0.1, 0.2), Token(4, " b", 0.25))
    segments = (
        Segment(0.0, 1.5, "a b", tokens, "ok", words, language="en"),
        Segment(2.0, 3.0, "", (), "failed", None, "broken"),
    )
    transcript = Transcript("a b", segments, 3.0, "en", False, Timings(encoder=0.5, tokens=2), ("clipped",), "aligner")
    assert Transcript.from_json(transcript.to_json()) == transcript
    assert Transcript.from_json(transcript.to_json(indent=1)) == transcript
    content = json.loads(transcript.to_json())
    place: object = content
    path = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=5))
    for step in path:
        holder, keys = place, list(place) if isinstance(place, dict) else list(range(len(place)))  # type: ignore
        key = keys[step % len(keys)]
        place = holder[key]  # type: ignore[index]
        if not isinstance(place, dict | list) or not place:
            break
    holder[key] = data.draw(JSON)  # type: ignore[index]
    for damaged in (json.dumps(content), data.draw(st.text()), json.dumps(data.draw(JSON))):
        with contextlib.suppress(UsageError):
            assert isinstance(Transcript.from_json(damaged).to_srt(), str)
    with pytest.raises(UsageError, match=r"not the JSON of a transcript.*KeyError"):
        Transcript.from_json("{}")
