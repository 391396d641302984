"""Which heads of a model's decoder look at the audio of the word that they write: found on recordings of known text.

`word_timestamps` reads its times from these heads. They are kept in a small JSON file beside the model's, which has its
name and `.heads.json` behind it.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pycrispasr import audio
from pycrispasr.atomic import replacing
from pycrispasr.decoding import word_times
from pycrispasr.decoding.recording import Task
from pycrispasr.errors import AudioError, PycrispasrError, UsageError
from pycrispasr.models import hub
from pycrispasr.models.families import FAMILIES
from pycrispasr.options import DecodingOptions
from pycrispasr.runtimes import native
from pycrispasr.segmentation import segmenter
from pycrispasr.text import pieces

_FEWEST = 10  # words that must have been understood


@dataclasses.dataclass(frozen=True, slots=True)
class Calibration:
    """What was found.

    Attributes:
        heads: Layer and number of the heads that align, the best first.
        scores: How well each of them does, 0 to 1: see `word_times.score`.
        words: Words of the texts that the model understood: only their tokens were looked at.
        of: Words of the texts.
    """

    heads: tuple[tuple[int, int], ...]
    scores: tuple[float, ...]
    words: int
    of: int


def calibrate(
    model: str | os.PathLike[str],
    recordings: Sequence[tuple[str | os.PathLike[str], str]],
    out: str | os.PathLike[str] | None = None,
    *,
    threads: int | None = None,
    max_new_tokens: int | None = None,
    progress: Callable[[float, float], object] | None = None,
) -> Calibration:
    """Transcribes recordings, finds the heads that align, and writes them into a file where `Model` finds them.

    Args:
        model: As `Model` takes it.
        recordings: Audio files, each with its text; some minutes of clear speech are enough.
        out: The file to write; by default `word_times.side_file` of the model.
        threads: Threads for computing; by default one for each physical core.
        max_new_tokens: As for `DecodingOptions`; nothing is tried again.
        progress: Called with the seconds of audio done and their total after each segment.

    Raises:
        AudioError: A recording cannot be read. Nothing is written.
        ModelNotFoundError: There is no such model.
        UsageError: The model understood too few of the words.
        PycrispasrError: What `Model` raises, or `out` cannot be written.
    """
    limit = DecodingOptions(max_new_tokens=max_new_tokens).token_limit
    path = hub.resolve(model)
    opened = native.NativeModel(path, "cpu")  # nothing else gives attention out
    info = opened.info()
    heads = [(layer, head) for layer in range(info["llm_layers"]) for head in range(info["llm_heads"])]
    session = native.NativeSession(opened, threads=threads or 0, max_new_tokens=limit, heads=heads)

    clips = [(audio.load(recording), recording, text) for recording, text in recordings]
    total, done = sum(len(samples) for samples, _, _ in clips) / audio.SAMPLE_RATE, 0.0
    sums, tokens, understood, of = np.zeros(len(heads)), 0, 0, 0
    for samples, recording, text in clips:
        said = [_plain(piece) for piece in pieces(text)]
        of += len(said)
        heard: list[tuple[str, int, range]] = []  # words, the segment of each, and its tokens
        attentions: list[np.ndarray] = []
        for start, end in segmenter.plan(samples):
            try:
                task, attention = _transcribe(opened, session, samples[start:end])
            except AudioError as error:
                raise AudioError(f"{os.fspath(recording)}: {error}") from None
            for word, first, last in word_times.token_ranges(task.tokens, task.text):
                heard.append((_plain(word), len(attentions), range(first, last + 1)))
            attentions.append(attention)
            done += (end - start) / audio.SAMPLE_RATE
            if progress:
                progress(done, total)
        matcher = difflib.SequenceMatcher(None, [word for word, _, _ in heard], said, autojunk=False)
        right = [heard[k] for block in matcher.get_matching_blocks() for k in range(block.a, block.a + block.size)]
        understood += len(right)
        for number, attention in enumerate(attentions):
            steps = [step for _, segment_of, steps in right if segment_of == number for step in steps]
            steps = sorted(set(steps))
            if len(steps) > 1:
                tokens += len(steps)
                sums += len(steps) * np.array([word_times.score(attention[steps, h]) for h in range(len(heads))])
    if understood < _FEWEST:
        raise UsageError(
            f"the model understood {understood} of {of} words, and {_FEWEST} are needed: name recordings that it "
            "transcribes well, each with its own text"
        )
    mean_scores = sums / max(tokens, 1)
    chosen = word_times.best(mean_scores)
    found = Calibration(
        tuple(heads[place] for place in chosen),
        tuple(round(float(mean_scores[place]), 3) for place in chosen),
        understood,
        of,
    )
    _write(word_times.side_file(path) if out is None else Path(out), found)
    return found


def _transcribe(
    model: native.NativeModel, session: native.NativeSession, samples: audio.Samples
) -> tuple[Task, np.ndarray]:
    """The text of a segment, and what all heads attended to while its tokens were written, `[tokens, heads, rows]`."""
    task = Task(0, samples)
    task.reader = FAMILIES[model.info()["architecture"]].reader(None)
    for token, probability in session.decode_clip(samples):
        task.add(token, probability, model.token_bytes(token))
    task.end_text()
    return task, session.attention()[task.steps]


def _plain(word: str) -> str:
    """A word for comparing: without punctuation, in small letters."""
    return "".join(character for character in word.casefold() if character.isalnum())


def _write(path: Path, found: Calibration) -> None:
    content = json.dumps(dataclasses.asdict(found)) + "\n"
    try:
        with replacing(path) as part:
            part.write_text(content, encoding="utf-8")
    except OSError as error:
        raise PycrispasrError(
            f"{str(path)!r} cannot be written ({error.strerror or error}): name another file with -o, and put it "
            "beside the model under this name later"
        ) from error
