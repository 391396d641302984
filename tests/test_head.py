"""The screened head chooses the token of the exact one, with its probability."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pycrispasr import audio
from pycrispasr.lab.stages import place_rows
from pycrispasr.models import hub, quantize, random_model
from pycrispasr.runtimes import native

from .sounds import make_tones

SAMPLES = Path(__file__).parent.parent / "samples"


def exact(logits: np.ndarray) -> tuple[int, float]:
    """The most probable token of logits, and its probability."""
    shifted = logits.astype(np.float64) - logits.max()
    return int(logits.argmax()), float(1 / np.exp(shifted).sum())


def check(model: native.NativeModel, samples: np.ndarray, count: int) -> list[float]:
    """Decodes, and compares each token with the head's logits at the same state, multiplied in full. Probabilities."""
    chosen, full = (native.NativeSession(model, threads=1, max_new_tokens=count) for _ in range(2))
    chosen.feed(samples)
    chosen.end()
    tokens = list(iter(chosen.next, None))
    rows = full.adapt(full.encode(full.log_mel(samples)))
    logits = full.decode(place_rows(model.prompt(len(rows)), rows, full.embed))
    for token, probability in tokens:
        wanted, likely = exact(logits)
        assert token == wanted
        assert probability == pytest.approx(likely, rel=1e-2, abs=1e-3)
        logits = full.decode_step([0], [token])[0]
    return [probability for _, probability in tokens]


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_random_states_have_the_exact_head_s_token(kind: str, seed: int, tmp_path: Path) -> None:
    random_model.generate(tmp_path / "model.gguf", preset="vocab", type=kind, seed=seed)
    model = native.NativeModel(tmp_path / "model.gguf")
    for seconds in (1, 3, 9):
        probabilities = check(model, make_tones(seconds, seed=10 * seed + seconds), 25)
        assert len(set(probabilities)) > 5


def test_real_states_have_the_exact_head_s_token(tmp_path: Path) -> None:
    """The bundled model with its head in F16, which is screened."""
    requantised = tmp_path / "tiny_f16.gguf"
    quantize.quantize(hub.resolve("tiny"), requantised, type="f16", requantize=True)
    model = native.NativeModel(requantised)
    heard = [check(model, audio.load(path), 60) for path in sorted(SAMPLES.glob("*.wav"))]
    assert max(map(len, heard)) >= 10
