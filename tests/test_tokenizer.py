"""Text becomes the tokens of byte-level BPE, however long and odd it is."""

from __future__ import annotations

import itertools
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycrispasr import Model
from pycrispasr.models import hub

from .reference import gguf_model
from .reference import model as reference

LETTERS = "abcdehilnorstu"


@pytest.fixture(scope="module")
def plain() -> gguf_model.Model:
    """The bundled vocabulary for the reference, which joins the first of the best pairs, again and again."""
    return gguf_model.load(hub.resolve("tiny"))


@given(word=st.text(LETTERS, min_size=1, max_size=60))
def test_a_word_is_joined_as_by_plain_search(word: str, tiny: Model, plain: gguf_model.Model) -> None:
    assert tiny.tokenize(word) == reference.tokenize(plain, word)


@given(
    pieces=st.lists(st.sampled_from(["use", "r", "us", "er", "the", "th", "he", "ee", "e"]), min_size=1, max_size=60)
)
def test_repeated_pairs_are_joined_from_the_left(pieces: list[str], tiny: Model, plain: gguf_model.Model) -> None:
    word = "".join(pieces)
    assert tiny.tokenize(word) == reference.tokenize(plain, word)


@pytest.mark.parametrize("piece", ["user", "e", *(pytest.param(one, marks=pytest.mark.slow) for one in ("ab", "the"))])
def test_a_word_of_a_megabyte_is_tokenized(piece: str, tiny: Model, plain: gguf_model.Model) -> None:
    """By a search for the best of all pairs at every step it would take an hour."""
    count = 2**20 // len(piece)
    tokens = tiny.tokenize(piece * count)
    assert b"".join(tiny._opened().token_bytes(token) for token in tokens).decode() == piece * count
    beginning = reference.tokenize(plain, piece * 100)
    agreeing = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(tokens, beginning, strict=False))
    assert sum(1 for _ in agreeing) > len(beginning) - 8


@given(text=st.text(max_size=40))
def test_the_tokens_of_any_text_are_its_bytes(text: str, tiny: Model) -> None:
    tokens = tiny.tokenize(text)
    content = b"".join(tiny._opened().token_bytes(token) for token in tokens)
    assert content == normalize("NFC", text).encode()
