"""The model in PyTorch, from the original checkpoint with the `transformers` library's modules, to compare with.

The encoder and the decoder are loaded one after the other, so that the whole model is never in memory.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pycrispasr.errors import InstallationError, ModelFormatError, UsageError
from pycrispasr.lab.stages import Chain, Floats, place_rows, shown_layers
from pycrispasr.models import hub
from pycrispasr.models.checkpoint import read_safetensors
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
        ModelFormatError: The checkpoint lacks a tensor.
    """
    if checkpoint is None:
        raise UsageError("the reference is computed from the original checkpoint: name it, e.g. --checkpoint FOLDER")
    torch = _import_torch()
    folder = hub.checkpoint(checkpoint)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    arrays = read_safetensors(folder)  # mapped, not read
    with torch.inference_mode():
        mel, first, rows, adapted = _listen(torch, arrays, config, samples)
        model = native.NativeModel(path, "cpu")
        prompt = model.prompt(len(adapted))
        return _write(torch, arrays, config, model, prompt, mel, first, rows, adapted, max_new_tokens)


def _listen(
    torch: Any, arrays: Mapping[str, Any], config: dict[str, Any], samples: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """Log-mel `[frames, n_mels]`, and the rows of the encoder's first layer, the encoder and the adapter."""
    from transformers import WhisperFeatureExtractor
    from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeAudioEncoderConfig
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

    sizes = Qwen3OmniMoeAudioEncoderConfig(**config["audio_config"])
    sizes._attn_implementation = "sdpa"
    extractor = WhisperFeatureExtractor(feature_size=sizes.num_mel_bins)
    found = extractor(samples, sampling_rate=16000, padding="do_not_pad", truncation=False, return_tensors="np")
    mel = np.ascontiguousarray(found["input_features"][0].T, np.float32)[: len(samples) // 160]

    encoder = _load(torch, Qwen3OmniMoeAudioEncoder(sizes), arrays, "audio_model")
    hidden: list[Any] = []
    encoder.layers[0].register_forward_hook(
        lambda _module, _args, out: hidden.append(out[0] if isinstance(out, tuple) else out)
    )
    features = torch.from_numpy(np.ascontiguousarray(mel.T))
    out = encoder(features, feature_lens=torch.tensor([len(mel)])).last_hidden_state

    weights = {name: _tensor(torch, arrays, f"audio_adapter.{name}_proj.weight") for name in ("gate", "up", "down")}
    gated = torch.nn.functional.silu(out @ weights["gate"].T) * (out @ weights["up"].T)
    return mel, hidden[0].numpy(), out.numpy(), (gated @ weights["down"].T).numpy()


def _write(
    torch: Any, arrays: Mapping[str, Any], config: dict[str, Any], model: native.NativeModel, prompt: list[int],
    mel: Floats, first: Floats, rows: Floats, adapted: Floats, max_new_tokens: int,
) -> Chain:  # fmt: skip
    """The decoder's stages, behind those of the encoder."""
    from transformers import DynamicCache, Qwen3Config, Qwen3Model

    sizes = Qwen3Config(**config["language_config"])
    sizes._attn_implementation = "sdpa"
    decoder = _load(torch, Qwen3Model(sizes), arrays, "language_model")
    table = decoder.embed_tokens.weight
    head = table if sizes.tie_word_embeddings else _tensor(torch, arrays, "lm_head.weight")
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


def _load(torch: Any, module: Any, arrays: Mapping[str, Any], prefix: str) -> Any:
    """The module with the checkpoint's weights below a prefix, in float32."""
    state = {}
    for name in module.state_dict():
        if "positional_embedding" not in name:
            state[name] = _tensor(torch, arrays, f"{prefix}.{name}")
    module.load_state_dict(state, strict=False)
    return module.float().eval()


def _tensor(torch: Any, arrays: Mapping[str, Any], name: str) -> Any:
    """One tensor of the checkpoint in float32, under its name with or without "model." before it."""
    for stored in (f"model.{name}", name):
        if stored in arrays:
            values = arrays[stored]
            if values.dtype == np.uint16:  # the bits of bfloat16
                values = (values.astype(np.uint32) << 16).view(np.float32)
            return torch.from_numpy(np.array(values, dtype=np.float32))
    raise ModelFormatError(f"the checkpoint lacks the tensor 'model.{name}': fetch it again")


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
