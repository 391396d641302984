"""What is measured on audio makes coarse rounding better where it matters."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import soundfile

from pycrispasr.errors import AudioError, ModelFormatError, ModelNotFoundError, UsageError
from pycrispasr.models import gguf_file, imatrix
from pycrispasr.models.quantize import quantize
from pycrispasr.models.random_model import generate
from pycrispasr.runtimes import native

from .sounds import make_tones


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("imatrix") / "small.gguf"
    generate(path, preset="small", type="f32")
    return path


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    paths = [tmp_path_factory.mktemp("sounds") / name for name in ("a.wav", "b.flac")]
    for seed, path in enumerate(paths):
        soundfile.write(path, make_tones(2, seed), 16000)
    return paths


@pytest.fixture(scope="module")
def measured(small: Path, sounds: list[Path]) -> Path:
    path = small.with_name("small.imatrix")
    imatrix.collect(small, sounds, path, threads=1, max_new_tokens=12)
    return path


def stored(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def test_every_matrix_but_convolutions_is_measured(small: Path, measured: Path) -> None:
    matrices = {
        name: int(tensor.shape[0])
        for name, tensor in stored(small).items()
        if len(tensor.shape) == 2 and not name.startswith("audio.")
    }
    weights = imatrix.read(measured)
    assert {name: len(columns) for name, columns in weights.items()} == matrices
    assert all(np.isfinite(columns).all() and (columns > 0).all() for columns in weights.values())


def test_the_numbers_are_mean_squares(small: Path, sounds: list[Path], tmp_path: Path) -> None:
    """The adapter's input are the encoder's rows."""
    session = native.NativeSession(native.NativeModel(small, kernels="ggml"), threads=1)
    samples, _ = soundfile.read(sounds[0], dtype="float32")
    rows = session.encode(session.log_mel(samples))
    imatrix.collect(small, sounds[:1], tmp_path / "m.gguf", threads=1, max_new_tokens=1)
    found = stored(tmp_path / "m.gguf")
    assert found["adapter.gate.weight.counts"].data[0] == len(rows)
    sums = (rows.astype(np.float64) ** 2).sum(0)
    assert np.allclose(found["adapter.gate.weight.in_sum2"].data, sums, rtol=1e-4)
    assert np.allclose(imatrix.read(tmp_path / "m.gguf")["adapter.up.weight"], sums / len(rows), rtol=1e-4)


def test_the_file_has_the_layout_of_llama_cpp(measured: Path) -> None:
    fields = gguf.GGUFReader(measured).fields
    assert fields["general.type"].contents() == "imatrix"
    assert fields["imatrix.datasets"].contents() == ["a.wav", "b.flac"]
    assert fields["imatrix.chunk_count"].contents() == 2
    tensors = stored(measured)
    assert {tensor.tensor_type.name for tensor in tensors.values()} == {"F32"}
    assert {name.rpartition(".")[2] for name in tensors} == {"in_sum2", "counts"}


def test_equal_audio_gives_equal_bytes(small: Path, sounds: list[Path], measured: Path, tmp_path: Path) -> None:
    imatrix.collect(small, sounds, tmp_path / "m.gguf", threads=2, max_new_tokens=12)
    assert (tmp_path / "m.gguf").read_bytes() == measured.read_bytes()


@pytest.mark.parametrize("kind", ["q6_k", "q5_k", "q4_k", "q3_k", "q2_k", "q4_0", "q5_1"])
def test_the_weighted_error_falls(small: Path, measured: Path, tmp_path: Path, kind: str) -> None:
    quantize(small, tmp_path / "plain.gguf", type=kind)
    quantize(small, tmp_path / "weighted.gguf", type=kind, importance=measured)
    original, weights = stored(small), imatrix.read(measured)
    errors = []
    for name in ("plain", "weighted"):
        total = 0.0
        for tensor in stored(tmp_path / f"{name}.gguf").values():
            if tensor.tensor_type.name == kind.upper():
                rounding = gguf.dequantize(tensor.data, tensor.tensor_type) - original[tensor.name].data
                columns = weights[tensor.name]
                total += float((rounding.astype(np.float64) ** 2 * columns).sum() / columns.sum())
        errors.append(total)
    assert errors[1] < 0.97 * errors[0]


def test_matrices_that_were_not_measured_are_told(
    small: Path, measured: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values, tensors = gguf_file.load(measured)
    kept = [
        gguf_file.Tensor(t.name, t.shape, t.type, lambda t=t: [gguf_file.rows(measured, t)])  # type: ignore[misc]
        for t in tensors
        if not t.name.startswith("llm.blk.0.ffn")
    ]
    gguf_file.write(tmp_path / "m.gguf", values, kept)
    with caplog.at_level(logging.WARNING, "pycrispasr"):
        quantize(small, tmp_path / "out.gguf", type="q4_k", importance=tmp_path / "m.gguf")
    assert "3 of 21 quantised matrices are not in the importance matrix" in caplog.text


def test_columns_that_were_never_used_do_no_harm(small: Path, measured: Path, tmp_path: Path) -> None:
    values, tensors = gguf_file.load(measured)

    def zeros(tensor: gguf_file.StoredTensor) -> gguf_file.Tensor:
        content = gguf_file.rows(measured, tensor).copy().view(np.float32)
        if tensor.name.endswith("in_sum2"):
            content[:, : 256 if "attn" in tensor.name else 40] = 0
        return gguf_file.Tensor(tensor.name, tensor.shape, tensor.type, lambda: [content])

    gguf_file.write(tmp_path / "m.gguf", values, [zeros(tensor) for tensor in tensors])
    for kind in ("q4_k", "q2_k", "q4_0"):
        quantize(small, tmp_path / "out.gguf", type=kind, importance=tmp_path / "m.gguf")
        gguf_file.check(tmp_path / "out.gguf")


def test_errors(small: Path, nano_path: Path, sounds: list[Path], measured: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    text = tmp_path / "text.wav"
    text.write_text("no sound")
    short = tmp_path / "short.wav"
    soundfile.write(short, np.zeros(10), 16000)
    for recordings, error, message in (
        ([], UsageError, "name at least one"),
        ([sounds[0], text], AudioError, r"text.wav"),
        ([sounds[0], tmp_path / "missing.wav"], AudioError, r"missing.wav"),
        ([short], AudioError, r"short.wav: 10 samples .* are too few"),
    ):
        with pytest.raises(error, match=message):
            imatrix.collect(nano_path, recordings, out / "m.gguf", threads=1, max_new_tokens=1)
    for path, error, message in (
        (small, ModelFormatError, r"small.gguf' is a GGUF file, but no importance matrix"),
        (text, ModelFormatError, r"text.wav' is no GGUF file"),
        (tmp_path / "missing", ModelNotFoundError, r"missing' cannot be read"),
    ):
        with pytest.raises(error, match=message):
            quantize(small, out / "out.gguf", type="q4_k", importance=path)
    with pytest.raises(ModelFormatError, match=r"512 columns for tensor 'enc.conv_out.weight', which has 128"):
        quantize(nano_path, out / "out.gguf", type="q8_0", importance=measured)
    assert not list(out.iterdir())


def test_the_command(small: Path, sounds: list[Path], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pycrispasr", "imatrix", small, *sounds, "-o", "m.gguf", "--threads", "1",
         "--max-new-tokens", "3"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == ""
    assert done.stderr.startswith("m.gguf: ")
    assert imatrix.read(tmp_path / "m.gguf")
