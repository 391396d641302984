"""Forced alignment: Qwen3ASRForTokenClassification with what stands around it, `Qwen3ASRProcessor`, in NumPy.

Shapes as in `model.py`; W words of a text.
"""

from __future__ import annotations

import unicodedata

import numpy as np

from . import model as ref
from .gguf_model import Model

TIMESTAMP = "<timestamp>"


def is_ideograph(character: str) -> bool:
    """A Chinese character, which is a word by itself: all of the blocks, assigned or not."""
    blocks = "3400-4DBF 4E00-9FFF F900-FAFF 20000-2A6DF 2A700-2B73F 2B740-2B81F 2B820-2CEAF 2F800-2FA1F"
    edges = [[int(edge, 16) for edge in block.split("-")] for block in blocks.split()]
    return any(first <= ord(character) <= last for first, last in edges)


def words(text: str) -> list[str]:
    """The words of a text whose language is not known: what is neither letter nor number is left out."""
    found = []
    for part in text.split():
        word = ""
        for character in part:
            if is_ideograph(character):
                found += [word, character]
                word = ""
            elif character == "'" or unicodedata.category(character)[0] in "LN":
                word += character
        found.append(word)
    return [word for word in found if word]


def prompt_ids(model: Model, n_audio: int, tokens: list[list[int]]) -> list[int]:
    """[P]: the audio, and each word's tokens with two places for its times behind them."""
    hp, place = model.hparams, model.tokens.index(TIMESTAMP)
    text = [token for word in tokens for token in [*word, place, place]]
    return [hp.audio_start_id, *[ref.AUDIO] * n_audio, hp.audio_end_id, *text]


def scores(model: Model, samples: np.ndarray, tokens: list[list[int]]) -> np.ndarray:
    """[n] and the tokens of W words -> [2 W, bins]: the classifier at each word's two places."""
    mel = ref.log_mel(ref.heard(model, samples), model.hparams.enc_num_mel_bins, model.weights.get("audio.mel_filters"))
    audio = ref.encode(model, mel)
    ids = prompt_ids(model, len(audio), tokens)
    rows = ref.decode(model, ref.embed(model, ids, audio))
    places = np.array(ids) == model.tokens.index(TIMESTAMP)
    found = rows[places] @ model["llm.lm_head.weight"].T
    return found + model.weights.get("llm.lm_head.bias", 0)


def mended(times: list[int]) -> list[int]:
    """Times in order: what is not in their longest subsequence that never goes back is made to fit in.

    Of several as long the one is kept that ends first, and that goes on with the first member that it can.
    """
    n = len(times)
    length, before = [1] * n, [-1] * n
    for i in range(n):
        for j in range(i):
            if times[j] <= times[i] and length[j] >= length[i]:
                length[i], before[i] = length[j] + 1, j
    kept = []
    i = length.index(max(length)) if n else -1
    while i >= 0:
        kept.insert(0, i)
        i = before[i]
    out = list(times)
    for i in range(n):
        if i in kept:
            continue
        left = max((k for k in kept if k < i), default=None)
        right = min((k for k in kept if k > i), default=None)
        if left is None or right is None:
            out[i] = times[right if left is None else left]  # type: ignore[index]
        elif right - left <= 3:  # at most two stand between: each takes the nearer one's
            out[i] = times[left] if i - left <= right - i else times[right]
        else:
            out[i] = int(times[left] + (times[right] - times[left]) / (right - left) * (i - left))
    return out
