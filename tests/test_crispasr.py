"""On one file and one sound the runtime gives what libcrispasr gives, stage by stage and token by token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pycrispasr.lab.stages import place_rows
from pycrispasr.models.random_model import generate
from pycrispasr.runtimes import crispasr, native
from pycrispasr.runtimes.crispasr_stages import Stages

from .sounds import cosines, make_tones

pytestmark = [
    pytest.mark.reference,
    pytest.mark.skipif(crispasr.find() is None, reason="libcrispasr: pip install crispasr==0.8.45"),
]

TOLERANCE = {"f16": 1e-4, "q8_0": 1e-3, "q4_k": 1e-3}  # of 1 - cosine, per row
# A family's preset, the type, and the seed of a model whose likeliest tokens lead clearly. Of Qwen3-ASR the library
# wants the head as a tensor of its own; its encoder attends to all of a clip, PyTorch's to windows of 8 s.
QWEN = {"llm.tied_embeddings": False, "enc.n_window_infer": 6000}
FILES = {
    "f16": ("moss_transcribe", "vocab", "f16", {}, 2),
    "q8_0": ("moss_transcribe", "vocab", "q8_0", {}, 3),
    "q4_k": ("moss_transcribe", "vocab", "q4_k", {}, 3),
    "qwen3-asr f16": ("qwen3_asr", "qwen3-asr-vocab", "f16", QWEN, 2),
    "qwen3-asr q8_0": ("qwen3_asr", "qwen3-asr-vocab", "q8_0", QWEN, 2),
    "qwen3-asr q4_k": ("qwen3_asr", "qwen3-asr-vocab", "q4_k", QWEN, 2),
    "moss-diarize f16": ("moss_diarize", "moss-diarize-vocab", "f16", {}, 2),
    "moss-diarize q8_0": ("moss_diarize", "moss-diarize-vocab", "q8_0", {}, 2),
    "moss-diarize q4_k": ("moss_diarize", "moss-diarize-vocab", "q4_k", {}, 3),
}


class Both:
    """One file in both runtimes."""

    def __init__(self, path: Path, family: str, tolerance: float) -> None:
        self.tolerance = tolerance
        # ggml's products, as the other side's: so even tokens between which random models hesitate are the same.
        self.native = native.NativeModel(path, kernels="ggml")
        self.crispasr = Stages(path, family, threads=1)

    def encode(self, samples: np.ndarray, mel: np.ndarray) -> np.ndarray:
        """The other side's rows."""
        return self.crispasr.encode(samples if self.crispasr.encodes_samples else mel)


@pytest.fixture(scope="module", params=FILES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    family, preset, kind, sizes, seed = FILES[request.param]
    path = tmp_path_factory.mktemp("crispasr") / "model.gguf"
    generate(path, preset=preset, type=kind, hyperparameters=sizes, seed=seed)
    # Logits of these random decoders differ a little more.
    pair = Both(path, family, TOLERANCE[kind] * (1 if family == "moss_transcribe" else 2))
    yield pair
    pair.crispasr.close()


@pytest.mark.parametrize("seconds", [1, 8.01, *(pytest.param(one, marks=pytest.mark.slow) for one in (2.5, 17, 30))])
def test_every_stage_agrees(both: Both, seconds: float) -> None:
    samples = make_tones(seconds, seed=int(10 * seconds))
    session = native.NativeSession(both.native, threads=1)

    mel = session.log_mel(samples)
    # Where the encoder pads by itself, its spectrogram is of the samples alone, and ends otherwise.
    shown = both.crispasr.log_mel(samples)[: -3 if both.crispasr.encodes_samples else None]
    assert cosines(mel[: len(shown)], shown).min() >= 0.9999

    rows = session.encode(mel)
    theirs = both.encode(samples, mel)
    joined = theirs.reshape(-1, rows.shape[1])
    rows = rows[: len(joined)]
    assert cosines(rows, joined).min() >= 1 - both.tolerance

    audio = session.adapt(rows)
    assert cosines(audio, both.crispasr.adapt(theirs)).min() >= 1 - both.tolerance

    ids = both.native.prompt(len(audio))
    told = both.crispasr.prompt(len(audio)) or ids
    assert [a if a >= 0 else b for a, b in zip(ids, told, strict=True)] == told
    text = [token for token in ids if token >= 0]
    embeddings = session.embed(text)
    assert cosines(embeddings, both.crispasr.embed(text, embeddings.shape[1])).min() >= 1 - 1e-6

    prompt = place_rows(ids, audio, session.embed)
    both.crispasr.start(len(ids) + 8)
    assert cosines(session.decode(prompt), both.crispasr.logits(prompt, 0)) >= 1 - both.tolerance
    step = session.embed([4711])
    one, other = session.decode(step, n_past=len(ids)), both.crispasr.logits(step, len(ids))
    assert cosines(one, other) >= 1 - both.tolerance


@pytest.mark.parametrize("seconds", [9, *(pytest.param(one, marks=pytest.mark.slow) for one in (1, 20))])
def test_the_tokens_are_the_same(both: Both, seconds: float) -> None:
    samples = make_tones(seconds, seed=int(10 * seconds) + 1)
    session = native.NativeSession(both.native, threads=1, max_new_tokens=24)
    session.feed(samples)
    session.end()
    ours = [token for token, _ in iter(session.next, None)]
    n_rows = session.result()["n_rows"]
    theirs = both.crispasr.transcribe(samples, max_new_tokens=24)
    if theirs is None:
        audio = both.crispasr.adapt(both.encode(samples, both.crispasr.log_mel(samples)))
        prompt = place_rows(both.native.prompt(len(audio)), audio, session.embed)
        theirs = both.crispasr.greedy(prompt, both.native.info()["eos_token"], max_new_tokens=24)
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    if same is None:
        assert ours == theirs
        return
    # Where a random model holds two tokens for equally likely, another processor's rounding may decide otherwise.
    audio = session.adapt(session.encode(session.log_mel(samples)))[:n_rows]
    ids = both.native.prompt(len(audio))
    prompt = place_rows(ids, audio, session.embed)
    written = [session.embed(ours[:same])] if same else []
    logits = session.decode(np.concatenate([prompt, *written]))
    assert abs(logits[ours[same]] - logits[theirs[same]]) <= 20 * both.tolerance * np.ptp(logits)
