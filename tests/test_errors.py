"""Whatever is wrong with a model file gets an exception of its own, whose message names it."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

import pycrispasr
from pycrispasr import Model, ModelFormatError, ModelNotFoundError, PycrispasrError, UnsupportedModelError

from .gguf_edit import PREFIX, patch, rewrite, tensor
from .sounds import make_tones

Edit = Callable[[Path, Path], Path]


def with_value(key: str, value: object, prefix: str = PREFIX) -> Edit:
    return lambda source, out: rewrite(source, out, values={prefix + key: value})


def with_tensor(name: str, change: Callable[[np.ndarray], np.ndarray | None]) -> Edit:
    return lambda source, out: rewrite(source, out, tensors={name: change(tensor(source, name))})


def with_bytes(behind: bytes, skip: int, layout: str, value: int) -> Edit:
    return lambda source, out: patch(source, out, behind, skip, struct.pack(layout, value))


def without_token(token: str) -> Edit:
    """The token of this text gets another one."""

    def edit(source: Path, out: Path) -> Path:
        tokens = GGUFReader(source).fields["tokenizer.ggml.tokens"].contents()
        changed = [f"<other {i}>" if text == token else text for i, text in enumerate(tokens)]
        return rewrite(source, out, values={"tokenizer.ggml.tokens": changed})

    return edit


FORMAT, UNSUPPORTED = ModelFormatError, UnsupportedModelError

# What is done to a sound file -> the exception, and words that its message has.
DAMAGES: dict[str, tuple[Edit, type[PycrispasrError], list[str]]] = {
    "another architecture": (
        with_value("general.architecture", "llama", ""),
        UNSUPPORTED,
        ["llama", "moss_transcribe"],
    ),
    "missing size": (with_value("llm.hidden_size", None), FORMAT, ["llm.hidden_size"]),
    "size of another type": (with_value("llm.hidden_size", "64"), FORMAT, ["llm.hidden_size"]),
    "size of zero": (with_value("enc.d_model", 0), FORMAT, ["enc.d_model", "0"]),
    "size that is too large": (with_value("enc.d_model", 2**31), FORMAT, ["enc.d_model", "2147483648"]),
    "largest size": (with_value("llm.vocab_size", 2**32 - 1), FORMAT, ["llm.vocab_size", "4294967295"]),
    "too many layers": (with_value("llm.num_layers", 2**30), FORMAT, ["llm.num_layers", "1073741824"]),
    "one more layer than there is": (with_value("llm.num_layers", 3), FORMAT, ["llm.blk.2."]),
    "more heads than fit": (with_value("enc.encoder_attention_heads", 7), FORMAT, ["64", "7"]),
    "groups that do not divide": (with_value("llm.num_kv_heads", 3), FORMAT, ["3"]),
    "window that is no multiple": (with_value("enc.n_window_infer", 150), FORMAT, ["n_window_infer", "150"]),
    "no number for epsilon": (with_value("llm.rms_norm_eps", float("nan")), FORMAT, ["llm.rms_norm_eps", "nan"]),
    "negative rope base": (with_value("llm.rope_theta", -1.0), FORMAT, ["llm.rope_theta", "-1"]),
    "token outside the vocabulary": (with_value("eos_token_id", 384), FORMAT, ["eos_token_id", "384"]),
    "missing token id": (with_value("audio_start_id", None), FORMAT, ["audio_start_id"]),
    "missing vocabulary": (with_value("tokenizer.ggml.tokens", None, ""), FORMAT, ["tokenizer.ggml.tokens"]),
    "empty vocabulary": (with_value("tokenizer.ggml.tokens", [""], ""), FORMAT, ["merge 0", "vocabulary"]),
    "missing merges": (with_value("tokenizer.ggml.merges", None, ""), FORMAT, ["tokenizer.ggml.merges"]),
    "merge without a space": (with_value("tokenizer.ggml.merges", ["ab"], ""), FORMAT, ["merge"]),
    "another tokenizer": (
        with_value("tokenizer.ggml.model", "llama", ""),
        UNSUPPORTED,
        ["tokenizer", "llama"],
    ),
    "vocabulary without user": (without_token("user"), FORMAT, ["u ser", "vocabulary"]),
    "vocabulary without assistant": (without_token("assistant"), FORMAT, ["a ssistant", "vocabulary"]),
    "missing tensor": (with_tensor("enc.conv_out.weight", lambda _: None), FORMAT, ["enc.conv_out.weight"]),
    "missing bias": (with_tensor("enc.blk.1.attn.k.bias", lambda _: None), FORMAT, ["enc.blk.1.attn.k.bias"]),
    "missing embedding": (with_tensor("llm.embed.weight", lambda _: None), FORMAT, ["llm.embed.weight"]),
    "tensor cut short": (
        with_tensor("llm.blk.0.attn.q.weight", lambda array: array[:-1]),
        FORMAT,
        ["llm.blk.0.attn.q.weight", "[127, 64]", "[128, 64]"],
    ),
    "transposed tensor": (
        with_tensor("adapter.gate.weight", lambda array: np.ascontiguousarray(array.T)),
        FORMAT,
        ["adapter.gate.weight", "[96, 128]", "[128, 96]"],
    ),
    "bias of two dimensions": (
        with_tensor("enc.proj1.bias", lambda array: np.stack([array, array])),
        FORMAT,
        ["enc.proj1.bias", "[2, 64]", "[64]"],
    ),
    "norm in F16": (
        with_tensor("llm.final_norm.weight", lambda array: array.astype(np.float16)),
        UNSUPPORTED,
        ["llm.final_norm.weight", "f16"],
    ),
    "matrix of integers": (
        with_tensor("enc.proj1.weight", lambda array: array.astype(np.int32)),
        UNSUPPORTED,
        ["enc.proj1.weight", "i32"],
    ),
    "another magic": (lambda s, o: patch(s, o, b"", 0, b"GGML"), FORMAT, ["GGUF"]),
    "another version": (with_bytes(b"GGUF", 0, "<I", 99), FORMAT, ["99"]),
    "10^18 tensors": (with_bytes(b"GGUF", 4, "<Q", 10**18), FORMAT, []),
    "-1 tensors": (with_bytes(b"GGUF", 4, "<q", -1), FORMAT, []),
    "10^18 keys": (with_bytes(b"GGUF", 12, "<Q", 10**18), FORMAT, []),
    "key of 10^18 bytes": (with_bytes(b"GGUF", 20, "<Q", 10**18), FORMAT, []),
    "key of 2^64 - 1 bytes": (with_bytes(b"GGUF", 20, "<q", -1), FORMAT, []),
    "text of 10^18 bytes": (with_bytes(b"general.architecture", 4, "<Q", 10**18), FORMAT, []),
    "value of unknown type": (with_bytes(b"general.architecture", 0, "<I", 77), FORMAT, []),
    "list of 10^18": (with_bytes(b"tokenizer.ggml.tokens", 8, "<Q", 10**18), FORMAT, []),
    "list of unknown type": (with_bytes(b"tokenizer.ggml.tokens", 4, "<I", 77), FORMAT, []),
    "list of lists": (with_bytes(b"tokenizer.ggml.tokens", 4, "<I", 9), FORMAT, []),
    "tensor of 5 dimensions": (with_bytes(b"enc.conv_out.weight", 0, "<I", 5), FORMAT, []),
    "tensor of 0 columns": (with_bytes(b"enc.conv_out.weight", 4, "<Q", 0), FORMAT, ["enc.conv_out.weight", "is 0"]),
    "tensor of 0 rows": (with_bytes(b"enc.conv_out.weight", 12, "<Q", 0), FORMAT, ["dimension 1", "is 0"]),
    "convolution of 0 rows": (with_bytes(b"enc.conv1.weight", 12, "<Q", 0), FORMAT, ["dimension 1", "is 0"]),
    "convolution of 0 channels": (with_bytes(b"enc.conv1.weight", 28, "<Q", 0), FORMAT, ["dimension 3", "is 0"]),
    "vector of 0 values": (with_bytes(b"enc.conv1.bias", 4, "<Q", 0), FORMAT, ["enc.conv1.bias", "is 0"]),
    "sizes whose product is none": (with_bytes(b"enc.conv_out.weight", 12, "<Q", 1 << 62), FORMAT, [str(1 << 62)]),
    "more tokens than there are": (
        with_value("tokenizer.ggml.tokens", [f"t{i}" for i in range(1000)], ""),
        FORMAT,
        ["1000 tokens", "384"],
    ),
    "tensor of 10^18 columns": (with_bytes(b"enc.conv_out.weight", 4, "<Q", 10**18), FORMAT, []),
    "tensor of -1 columns": (with_bytes(b"enc.conv_out.weight", 4, "<q", -1), FORMAT, []),
    "tensor of unknown type": (with_bytes(b"enc.conv_out.weight", 20, "<I", 12345), FORMAT, []),
    "tensor outside the file": (with_bytes(b"enc.conv_out.weight", 24, "<Q", 10**18), FORMAT, []),
    "tensor at an odd place": (with_bytes(b"enc.conv_out.weight", 24, "<Q", 33), FORMAT, []),
    "tensor name twice": (with_bytes(b"enc.blk.0.attn.", 0, "<c", b"k"), FORMAT, ["enc.blk.0.attn.k"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_by_what_is_wrong(damage: str, nano_path: Path, tmp_path: Path) -> None:
    edit, exception, words = DAMAGES[damage]
    path = edit(nano_path, tmp_path / "damaged.gguf")
    with pytest.raises(exception) as caught:
        Model(path)
    message = str(caught.value)
    assert type(caught.value) is exception
    assert "damaged.gguf" in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_weights_whose_results_are_not_finite_are_an_error_of_the_file(
    value: float, nano_path: Path, tmp_path: Path
) -> None:
    name = "llm.blk.0.ffn.down.weight"
    damaged = np.full_like(tensor(nano_path, name), value)
    path = rewrite(nano_path, tmp_path / "damaged.gguf", tensors={name: damaged})
    with Model(path) as model, pytest.raises(ModelFormatError, match="not finite"):
        model.transcribe(make_tones(1), sample_rate=16000, max_new_tokens=2)


def test_a_rewritten_sound_file_still_loads(nano_path: Path, tmp_path: Path) -> None:
    """So that the tests above fail for the damage, not for the copy."""
    with Model(rewrite(nano_path, tmp_path / "copy.gguf"), threads=1) as copy, Model(nano_path, threads=1) as original:
        sound = make_tones(1)
        wanted = original.transcribe(sound, sample_rate=16000, max_new_tokens=10)
        assert copy.transcribe(sound, sample_rate=16000, max_new_tokens=10).segments == wanted.segments


def test_a_file_cut_anywhere_is_refused(nano_path: Path, tmp_path: Path) -> None:
    content = nano_path.read_bytes()
    header = int(GGUFReader(nano_path).data_offset)
    path = tmp_path / "cut.gguf"
    ends = [*range(64), *range(64, header, header // 150), *range(header, len(content), len(content) // 30)]
    for end in [*ends, len(content) - 1]:
        path.write_bytes(content[:end])
        with pytest.raises(ModelFormatError, match=r"cut\.gguf"):
            Model(path)


def test_random_damage_never_ends_the_process(nano_path: Path, tmp_path: Path) -> None:
    content = nano_path.read_bytes()
    header = int(GGUFReader(nano_path).data_offset)
    rng = np.random.default_rng(1)
    path = tmp_path / "random.gguf"
    sound = make_tones(0.3)
    for _ in range(300):
        damaged = bytearray(content)
        for place in rng.integers(0, header, rng.integers(1, 4)):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            with Model(path, threads=1) as model:
                model.transcribe(sound, sample_rate=16000, max_new_tokens=2)
        except PycrispasrError:
            pass


def test_weights_that_are_not_finite_are_told(nano_path: Path, tmp_path: Path) -> None:
    nans = with_tensor("llm.final_norm.weight", lambda array: np.full_like(array, np.nan))(
        nano_path, tmp_path / "nan.gguf"
    )
    with Model(nans, threads=1) as model, pytest.raises(PycrispasrError, match="finite"):
        model.transcribe(make_tones(0.5), sample_rate=16000)


@pytest.mark.parametrize(
    ("name", "content", "exception"),
    [
        ("empty.gguf", b"", ModelFormatError),
        ("text.gguf", b"this is a text\n" * 50, ModelFormatError),
        ("page.gguf", b"<!doctype html><html><body>404</body></html>", ModelFormatError),
        ("zeros.gguf", bytes(10000), ModelFormatError),
    ],
)
def test_what_is_no_model_is_refused(name: str, content: bytes, exception: type[Exception], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(exception, match=name):
        Model(path)


def test_missing_files_and_directories_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"missing\.gguf"):
        Model(tmp_path / "missing.gguf")
    with pytest.raises(FileNotFoundError):
        Model("missing.gguf")
    with pytest.raises(ModelNotFoundError, match="directory"):
        Model(tmp_path)
    with pytest.raises(ModelNotFoundError, match="q8_0, f16"):
        Model("moss-transcribe:q3")
    with pytest.raises(ModelNotFoundError, match="whisper"):
        Model("whisper")
    with pytest.raises(ModelNotFoundError):
        Model("x" * 5000)
    with pytest.raises(TypeError):
        Model(5)  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_refused(nano_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "secret.gguf"
    path.write_bytes(nano_path.read_bytes())
    path.chmod(0)
    with pytest.raises(ModelNotFoundError, match=r"secret\.gguf"):
        Model(path)


def test_an_unknown_device_is_refused_by_name(nano_path: Path) -> None:
    with pytest.raises(pycrispasr.DeviceError, match=r"quantum:7.*cpu"):
        Model(nano_path, device="quantum:7")


def test_every_error_is_a_pycrispasr_error_and_what_python_users_expect() -> None:
    exceptions = [
        value for name in pycrispasr.__all__ if name.endswith("Error") for value in [getattr(pycrispasr, name)]
    ]
    assert len(exceptions) == 16
    assert all(issubclass(exception, PycrispasrError) for exception in exceptions)
    assert issubclass(pycrispasr.ModelNotFoundError, FileNotFoundError)
    assert issubclass(pycrispasr.AudioError, ValueError)
    assert issubclass(pycrispasr.OutOfMemoryError, MemoryError)
    assert issubclass(pycrispasr.OutputError, OSError)
