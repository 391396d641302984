"""Committed text only grows, whatever hypotheses come, and ends as the final text where they agreed."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycrispasr.live.stabilizer import Stabilizer
from pycrispasr.text import pieces

WORDS = st.lists(st.sampled_from(["a", "b", "no", "b,", "你好", "世", "x。y"]), max_size=8).map(" ".join)
SEGMENTS = st.lists(st.tuples(st.lists(WORDS, max_size=6), WORDS), min_size=1, max_size=4)


@settings(max_examples=500, deadline=None)
@given(segments=SEGMENTS)
def test_committed_text_is_never_retracted(segments: list[tuple[list[str], str]]) -> None:
    caption = Stabilizer()
    shown = [caption.text.committed]
    for hypotheses, final in segments:
        committed = ""
        for hypothesis in hypotheses:
            now, _ = caption.hear(hypothesis)
            assert now.startswith(committed)
            committed = now
            shown.append(caption.text.committed)
        caption.end(final)
        shown.append(caption.text.committed)
        assert caption.text.tentative == ""
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(shown))


@settings(max_examples=300, deadline=None)
@given(final=WORDS, seed=st.randoms())
def test_where_hypotheses_agree_the_text_is_the_final_one(final: str, seed: object) -> None:
    words = pieces(final)
    caption = Stabilizer()
    for count in range(len(words) + 1):
        caption.hear("".join(words[:count]))
        assert str(caption.text) == "".join(words[:count])
    caption.end(final)
    assert caption.text.committed == final.strip()


def test_a_word_is_committed_when_two_hypotheses_have_it_and_another_after_it() -> None:
    caption = Stabilizer()
    assert caption.hear("one two") == ("", "one two")
    assert caption.hear("one too three") == ("one", " too three")
    assert caption.hear("one too three") == ("one too", " three")
    caption.end("one too three four")
    assert caption.hear("five") == ("", "five")
    assert (caption.text.committed, caption.text.tentative) == ("one too three four", " five")


def test_a_hypothesis_that_changes_committed_words_goes_on_after_them() -> None:
    caption = Stabilizer()
    caption.hear("it is a nice day today")
    caption.hear("it is a nice day today")
    assert caption.text.committed == "it is a nice day"
    caption.hear("it was a nice day today yes")
    assert str(caption.text) == "it is a nice day today yes"
    caption.end("it was a nicer day today yes")
    assert caption.text.committed == "it is a nice day today yes"


def test_a_final_text_that_is_shorter_retracts_nothing() -> None:
    caption = Stabilizer()
    caption.hear("one two three")
    caption.hear("one two three")
    caption.end("")
    assert caption.text.committed == "one two"
    caption.end("end")
    assert caption.text.committed == "one two end"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", []),
        (" hello  big world ", ["hello", "  big", " world"]),
        ("你好 world", ["你", "好", " world"]),
        ("GPU你好。ok", ["GPU", "你", "好", "。", "ok"]),
    ],
)
def test_pieces_are_words_or_single_wide_characters(text: str, wanted: list[str]) -> None:
    assert pieces(text) == wanted
