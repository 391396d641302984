"""A checkpoint in Hugging Face's layout becomes a GGUF file of the published layout."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from huggingface_hub import constants

from pycrispasr.errors import (
    InstallationError,
    ModelFormatError,
    ModelNotFoundError,
    PycrispasrError,
    UnsupportedModelError,
    UsageError,
)
from pycrispasr.models import checkpoint as checkpoint_files
from pycrispasr.models import hub
from pycrispasr.models.convert import convert

from . import hub_server
from .reference import gguf_model
from .reference import model as ref

MELS, D, ENC_FFN, CHANNELS, OUT = 80, 64, 96, 4, 32
ADAPTER, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB = 64, 96, 4, 2, 16, 128, 300
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio_bos|>", "<|audio_eos|>"]
WORDS = ["er", "ser", "user"]
MERGES = ["e r", "s er", "u ser"]

CONFIG = {
    "architectures": ["MossTranscribeForConditionalGeneration"],
    "model_type": "moss_transcribe",
    "adapter_hidden_size": ADAPTER,
    "audio_config": {
        "num_mel_bins": MELS,
        "d_model": D,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": ENC_FFN,
        "downsample_hidden_size": CHANNELS,
        "n_window_infer": 400,
        "output_dim": OUT,
        "activation_function": "gelu",
    },
    "language_config": {
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": FFN,
        "vocab_size": VOCAB,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
    "bos_token_id": 259,
    "eos_token_id": 261,
    "start_token_id": 260,
    "audio_start_id": 262,
    "audio_end_id": 263,
}

METADATA = {  # key -> type, value; the whole of it, but for the tokenizer's
    "general.architecture": ("STRING", "moss_transcribe"),
    "general.name": ("STRING", "checkpoint"),
    "moss_transcribe.enc.num_mel_bins": ("UINT32", MELS),
    "moss_transcribe.enc.encoder_layers": ("UINT32", 2),
    "moss_transcribe.enc.d_model": ("UINT32", D),
    "moss_transcribe.enc.encoder_attention_heads": ("UINT32", 4),
    "moss_transcribe.enc.encoder_ffn_dim": ("UINT32", ENC_FFN),
    "moss_transcribe.enc.downsample_hidden_size": ("UINT32", CHANNELS),
    "moss_transcribe.enc.max_source_positions": ("UINT32", 1500),  # the library's default, not in config.json
    "moss_transcribe.enc.n_window": ("UINT32", 50),  # likewise
    "moss_transcribe.enc.n_window_infer": ("UINT32", 400),
    "moss_transcribe.enc.output_dim": ("UINT32", OUT),
    "moss_transcribe.enc.layer_norm_eps": ("FLOAT32", np.float32(1e-5)),
    "moss_transcribe.adapter.hidden_size": ("UINT32", ADAPTER),
    "moss_transcribe.llm.hidden_size": ("UINT32", HIDDEN),
    "moss_transcribe.llm.num_layers": ("UINT32", 2),
    "moss_transcribe.llm.num_heads": ("UINT32", HEADS),
    "moss_transcribe.llm.num_kv_heads": ("UINT32", KV_HEADS),
    "moss_transcribe.llm.head_dim": ("UINT32", HEAD_DIM),
    "moss_transcribe.llm.intermediate_size": ("UINT32", FFN),
    "moss_transcribe.llm.vocab_size": ("UINT32", VOCAB),
    "moss_transcribe.llm.max_position_embeddings": ("UINT32", 2048),
    "moss_transcribe.llm.rope_theta": ("FLOAT32", 1e6),
    "moss_transcribe.llm.rms_norm_eps": ("FLOAT32", np.float32(1e-6)),
    "moss_transcribe.llm.tied_embeddings": ("BOOL", True),
    "moss_transcribe.bos_token_id": ("UINT32", 259),
    "moss_transcribe.eos_token_id": ("UINT32", 261),
    "moss_transcribe.start_token_id": ("UINT32", 260),
    "moss_transcribe.audio_start_id": ("UINT32", 262),
    "moss_transcribe.audio_end_id": ("UINT32", 263),
    "tokenizer.ggml.model": ("STRING", "gpt2"),
    "tokenizer.ggml.tokens": (
        "ARRAY",
        [*ref.byte_alphabet(), *WORDS, *SPECIALS, *(f"[PAD{i}]" for i in range(264, VOCAB))],
    ),
    "tokenizer.ggml.merges": ("ARRAY", MERGES),
}


def tensor_table() -> list[tuple[str, str, tuple[int, ...]]]:
    """(name in the checkpoint, name in the file, shape) of every tensor."""
    table = []

    def add(source: str, name: str, *shape: int, bias: bool = False) -> None:
        table.append((f"model.{source}.weight", f"{name}.weight", shape))
        if bias:
            table.append((f"model.{source}.bias", f"{name}.bias", shape[:1]))

    add("audio_model.conv2d1", "enc.conv1", CHANNELS, 1, 3, 3, bias=True)
    add("audio_model.conv2d2", "enc.conv2", CHANNELS, CHANNELS, 3, 3, bias=True)
    add("audio_model.conv2d3", "enc.conv3", CHANNELS, CHANNELS, 3, 3, bias=True)
    add("audio_model.conv_out", "enc.conv_out", D, CHANNELS * 10)
    for i in range(2):
        layer, block = f"audio_model.layers.{i}", f"enc.blk.{i}"
        add(f"{layer}.self_attn_layer_norm", f"{block}.attn_norm", D, bias=True)
        add(f"{layer}.self_attn.q_proj", f"{block}.attn.q", D, D, bias=True)
        add(f"{layer}.self_attn.k_proj", f"{block}.attn.k", D, D, bias=True)
        add(f"{layer}.self_attn.v_proj", f"{block}.attn.v", D, D, bias=True)
        add(f"{layer}.self_attn.out_proj", f"{block}.attn.o", D, D, bias=True)
        add(f"{layer}.final_layer_norm", f"{block}.ffn_norm", D, bias=True)
        add(f"{layer}.fc1", f"{block}.ffn.fc1", ENC_FFN, D, bias=True)
        add(f"{layer}.fc2", f"{block}.ffn.fc2", D, ENC_FFN, bias=True)
    add("audio_model.ln_post", "enc.ln_post", D, bias=True)
    add("audio_model.proj1", "enc.proj1", D, D, bias=True)
    add("audio_model.proj2", "enc.proj2", OUT, D, bias=True)
    add("audio_adapter.gate_proj", "adapter.gate", ADAPTER, OUT)
    add("audio_adapter.up_proj", "adapter.up", ADAPTER, OUT)
    add("audio_adapter.down_proj", "adapter.down", HIDDEN, ADAPTER)
    add("language_model.embed_tokens", "llm.embed", VOCAB, HIDDEN)
    for i in range(2):
        layer, block = f"language_model.layers.{i}", f"llm.blk.{i}"
        add(f"{layer}.input_layernorm", f"{block}.attn_norm", HIDDEN)
        add(f"{layer}.self_attn.q_proj", f"{block}.attn.q", HEADS * HEAD_DIM, HIDDEN)
        add(f"{layer}.self_attn.k_proj", f"{block}.attn.k", KV_HEADS * HEAD_DIM, HIDDEN)
        add(f"{layer}.self_attn.v_proj", f"{block}.attn.v", KV_HEADS * HEAD_DIM, HIDDEN)
        add(f"{layer}.self_attn.o_proj", f"{block}.attn.o", HIDDEN, HEADS * HEAD_DIM)
        add(f"{layer}.self_attn.q_norm", f"{block}.attn.q_norm", HEAD_DIM)
        add(f"{layer}.self_attn.k_norm", f"{block}.attn.k_norm", HEAD_DIM)
        add(f"{layer}.post_attention_layernorm", f"{block}.ffn_norm", HIDDEN)
        add(f"{layer}.mlp.gate_proj", f"{block}.ffn.gate", FFN, HIDDEN)
        add(f"{layer}.mlp.up_proj", f"{block}.ffn.up", FFN, HIDDEN)
        add(f"{layer}.mlp.down_proj", f"{block}.ffn.down", HIDDEN, FFN)
    add("language_model.norm", "llm.final_norm", HIDDEN)
    return table


def random_weights() -> dict[str, np.ndarray]:
    """By name in the checkpoint; float32 that bfloat16 can hold."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape, np.float32) for name, _, shape in tensor_table()}
    return {name: (values.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, values in weights.items()}


def write_safetensors(path: Path, weights: dict[str, np.ndarray], dtype: str = "BF16") -> None:
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, values in weights.items():
        if dtype == "BF16":
            raw = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
        else:
            raw = values.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": values.shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document), encoding="utf-8")


def write_tokenizer(folder: Path, extra: int = 0) -> None:
    vocab = {token: i for i, token in enumerate([*ref.byte_alphabet(), *WORDS])}
    added = [{"id": len(vocab) + i, "content": token, "special": True} for i, token in enumerate(SPECIALS)]
    added += [{"id": len(vocab) + len(SPECIALS) + i, "content": f"<extra{i}>"} for i in range(extra)]
    model = {"type": "BPE", "vocab": vocab, "merges": [merge.split(" ") for merge in MERGES]}
    write_json(folder / "tokenizer.json", {"version": "1.0", "added_tokens": added, "model": model})


def set_config(folder: Path, section: str | None = None, **changes: object) -> None:
    """Change keys of config.json; None takes one away."""
    config = json.loads((folder / "config.json").read_text())
    part = config[section] if section else config
    for key, value in changes.items():
        part.pop(key, None)
        if value is not None:
            part[key] = value
    write_json(folder / "config.json", config)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Two shards in BF16."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    weights = random_weights()
    names = sorted(weights)
    shards = {
        "model-00001-of-00002.safetensors": names[: len(names) // 2],
        "model-00002-of-00002.safetensors": names[len(names) // 2 :],
    }
    for shard, members in shards.items():
        write_safetensors(folder / shard, {name: weights[name] for name in members})
    index = {"metadata": {}, "weight_map": {name: shard for shard, members in shards.items() for name in members}}
    write_json(folder / "model.safetensors.index.json", index)
    write_json(folder / "config.json", CONFIG)
    write_tokenizer(folder)
    return folder


def expected_type(name: str, shape: tuple[int, ...], kind: str, all_matrices: bool) -> str:
    if len(shape) == 1 or name.startswith("audio."):
        return "F32"
    if kind != "q8_0":
        return kind.upper()
    in_decoder = name.startswith("llm.blk.") or (all_matrices and len(shape) == 2)
    return "Q8_0" if in_decoder and shape[-1] % 32 == 0 else "F16"


@pytest.mark.parametrize(
    ("kind", "all_matrices"), [("f32", False), ("f16", False), ("bf16", False), ("q8_0", False), ("q8_0", True)]
)
def test_every_tensor(checkpoint: Path, tmp_path: Path, kind: str, all_matrices: bool) -> None:
    convert(checkpoint, tmp_path / "out.gguf", type=kind, all_matrices=all_matrices)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    table = [("", "audio.mel_filters", (201, MELS)), ("", "audio.mel_window", (400,)), *tensor_table()]
    assert {name: tuple(tensor.shape[::-1]) for name, tensor in tensors.items()} == {n: shape for _, n, shape in table}

    weights = random_weights()
    for source, name, shape in table:
        tensor = tensors[name]
        assert tensor.tensor_type.name == expected_type(name, shape, kind, all_matrices), name
        if not source:
            continue
        values = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        if tensor.tensor_type.name in ("F32", "BF16"):
            assert np.array_equal(values, weights[source]), name
        elif tensor.tensor_type.name == "F16":
            assert np.array_equal(values, weights[source].astype(np.float16)), name
        else:  # a step is a 127th of the largest of 32 values; it is itself rounded to half precision
            blocks = weights[source].reshape(-1, 32)
            limit = np.abs(blocks).max(axis=1, keepdims=True) / 127 * 0.57
            assert (np.abs(values.reshape(-1, 32) - blocks) <= limit).all(), name

    assert np.allclose(tensors["audio.mel_filters"].data, ref.slaney_filters(MELS), rtol=1e-6, atol=1e-9)
    assert np.allclose(tensors["audio.mel_window"].data, np.hanning(401)[:400], atol=1e-7)


def test_all_the_metadata(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "out.gguf")
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    found = {
        key: (field.types[0].name, field.contents()) for key, field in fields.items() if not key.startswith("GGUF.")
    }
    assert found == METADATA


def test_the_reference_runs_it(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "out.gguf", type="f32", name="a name")
    model = gguf_model.load(tmp_path / "out.gguf")
    assert ref.greedy(model, np.sin(np.arange(16000)), 4)


def test_equal_bytes(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        convert(checkpoint, tmp_path / name, type="q8_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("layout", ["vocab.json", "merges as text", "one file", "no prefix"])
def test_other_layouts_give_the_same_file(checkpoint: Path, tmp_path: Path, layout: str) -> None:
    convert(checkpoint, tmp_path / "a.gguf")
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    if layout == "vocab.json":
        (checkpoint / "tokenizer.json").unlink()
        write_json(checkpoint / "vocab.json", tokenizer["model"]["vocab"])
        (checkpoint / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]), encoding="utf-8")
        added = {str(token["id"]): {"content": token["content"]} for token in tokenizer["added_tokens"]}
        write_json(checkpoint / "tokenizer_config.json", {"added_tokens_decoder": added})
    elif layout == "merges as text":
        tokenizer["model"]["merges"] = MERGES
        write_json(checkpoint / "tokenizer.json", tokenizer)
    else:
        for path in checkpoint.glob("model*"):
            path.unlink()
        prefix = "model." if layout == "no prefix" else ""
        weights = {name.removeprefix(prefix): values for name, values in random_weights().items()}
        write_safetensors(checkpoint / "model.safetensors", weights)
    convert(checkpoint, tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_files_of_the_safetensors_package(checkpoint: Path, tmp_path: Path, dtype: type) -> None:
    safetensors_numpy = pytest.importorskip("safetensors.numpy")
    for path in checkpoint.glob("model*"):
        path.unlink()
    weights = {name: values.astype(dtype) for name, values in random_weights().items()}
    safetensors_numpy.save_file(weights, checkpoint / "model.safetensors")
    convert(checkpoint, tmp_path / "out.gguf", type="f32")
    model = gguf_model.load(tmp_path / "out.gguf", np.float32)
    for source, name, _ in tensor_table():
        assert np.array_equal(model[name], weights[source].astype(np.float32)), name


def test_special_ids_of_the_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "a.gguf")
    set_config(
        checkpoint, bos_token_id=None, eos_token_id=[1, 2], start_token_id=None, audio_start_id=None, audio_end_id=None
    )
    convert(checkpoint, tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("name", ["lm_head.weight", "model.language_model.lm_head.weight"])
def test_untied_head(checkpoint: Path, tmp_path: Path, name: str) -> None:
    head = np.full((VOCAB, HIDDEN), 0.5, np.float32)
    write_safetensors(checkpoint / "head.safetensors", {name: head})
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    index["weight_map"][name] = "head.safetensors"
    write_json(checkpoint / "model.safetensors.index.json", index)
    set_config(checkpoint, "language_config", tie_word_embeddings=False)
    convert(checkpoint, tmp_path / "out.gguf")
    model = gguf_model.load(tmp_path / "out.gguf")
    assert not model.hparams.llm_tied_embeddings
    assert np.array_equal(model["llm.lm_head.weight"], head)


def test_progress(checkpoint: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    convert(checkpoint, tmp_path / "out.gguf", progress=lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1] < (tmp_path / "out.gguf").stat().st_size


def _remove(name: str):
    return lambda folder: (folder / name).unlink()


def _without_tensor(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    weights = random_weights()
    del weights["model.audio_model.ln_post.bias"]
    write_safetensors(folder / "model.safetensors", weights)


def _too_large_for_f16(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    weights = random_weights()
    weights["model.audio_model.proj1.weight"][3, 4] = 131072
    write_safetensors(folder / "model.safetensors", weights)


def _in_float64(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    write_safetensors(folder / "model.safetensors", random_weights(), "F64")


def _cut_short(folder: Path) -> None:
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])


def _cut_header(folder: Path) -> None:
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])


def _twice_the_same_shard(folder: Path) -> None:
    first, second = (folder / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    second.write_bytes(first.read_bytes())


def _not_finite(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    weights = random_weights()
    weights["model.language_model.norm.weight"][3] = np.nan
    write_safetensors(folder / "model.safetensors", weights)


def _no_weights(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()


def _front_end(**values: int):
    return lambda folder: (folder / "preprocessor_config.json").write_text(json.dumps(values))


def _config(section: str | None = None, **changes: object):
    return lambda folder: set_config(folder, section, **changes)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (_remove("config.json"), ModelNotFoundError, r"no config.json in .*checkpoint"),
        (lambda folder: (folder / "config.json").write_text("{"), ModelFormatError, r"config.json' is not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), ModelFormatError, r"holds no JSON object"),
        (
            _config(model_type="whisper", audio_config=None),
            ModelFormatError,
            r"no 'audio_config' \(its model_type is 'whisper'\): only checkpoints of MOSS-Transcribe",
        ),
        (_front_end(n_fft=640), UnsupportedModelError, r"preprocessor_config.json has n_fft = 640: .* with 400"),
        (_front_end(feature_size=7), UnsupportedModelError, r"feature_size = 7: .* with"),
        (_front_end(hop_length=200), UnsupportedModelError, r"hop_length = 200: .* with 160"),
        (_front_end(sampling_rate=8000), UnsupportedModelError, r"sampling_rate = 8000: .* with 16000"),
        (
            lambda folder: (folder / "processor_config.json").write_text('{"feature_extractor": {"n_fft": 640}}'),
            UnsupportedModelError,
            r"processor_config.json has n_fft = 640",
        ),
        (_config(audio_config=None), ModelFormatError, r"no 'audio_config'"),
        (_config("language_config", hidden_size=None), ModelFormatError, r"language_config.hidden_size = None"),
        (_config("language_config", hidden_size="96"), ModelFormatError, r"hidden_size = '96', not a number"),
        (_config("audio_config", activation_function="relu"), UnsupportedModelError, r"'relu': only 'gelu'"),
        (
            _config("language_config", rope_parameters={"rope_type": "yarn"}),
            UnsupportedModelError,
            r"'yarn'.*'default'",
        ),
        (_config("language_config", rope_parameters=None), ModelFormatError, r"rope_theta = None"),
        (_config("audio_config", d_model=128), ModelFormatError, r"shape \(64, 40\).*asks for \(128, 40\)"),
        (_config("audio_config", encoder_layers=3), ModelFormatError, r"no tensor 'model.audio_model.layers.2.*'"),
        (_config("language_config", tie_word_embeddings=False), ModelFormatError, r"no tensor '.*lm_head.weight'"),
        (_remove("model-00002-of-00002.safetensors"), ModelNotFoundError, r"lacks 'model-00002-of-00002.safetensors'"),
        (_no_weights, ModelNotFoundError, r"no \*.safetensors file"),
        (_without_tensor, ModelFormatError, r"no tensor 'model.audio_model.ln_post.bias'"),
        (_in_float64, ModelFormatError, r"no tensor 'model.audio_model.conv2d1.weight' in F32, F16 or BF16"),
        (_cut_short, ModelFormatError, r"model-00002-of-00002.safetensors' is no complete safetensors file"),
        (_cut_header, ModelFormatError, r"model-00001-of-00002.safetensors' is no complete safetensors file"),
        (_twice_the_same_shard, ModelFormatError, r"no tensor 'model.*the checkpoint is incomplete"),
        (_not_finite, ModelFormatError, r"'llm.final_norm.weight' has a value that is not a finite number"),
        (_too_large_for_f16, ModelFormatError, r"'enc.proj1.weight' has the value 131072.*bf16 or f32"),
        (_remove("tokenizer.json"), ModelFormatError, r"no tokenizer: download its tokenizer.json"),
        (lambda folder: write_tokenizer(folder, 100), ModelFormatError, r"364 tokens but .* vocab_size 300"),
    ],
)
def test_errors(checkpoint: Path, tmp_path: Path, damage, error: type[Exception], message: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    damage(checkpoint)
    with pytest.raises(error, match=message):
        convert(checkpoint, out / "model.gguf")
    assert not list(out.iterdir())


@pytest.mark.parametrize("model_type", ["moss_transcribe_preview", "moss", None])
def test_the_structure_decides_and_not_the_name(
    checkpoint: Path, tmp_path: Path, model_type: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    convert(checkpoint, tmp_path / "a.gguf", name="a")
    assert caplog.messages == []
    set_config(checkpoint, None, model_type=model_type)
    (checkpoint / "preprocessor_config.json").write_text('{"n_fft": 400, "hop_length": 160, "dither": 0.0}')
    convert(checkpoint, tmp_path / "b.gguf", name="a")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    (told,) = caplog.messages
    assert f"model_type {model_type!r}, not 'moss_transcribe': it is converted" in told


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no folder .*nowhere"):
        convert(tmp_path / "nowhere", tmp_path / "out.gguf")


def test_a_repository_is_fetched_from_the_hub(
    checkpoint: Path, tmp_path: Path, server: hub_server.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in [*checkpoint.iterdir()]:
        server.add("org/some-model", path.name, path.read_bytes(), (hub_server.NEW,))
    server.add("org/some-model", "pytorch_model.bin", b"not needed", (hub_server.NEW,))
    convert(checkpoint, tmp_path / "b.gguf", name="some-model")
    for out in (tmp_path / "a.gguf", tmp_path / "again.gguf"):
        convert("org/some-model", out)
        assert out.read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert len(server.contents()) == len([*checkpoint.iterdir()])
    folder = hub.checkpoint("org/some-model")
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in checkpoint.iterdir())
    with pytest.raises(ModelNotFoundError, match=r"org/missing does not exist, or is private"):
        convert("org/missing", tmp_path / "c.gguf")
    assert not (tmp_path / "c.gguf").exists()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.checkpoint("org/some-model") == folder


def test_unknown_type(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'q9_9': choose one of f32, f16, bf16, q8_0"):
        convert(checkpoint, tmp_path / "out.gguf", type="q9_9")


def test_no_place_to_write(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(PycrispasrError, match=r"nowhere.*cannot be written.*writable folder"):
        convert(checkpoint, tmp_path / "nowhere" / "out.gguf")


def test_without_gguf(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InstallationError, match=r"pycrispasr\[convert\]"):
        convert(checkpoint, tmp_path / "out.gguf")


def test_a_stop_half_way_leaves_the_old_file(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.gguf").write_bytes(b"old")

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, out / "model.gguf", progress=stop)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {"model.gguf": b"old"}


@pytest.mark.parametrize(
    "document",
    [
        '{"model": {"vocab": ["a"], "merges": []}}',
        '{"model": {"vocab": {"a": 0}, "merges": [1]}}',
        '{"model": {"vocab": {"a": 999999999999}, "merges": []}}',
        '{"model": {"vocab": {"a": -1}, "merges": []}}',
        '{"model": {"vocab": {"a": 1e999}, "merges": []}}',
        '{"model": {"vocab": {"a": 0}, "merges": []}, "added_tokens": [{"content": "b"}]}',
        '{"model": []}',
        "[" * 100_000,
    ],
)
def test_a_tokenizer_that_is_none_is_an_error_of_its_file(document: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(document, encoding="utf-8")
    with pytest.raises(ModelFormatError, match="token"):
        checkpoint_files.read_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""])
def test_an_index_names_no_file_elsewhere(name: str, tmp_path: Path) -> None:
    index = {"weight_map": {"a": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ModelFormatError, match="no file beside it"):
        checkpoint_files.read_safetensors(tmp_path)
