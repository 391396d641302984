"""The model in PyTorch, from the original checkpoint with the `transformers` library's modules, to compare with.

The encoder and the decoder are loaded one after the other, so that the whole model is never in memory.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pycrispasr.errors import InstallationError, UsageError
from pycrispasr.lab.stages import Chain, Floats, place_rows, shown_layers
from pycrispasr.models import hub
from pycrispasr.models.checkpoint import find_family, find_tensor, read_json, read_safetensors
from pycrispasr.models.families import Family
from pycrispasr.models.families.parts import GATED_MLP, NORMED_MLP, WHISPER_TOWER
from pycrispasr.runtimes import native


def chain(path: Path, checkpoint: str | os.PathLike[str] | None, samples: Floats, *, max_new_tokens: int) -> Chain:
    """The stages of the PyTorch model.

    Args:
        path: The GGUF file that was made of the checkpoint: its vocabulary gives the prompt.
        checkpoint: A folder or a Hugging Face repository.
        samples: Mono at 16 kHz, `[n]`.
        max_new_tokens: Where the tokens are cut.

    Raises:
        UsageError: No checkpoint is named.
        InstallationError: PyTorch or transformers is missing.
        ModelFormatError: The checkpoint is of no family, or lacks a tensor.
    """
    if checkpoint is None:
        raise UsageError("the reference is computed from the original checkpoint: name it, e.g. --checkpoint FOLDER")
    torch = _import_torch()
    folder = hub.checkpoint(checkpoint)
    config = read_json(folder / "config.json")
    family = find_family(config)
    source = _Checkpoint(torch, folder, family, family.sections(config) or {})
    with torch.inference_mode():
        mel, first, rows, adapted = _listen(source, samples)
        model = native.NativeModel(path, "cpu")
        prompt = model.prompt(len(adapted))
        return _write(source, model, prompt, mel, first, rows, adapted, max_new_tokens)


class _Checkpoint:
    """Tensors of a checkpoint by the names that families share, in float32."""

    def __init__(self, torch: Any, folder: Path, family: Family, sections: Mapping[str, Mapping[str, Any]]) -> None:
        self.torch, self.family, self.sections = torch, family, sections
        self._folder = folder
        self._arrays = read_safetensors(folder)  # mapped, not read

    def tensor(self, name: str) -> Any:
        """A tensor."""
        values = find_tensor(self._arrays, self.family.in_checkpoint(name), None, self._folder)
        if values.dtype == np.uint16:  # the bits of bfloat16
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return self.torch.from_numpy(np.array(values, dtype=np.float32))

    def load(self, module: Any, part: str) -> Any:
        """The module of the encoder ("enc") or the decoder ("llm") with its weights."""
        names = {self.family.module_name(name): name for name in self._names(part)}
        state = {inside: self.tensor(names[inside]) for inside in module.state_dict() if inside in names}
        module.load_state_dict(state, strict=False)
        return module.float().eval()

    def _names(self, part: str) -> list[str]:
        layers = {"enc": "enc.encoder_layers", "llm": "llm.num_layers"}[part]
        section, key, default = self.family.config[layers]
        count = int(self.sections[section].get(key, default))
        found = []
        for tensor in self.family.part(part).tensors:
            if tensor != "llm.lm_head":
                numbered = [tensor.replace("*", str(i)) for i in range(count)] if "*" in tensor else [tensor]
                found += [f"{name}.{kind}" for name in numbered for kind in ("weight", "bias")]
        return found


def _listen(source: _Checkpoint, samples: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Log-mel `[frames, n_mels]`, and the rows of the encoder's first layer, the encoder and the adapter."""
    listen = _listen_with_whisper if source.family.part("enc") is WHISPER_TOWER else _listen_with_omni
    mel, first, rows = listen(source, samples)
    return mel, first, rows.numpy(), _projector(source)(source, rows).numpy()


def _listen_with_omni(source: _Checkpoint, samples: Floats) -> tuple[Floats, Floats, Any]:
    from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeAudioEncoderConfig
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

    torch = source.torch
    sizes = Qwen3OmniMoeAudioEncoderConfig(**_only(source.sections["audio_config"]))
    sizes._attn_implementation = "sdpa"
    mel = _log_mel(samples, sizes.num_mel_bins)
    encoder = source.load(Qwen3OmniMoeAudioEncoder(sizes), "enc")
    hidden = _outputs(encoder.layers[0])
    features = torch.from_numpy(np.ascontiguousarray(mel.T))
    out = encoder(features, feature_lens=torch.tensor([len(mel)])).last_hidden_state
    return mel, hidden[0].numpy(), out


def _listen_with_whisper(source: _Checkpoint, samples: Floats) -> tuple[Floats, Floats, Any]:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    section = source.sections["audio_config"]
    keys = [place.key for place in source.family.config.values() if place.section == "audio_config"]
    sizes = WhisperConfig(**{key: section[key] for key in keys if key in section})
    sizes._attn_implementation = "sdpa"
    window = 2 * sizes.max_source_positions * 160
    padded = np.pad(samples, (0, -len(samples) % window)).reshape(-1, window)
    mel = np.stack([_log_mel(one, sizes.num_mel_bins) for one in padded])
    encoder = source.load(WhisperEncoder(sizes), "enc")
    hidden = _outputs(encoder.layers[0])
    out = encoder(source.torch.from_numpy(mel.transpose(0, 2, 1).copy())).last_hidden_state
    _, key, default = source.family.config["enc.merge"]
    merge = int(source.sections[""].get(key, default))
    rows = out.reshape(-1, merge * sizes.d_model)[: -(-len(samples) // (320 * merge))]
    return mel.reshape(-1, sizes.num_mel_bins), hidden[0].reshape(-1, sizes.d_model).numpy(), rows


def _log_mel(samples: Floats, n_mels: int) -> Floats:
    from transformers import WhisperFeatureExtractor

    extractor: Any = WhisperFeatureExtractor
    found = extractor(feature_size=n_mels)(
        samples, sampling_rate=16000, padding="do_not_pad", truncation=False, return_tensors="np"
    )
    return np.ascontiguousarray(found["input_features"][0].T, np.float32)[: len(samples) // 160]


def _outputs(layer: Any) -> list[Any]:
    """Takes what a layer gives from now on."""
    found: list[Any] = []
    layer.register_forward_hook(lambda _module, _args, out: found.append(out[0] if isinstance(out, tuple) else out))
    return found


def _gated_mlp(source: _Checkpoint, rows: Any) -> Any:
    gate, up, down = (source.tensor(f"adapter.{name}.weight") for name in ("gate", "up", "down"))
    return (source.torch.nn.functional.silu(rows @ gate.T) * (rows @ up.T)) @ down.T


def _normed_mlp(source: _Checkpoint, rows: Any) -> Any:
    functions = source.torch.nn.functional
    (fc1, fc1_bias), (fc2, fc2_bias), (scale, shift) = (
        [source.tensor(f"adapter.{name}.{kind}") for kind in ("weight", "bias")] for name in ("fc1", "fc2", "norm")
    )
    section, key, default = source.family.config["llm.rms_norm_eps"]
    inner = functions.linear(functions.silu(functions.linear(rows, fc1, fc1_bias)), fc2, fc2_bias)
    return functions.layer_norm(inner, scale.shape, scale, shift, float(source.sections[section].get(key, default)))


def _projector(source: _Checkpoint) -> Callable[[_Checkpoint, Any], Any]:
    for part, project in ((GATED_MLP, _gated_mlp), (NORMED_MLP, _normed_mlp)):
        if part in source.family.parts:
            return project
    return lambda _, rows: rows


def _write(
    source: _Checkpoint, model: native.NativeModel, prompt: list[int], mel: Floats, first: Floats, rows: Floats,
    adapted: Floats, max_new_tokens: int,
) -> Chain:  # fmt: skip
    """The decoder's stages, behind those of the encoder."""
    from transformers import DynamicCache, Qwen3Config, Qwen3Model

    torch = source.torch
    section = source.sections[source.family.decoder_section]
    sizes = Qwen3Config(**_only(section))
    sizes._attn_implementation = "sdpa"
    decoder = source.load(Qwen3Model(sizes), "llm")
    table = decoder.embed_tokens.weight
    head = table if section.get("tie_word_embeddings", True) else source.tensor("llm.lm_head.weight")
    embeddings = place_rows(prompt, adapted, lambda ids: table[torch.tensor(ids)].numpy())

    after: list[Any] = []
    hooks = [
        layer.register_forward_hook(lambda _module, _args, out: after.append(out[0] if isinstance(out, tuple) else out))
        for layer in decoder.layers
    ]
    # transformers 5 calls it "cache", earlier ones "past_key_values".
    name = "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"
    kept = {name: DynamicCache(config=sizes), "use_cache": True}
    state = decoder(inputs_embeds=torch.from_numpy(embeddings)[None], **kept)
    for hook in hooks:
        hook.remove()
    logits = state.last_hidden_state[0, -1:] @ head.T
    layers = {n: after[n - 1].reshape(-1, sizes.hidden_size)[-1:].numpy() for n in shown_layers(len(after))}

    tokens: list[int] = []
    step, end = logits, model.info()["eos_token"]
    while len(tokens) < max_new_tokens and (token := int(step.argmax())) != end:
        tokens.append(token)
        state = decoder(inputs_embeds=table[token][None, None], **kept)
        step = state.last_hidden_state[0, -1:] @ head.T
    return Chain(mel, first, rows, adapted, prompt, embeddings, layers, logits.numpy(), tokens)


def _only(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section of `config.json` for a module of this family or another: without what names the module."""
    return {key: value for key, value in section.items() if key != "model_type"}


def _import_torch() -> Any:
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise InstallationError(
            f"the reference needs PyTorch and transformers ({error}): "
            "install them with `pip install 'pycrispasr[reference]'`"
        ) from error
    return torch
