"""MOSS-Transcribe: Qwen3-Omni's audio tower, a gated MLP, Qwen3. Its text stands as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pycrispasr.models.families.family import Family
from pycrispasr.models.families.parts import (
    GATED_MLP,
    OMNI_TOWER,
    QWEN3,
    ConfigKey,
    assumed,
    omni_tower_config,
    qwen3_config,
)

_CONFIG = {
    **omni_tower_config("audio_config"),
    "adapter.hidden_size": ConfigKey("", "adapter_hidden_size", None),
    **qwen3_config("language_config"),
}
_PARTS = (OMNI_TOWER, GATED_MLP, QWEN3)
_MODULES = {"enc": "audio_model", "adapter": "audio_adapter", "llm": "language_model"}


def _sections(config: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]] | None:
    audio, language = config.get("audio_config"), config.get("language_config")
    if not isinstance(audio, Mapping) or not isinstance(language, Mapping):
        return None
    return {"": config, "audio_config": audio, "language_config": language}


def _in_checkpoint(name: str) -> tuple[str, ...]:
    inside = FAMILY.module_name(name)
    stored = f"{_MODULES[name.partition('.')[0]]}.{inside}"
    return f"model.{stored}", stored, inside  # lm_head may stand at the top


FAMILY = Family(
    architecture="moss_transcribe",
    model_type="moss_transcribe",
    crispasr="moss_transcribe",
    name="MOSS-Transcribe",
    hears="English, as its makers say",
    parts=_PARTS,
    keys={size: size for size in (*_CONFIG, "llm.tied_embeddings")},
    tensors={tensor: tensor for part in _PARTS for tensor in part.tensors},
    specials={
        "bos_token_id": ("<|endoftext|>",),
        "start_token_id": ("<|im_start|>",),
        "eos_token_id": ("<|im_end|>",),
        "audio_start_id": ("<|audio_bos|>", "<|audio_start|>"),
        "audio_end_id": ("<|audio_eos|>", "<|audio_end|>"),
    },
    sections=_sections,
    config=_CONFIG,
    decoder_section="language_config",
    assumed=assumed("audio_config", "language_config"),
    in_checkpoint=_in_checkpoint,
)
