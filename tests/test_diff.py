"""`diff` finds where two ways to compute a model differ, and only there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pycrispasr.errors import UnsupportedModelError
from pycrispasr.lab import diff
from pycrispasr.models.random_model import generate
from pycrispasr.runtimes import crispasr

from . import checkpoint_moss_diarize, checkpoint_qwen3_asr, gguf_edit
from .checkpoint import write_checkpoint
from .sounds import make_tones

needs_crispasr = pytest.mark.skipif(crispasr.find() is None, reason="libcrispasr: pip install crispasr==0.8.45")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("diff") / "model.gguf"
    generate(path, preset="small", type="f32", seed=1)
    return path


def names_that_differ(stages: list[diff.Stage]) -> list[str]:
    return [stage.name for stage in stages if not stage.passed]


def test_a_file_does_not_differ_from_itself(model: Path) -> None:
    stages = diff.diff(model, make_tones(2), model, sample_rate=16000, tolerance=0)
    assert names_that_differ(stages) == []
    assert [stage.name for stage in stages] == [
        "log-mel",
        "encoder layer 0",
        "encoder",
        "adapter",
        "prompt embeddings",
        "decoder layer 0",
        "decoder layer 1",
        "decoder layer 2",
        "first logits",
        "first token",
        "whole transcript",
    ]


@pytest.mark.parametrize(
    ("tensor", "stages"),
    [
        ("enc.proj2.weight", ["encoder"]),
        ("adapter.down.weight", ["adapter"]),
        ("llm.blk.1.ffn.down.weight", ["decoder layer 1", "decoder layer 2", "first logits"]),
    ],
)
def test_a_changed_matrix_shows_in_its_own_stage(model: Path, tmp_path: Path, tensor: str, stages: list[str]) -> None:
    changed = np.random.default_rng(0).permutation(gguf_edit.tensor(model, tensor))
    other = gguf_edit.rewrite(model, tmp_path / "other.gguf", tensors={tensor: changed})
    found = names_that_differ(diff.diff(other, make_tones(2), model, sample_rate=16000))
    assert [name for name in found if name not in ("first token", "whole transcript")] == stages


@needs_crispasr
@pytest.mark.parametrize(
    ("preset", "kind", "seed"),
    [
        ("vocab", "q4_k", 4),
        pytest.param("vocab", "f16", 2, marks=pytest.mark.slow),
        pytest.param("vocab", "q8_0", 1, marks=pytest.mark.slow),
        pytest.param("moss-diarize-vocab", "f16", 3, marks=pytest.mark.slow),
    ],
)
def test_every_stage_passes_against_crispasr(preset: str, kind: str, seed: int, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    generate(path, preset=preset, type=kind, seed=seed)
    stages = diff.diff(path, make_tones(9, seed=91), "crispasr", precision="f32", sample_rate=16000, max_new_tokens=20)
    assert len(stages) >= 6
    assert names_that_differ(stages) == []


@needs_crispasr
def test_a_small_vocabulary_is_an_error_and_not_the_end_of_the_process(model: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"1024 tokens.*151671"):
        diff.diff(model, make_tones(2), "crispasr", sample_rate=16000)


@pytest.mark.reference
@pytest.mark.parametrize("form", ["moss", "thinker", "hf", "diarize-makers", "diarize-hf"])
def test_every_stage_passes_against_pytorch(form: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    path, checkpoint = tmp_path / "model.gguf", tmp_path / "checkpoint"
    preset = {"moss": "small", "thinker": "qwen3-asr-small", "hf": "qwen3-asr-small"}.get(form, "moss-diarize-small")
    generate(path, preset=preset, type="bf16", all_matrices=True, seed=3)
    if form == "moss":
        write_checkpoint(checkpoint, path)
    elif form.startswith("diarize-"):
        checkpoint_moss_diarize.write_checkpoint(checkpoint, path, "hf" if form.endswith("hf") else "makers")
    else:
        checkpoint_qwen3_asr.write_checkpoint(checkpoint, path, "hf" if form == "hf" else "thinker")
    stages = diff.diff(path, make_tones(9), "reference", checkpoint=checkpoint, sample_rate=16000, max_new_tokens=1)
    assert len(stages) == 11
    assert names_that_differ(stages) == []


def test_the_command_fails_where_a_stage_differs_and_draws_it(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "tones.wav", make_tones(2), 16000)
    other = tmp_path / "other.gguf"
    generate(other, preset="small", type="f32", seed=2)
    command = [sys.executable, "-m", "pycrispasr", "diff", str(model), str(tmp_path / "tones.wav"), "--against"]
    same = subprocess.run([*command, str(model)], capture_output=True, text=True, check=False)
    assert (same.returncode, same.stderr) == (0, "")
    assert "DIFFERS" not in same.stdout
    picture = tmp_path / "rows.png"
    command += [str(other), "--plot", str(picture)]
    differs = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (differs.returncode, differs.stderr) == (1, "")
    assert "DIFFERS" in differs.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
