"""When each token and word was said, from how the decoder attended to the audio while it wrote them.

The model writes no times. But some heads of its decoder look at the audio rows of the word that is written next. Their
weights make a attention of tokens by rows, through which dynamic time warping finds the best path that never goes back
(as Whisper's word timestamps do, https://github.com/openai/whisper/blob/main/whisper/timing.py). Rows are 80 ms long,
and pauses belong to nobody there; so the edges of words are then set to where the sound begins and ends.
"""

from __future__ import annotations

import dataclasses
import json
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pycrispasr.audio import SAMPLE_RATE, Samples
from pycrispasr.errors import ModelFormatError
from pycrispasr.results.segment import Token, Word
from pycrispasr.text import pieces

Kind = Literal["calibrated", "approximate"]

_Floats = npt.NDArray[np.floating[Any]]

_TAIL = 0.1  # share of a token's attention on either side that tells nothing about where it lies
_QUIET = 0.2  # of the way in decibels from the quietest of the audio to its loudest: below it nothing is said
_RANGE = 50.0  # decibels of that way at the most
_FLICKER = 2.5  # decibels by which noise alone varies
_SHORTEST = 6  # quiet frames that count
_LONGEST = 20  # quiet frames beyond which no pause is better than another
_REACH = 0.4  # seconds of sound beyond what a word's tokens attended to, that may be its own

_BEST = 8  # heads that are used of many
_SHARE = 0.75  # of the best one's score that a head needs
_AGAIN = "make it again with `pycrispasr align-heads`, or remove it"

_STRIDE = 8  # log-mel frames from audio row to audio row, but at the end of a chunk
_FRAME = 0.01  # seconds


class AlignmentHeads(NamedTuple):
    """The heads of a model's decoder that times are read from.

    Attributes:
        heads: Layer and number of each, both from 0.
        kind: "calibrated" where all of them are known to align; "approximate" where the best are chosen of each text.
    """

    heads: tuple[tuple[int, int], ...]
    kind: Kind


def side_file(model: str | os.PathLike[str]) -> Path:
    """Where the alignment heads of a model's file are kept: beside it."""
    return Path(f"{os.fspath(model)}.heads.json")


def heads_of(model: str | os.PathLike[str], n_layers: int, n_heads: int) -> AlignmentHeads:
    """The heads to read times from: those in the model's side file, or else all of the later half of its layers.

    Args:
        model: The model's file.
        n_layers: Of its decoder.
        n_heads: Of each of these.

    Raises:
        ModelFormatError: The side file is damaged, or of another model.
    """
    path = side_file(model)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        layers = range(n_layers // 2, n_layers)
        return AlignmentHeads(tuple((layer, head) for layer in layers for head in range(n_heads)), "approximate")
    except OSError as error:
        raise ModelFormatError(f"{str(path)!r} cannot be read ({error.strerror or error}): {_AGAIN}") from error
    try:
        found = tuple((operator.index(layer), operator.index(head)) for layer, head in json.loads(content)["heads"])
    except (ValueError, TypeError, KeyError) as error:
        raise ModelFormatError(f"{str(path)!r} has no list of heads ({error}): {_AGAIN}") from error
    if not found or not all(0 <= layer < n_layers and 0 <= head < n_heads for layer, head in found):
        raise ModelFormatError(
            f"{str(path)!r} is of another model: this one has {n_layers} layers of {n_heads} heads; {_AGAIN}"
        )
    return AlignmentHeads(found, "calibrated")


def row_edges(n_frames: int, chunk_frames: int) -> _Floats:
    """Where each audio row begins, and where the last one ends: seconds, `[rows + 1]`.

    Three convolutions of stride 2 put row i of a chunk at its frame 8 i; the row stands for what is nearer to it than
    to others. Rows start anew in each chunk.

    Args:
        n_frames: Log-mel frames of the audio.
        chunk_frames: Frames of a chunk; the last one may be shorter.
    """
    edges: list[_Floats] = []
    for start in range(0, n_frames, chunk_frames):
        length = min(chunk_frames, n_frames - start)
        centres = np.arange(0, length, _STRIDE, dtype=np.float64)
        edges.append(start + np.maximum(centres - _STRIDE / 2, 0))
    return np.append(np.concatenate(edges), n_frames) * _FRAME


def warp(gain: _Floats) -> npt.NDArray[np.int64]:
    """The best path through a attention of tokens by rows: the first and the last row of each token, `[tokens, 2]`.

    A path goes on by a row, by a token, or by both: tokens may share a row. It begins and ends at whichever rows it
    likes; those before and behind it belong to no token.

    Args:
        gain: What a token gains by having a row, `[tokens, rows]`, neither of them 0.
    """
    n, m = gain.shape
    # Diagonal by diagonal: a cell needs nothing but the two diagonals before its own. Place i of one is token i.
    slanted = np.full((n, n + m - 1), -np.inf)
    for i in range(n):
        slanted[i, i : i + m] = gain[i]
    slanted = np.ascontiguousarray(slanted.T)
    steps = np.zeros((n + m - 1, n), np.int8)  # that led to a cell: 0 none, 1 a row, 2 both, 3 a token
    last, earlier = np.full((2, n + 1), -np.inf)  # diagonals, from place 1 on
    ends = np.full(m, -np.inf)  # what paths gain that end at each row of the last token
    places = np.arange(n)
    for d in range(n + m - 1):
        options = np.stack([np.full(n, -np.inf), last[1:], earlier[:-1], last[:-1]])
        options[0, 0] = 0.0
        steps[d] = options.argmax(axis=0)
        last, earlier = np.append(-np.inf, options[steps[d], places] + slanted[d]), last
        if d >= n - 1:
            ends[d - n + 1] = last[n]
    spans = np.zeros((n, 2), np.int64)
    i, j = n - 1, int(ends.argmax())
    spans[i] = j
    while step := steps[i + j, i]:
        if step != 1:
            i -= 1
        if step != 3:
            j -= 1
        spans[i, 0] = j
        if step != 1:
            spans[i, 1] = j
    return spans


def score(attention: _Floats) -> float:
    """How well a head aligns, 0 to 1, from its attention `[steps, rows]`.

    A head that aligns looks at few rows at a time, at which it looks in no other step, and never goes back. So its
    score is the share of a step's attention on the five rows that have most of it, less the share that other steps have
    there; times the share of pairs of steps in order, less that of those out of order.
    """
    steps, rows = attention.shape
    near = np.pad(_shares(attention), ((0, 0), (3, 2))).cumsum(axis=1)
    near = near[:, 5:] - near[:, :-5]
    peaks = near.argmax(axis=1)
    own = near[np.arange(steps), peaks]
    others = near.sum(axis=0)[peaks] - own + min(1.0, 5 / rows)  # and one that looks everywhere
    order = np.sign(np.subtract.outer(peaks, peaks))[np.tril_indices(steps, -1)].sum()
    pairs = steps * (steps - 1) // 2
    return float(np.maximum(own - others / steps, 0).mean() * max((order + 1) / (pairs + 1), 0))


def best(scores: _Floats) -> npt.NDArray[np.int64]:
    """The indices of the heads with the best scores, the best first: at most eight, none much worse than the first."""
    order = np.argsort(-scores, kind="stable")[:_BEST]
    return np.asarray(order[scores[order] >= _SHARE * scores[order[0]]])


def _shares(attention: _Floats) -> _Floats:
    """What goes to audio at all, divided among its rows."""
    return np.asarray(attention / np.maximum(attention.sum(axis=-1, keepdims=True), 1e-9))


def token_spans(attention: _Floats, weights: _Floats, edges: _Floats) -> _Floats:
    """Where the tokens' attention begins, has its middle, and ends: seconds, `[steps, 3]`, in order of time.

    Args:
        attention: `[steps, heads, rows]`.
        weights: Of the heads, `[heads]`.
        edges: See `row_edges`.
    """
    attention = np.einsum("thr,h->tr", _shares(attention), weights / weights.sum())
    others = (attention.sum(axis=0) + 1 / attention.shape[1]) / (len(attention) + 1)  # and one that looks everywhere
    path = warp(attention - others)
    places = np.arange(len(path))
    spans = np.empty((len(path), 3))
    for place, (first, last) in enumerate(path):
        own = edges[first : last + 2].copy()
        for row, end in ((first, 0), (last, 1)):  # tokens that share a row have equal parts of it
            sharing = places[(path[:, 0] <= row) & (path[:, 1] >= row)]
            part = (place - sharing[0] + end) / len(sharing)
            own[-end] = edges[row] + part * (edges[row + 1] - edges[row])
        # Quantiles of the attention on these rows, as if it were even inside each.
        total = np.append(0.0, attention[place, first : last + 1].cumsum())
        if total[-1] <= 0:
            total = np.arange(len(total), dtype=float)
        spans[place] = np.interp(np.array([_TAIL, 0.5, 1 - _TAIL]) * total[-1], total, own)
    return spans


def quiet_runs(samples: Samples) -> _Floats:
    """Where nothing is said: beginnings and ends of at least 60 ms, seconds, `[runs, 2]`."""
    hop = round(_FRAME * SAMPLE_RATE)
    count = len(samples) // hop
    loud = []
    # Vowels stand out of the samples, the hiss of consonants out of their differences.
    for sound in (samples, np.diff(samples, prepend=samples[:1])):
        frames = sound[: count * hop].reshape(count, hop)
        level = 10 * np.log10(np.square(frames, dtype=np.float64).mean(axis=1) + 1e-12)
        top = np.percentile(level, 95)
        bottom = max(np.percentile(level, 5), top - _RANGE)
        if top - bottom > _FLICKER:  # or else nothing stands out
            loud.append(level >= bottom + max(_QUIET * (top - bottom), _FLICKER))
    quiet = np.zeros(count + 2, bool)
    quiet[1:-1] = ~np.any(loud, axis=0) if loud else False
    changes = np.flatnonzero(quiet[1:] != quiet[:-1]).reshape(-1, 2)
    return np.asarray(changes[changes[:, 1] - changes[:, 0] >= _SHORTEST] * _FRAME)


def word_spans(attended: _Floats, quiet: _Floats, seconds: float) -> _Floats:
    """Beginnings and ends of words, `[words, 2]`, from where their tokens attended to.

    Args:
        attended: Beginning, middle and end of each word's attention, in order of time, `[words, 3]`.
        quiet: See `quiet_runs`.
        seconds: Length of the audio.
    """
    n = len(attended)
    spans = np.empty((n, 2))
    for k in range(n + 1):
        # Between the middles of two words somewhere one ends and the other begins.
        left, right = attended[k - 1] if k else None, attended[k] if k < n else None
        begin, end = 0.0 if left is None else left[1], seconds if right is None else right[1]
        low, high = begin if left is None else left[2], end if right is None else right[0]
        centres = quiet.mean(axis=1)
        runs = quiet[(centres > begin) & (centres < end)].clip(begin, end)
        if len(runs):
            lengths = np.minimum(runs[:, 1] - runs[:, 0], _LONGEST * _FRAME)
            outside = np.maximum(0, np.maximum(low - runs[:, 1], runs[:, 0] - high))
            scores = lengths - 0.5 * outside
            pick = len(scores) - 1 - scores[::-1].argmax() if left is None else scores.argmax()
            stop, start = runs[pick]
        elif left is None:
            stop = start = 0.0
        elif right is None:
            stop = start = seconds
        else:
            stop = start = (low + high) / 2
        if left is not None:
            spans[k - 1, 1] = min(stop, left[2] + _REACH)
        if right is not None:
            spans[k, 0] = max(start, right[0] - _REACH)
    return spans


class Aligner:
    """Gives times to tokens and words.

    Args:
        heads: Layer and number of the heads whose attention it is given.
        kind: "calibrated": all of them count; "approximate": those that align best in a text.
        chunk_frames: Log-mel frames that make a chunk of audio rows.
    """

    def __init__(self, heads: Sequence[tuple[int, int]], kind: Kind, chunk_frames: int) -> None:
        self.heads = heads
        self.kind = kind
        self._chunk_frames = chunk_frames

    def align(
        self, tokens: Sequence[Token], text: str, attention: _Floats, samples: Samples, first: int = 0
    ) -> tuple[tuple[Token, ...], tuple[Word, ...]]:
        """The tokens of a segment with their times, and the words that they make.

        Args:
            tokens: All that were given.
            text: What they say.
            attention: Of the steps that chose them, and perhaps more, `[steps, heads, rows]`.
            samples: The segment, mono at 16 kHz, `[n]`.
            first: Where it begins, in samples from the beginning of the audio.
        """
        if not tokens:
            return (), ()
        attention = attention[: len(tokens)]
        weights = np.ones(attention.shape[1])
        if self.kind == "approximate":
            scores = np.array([score(attention[:, head]) for head in range(len(weights))]) + 1e-9
            chosen = best(scores)
            attention, weights = attention[:, chosen], scores[chosen]
        seconds = len(samples) / SAMPLE_RATE
        edges = row_edges(len(samples) * 100 // SAMPLE_RATE, self._chunk_frames)
        attended = token_spans(attention, weights, edges)
        found = _words(tokens, text, attended)
        spans = word_spans(np.array([word.attended for word in found]).reshape(-1, 3), quiet_runs(samples), seconds)

        # Of tokens. Between those of one word it is their attention that tells.
        starts: _Floats = np.full(len(tokens), np.inf)
        ends: _Floats = np.zeros(len(tokens))
        cuts = (attended[:-1, 2] + attended[1:, 0]) / 2
        for word, (start, end) in zip(found, spans, strict=True):
            starts[word.first] = min(starts[word.first], start)
            ends[word.last] = max(ends[word.last], end)
            inside = slice(word.first, word.last)
            ends[inside] = starts[word.first + 1 : word.last + 1] = cuts[inside].clip(start, end)
        starts = np.where(np.isinf(starts), np.append(0.0, ends[:-1]), starts)  # those without visible text
        times = np.maximum.accumulate(np.stack([starts, ends], axis=1).reshape(-1)).reshape(-1, 2)

        begin, stop = first / SAMPLE_RATE, (first + len(samples)) / SAMPLE_RATE

        def absolute(time: float) -> float:
            return min(max(round(float(begin + time), 3), begin), stop)

        timed = (
            dataclasses.replace(token, start=absolute(start), end=absolute(end))
            for token, (start, end) in zip(tokens, times, strict=True)
        )
        words = (
            Word(
                word.text,
                absolute(start),
                absolute(end),
                min(t.probability for t in tokens[word.first : word.last + 1]),
            )
            for word, (start, end) in zip(found, spans, strict=True)
        )
        return tuple(timed), tuple(words)


def token_ranges(tokens: Sequence[Token], text: str) -> list[tuple[str, int, int]]:
    """The words of a text, each with its first and its last token."""
    nowhere = np.zeros((len(tokens), 3))
    return [(word.text, word.first, word.last) for word in _words(tokens, text, nowhere)] if tokens else []


class _Word(NamedTuple):
    text: str
    first: int  # token
    last: int
    attended: tuple[float, float, float]  # beginning, middle and end, in seconds


def _words(tokens: Sequence[Token], text: str, attended: _Floats) -> list[_Word]:
    """The words of a text, each with its tokens and what these attended to, punctuation aside."""
    characters: list[tuple[int, int, float, float, float]] = []  # first and last token, beginning, middle and end
    begun: int | None = None  # the token in which a character begins that is not complete
    for place, token in enumerate(tokens):
        count = len("".join(token.text.split()))
        if not token.text:
            begun = place if begun is None else begun
            continue
        for k in range(count):  # a token's characters share its attention evenly
            low, middle, high = np.interp((k + np.array([0, 0.5, 1])) / count, [0, 0.5, 1], attended[place])
            if k == 0 and begun is not None:
                characters.append((begun, place, attended[begun, 0], middle, high))
            else:
                characters.append((place, place, low, middle, high))
        begun = None
    found = []
    for piece in pieces(text):
        word = piece.strip()
        members, characters = characters[: len(word)], characters[len(word) :]
        while len(members) < len(word):  # characters that no token made complete
            end = float(attended[-1, 2])
            members.append((len(tokens) - 1, len(tokens) - 1, end, end, end))
        spoken = [one for one, character in zip(members, word, strict=True) if character.isalnum()] or members
        n = len(spoken)
        middle = (spoken[(n - 1) // 2][3] + spoken[n // 2][3]) / 2
        found.append(_Word(word, members[0][0], members[-1][1], (spoken[0][2], middle, spoken[-1][4])))
    return found
