"""benchmarks/inflate.py: the bundled model in larger shapes computes the same, and hears the same words."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pycrispasr import Model, audio
from pycrispasr.lab.stages import place_rows
from pycrispasr.models import gguf_file, hub
from pycrispasr.runtimes import native

ROOT = Path(__file__).parent.parent
RECORDINGS = sorted(path for path in (ROOT / "samples").glob("*") if path.suffix in (".wav", ".mp3"))
# Twice the bundled model's, but for sizes that become no whole number of times as long.
DOUBLED = {
    "enc.encoder_layers": 4,
    "enc.d_model": 512,
    "enc.encoder_attention_heads": 8,
    "enc.encoder_ffn_dim": 1280,
    "enc.downsample_hidden_size": 48,
    "enc.output_dim": 512,
    "adapter.hidden_size": 1280,
    "llm.hidden_size": 512,
    "llm.num_layers": 10,
    "llm.num_heads": 8,
    "llm.num_kv_heads": 4,
    "llm.head_dim": 128,
    "llm.intermediate_size": 1280,
    "llm.vocab_size": 2000,
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("inflate", ROOT / "benchmarks" / "inflate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stages(path: Path, samples: np.ndarray) -> tuple[list[np.ndarray], list[tuple[int, float]]]:
    """Rows behind the encoder and the adapter, and the first logits; and the tokens with their probabilities."""
    model = native.NativeModel(path)
    session = native.NativeSession(model, threads=1)
    encoded = session.encode(session.log_mel(samples))
    adapted = session.adapt(encoded)
    logits = session.decode(place_rows(model.prompt(len(adapted)), adapted, session.embed))
    session.reset()
    session.feed(samples)
    session.end()
    return [encoded, adapted, logits[None]], list(iter(session.next, None))


@pytest.mark.parametrize("kind", ["f16", "q4_k"])
def test_every_stage_of_the_larger_model_gives_copies_of_the_bundled_ones(
    script: ModuleType, tmp_path: Path, kind: str
) -> None:
    script.inflate(tmp_path / "large.gguf", sizes=DOUBLED, type=kind)
    samples = audio.load(ROOT / "samples" / "digits.wav")
    small, said = stages(hub.resolve("tiny"), samples)
    large, heard = stages(tmp_path / "large.gguf", samples)
    large[2], unknown = np.split(large[2], [small[2].shape[1]], axis=1)
    for wanted, rows in zip(small, large, strict=True):
        wanted = wanted.repeat(rows.shape[1] // wanted.shape[1], axis=1)
        assert np.linalg.norm(rows - wanted) < 0.03 * np.linalg.norm(wanted)
    assert unknown.max() < large[2].max() - 20
    assert [token for token, _ in heard] == [token for token, _ in said]
    assert [likely for _, likely in heard] == pytest.approx([likely for _, likely in said], abs=0.02)


def test_layers_that_the_bundled_model_lacks_add_exactly_nothing(script: ModuleType, tmp_path: Path) -> None:
    script.inflate(tmp_path / "large.gguf", sizes=DOUBLED, type="q4_k")
    session = native.NativeSession(native.NativeModel(tmp_path / "large.gguf"), threads=1)
    mel = session.log_mel(audio.load(ROOT / "samples" / "hello.wav"))
    np.testing.assert_array_equal(session.encode(mel, 4), session.encode(mel, 2))
    assert not np.array_equal(session.encode(mel, 2), session.encode(mel, 1))
    rows = session.adapt(session.encode(mel))
    # The last layer that is computed sees the last row alone, in other sums: compare behind layers that are extra.
    np.testing.assert_array_equal(session.decode(rows, n_layers=10), session.decode(rows, n_layers=6))
    np.testing.assert_allclose(session.decode(rows, n_layers=6), session.decode(rows, n_layers=5), atol=1e-4)
    assert not np.allclose(session.decode(rows, n_layers=5), session.decode(rows, n_layers=4), atol=1e-2)


@pytest.mark.full_size
def test_the_published_shapes_hear_every_sample(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "tiny-2b.gguf"
    script.inflate(path)
    values, _ = gguf_file.load(path)
    for key, value in script.PUBLISHED.items():
        assert values[f"moss_transcribe.{key}"].content == pytest.approx(value), key
    with Model(path) as model:
        for recording in RECORDINGS:
            assert model.transcribe(recording).text == recording.with_suffix(".txt").read_text("utf-8").strip()
