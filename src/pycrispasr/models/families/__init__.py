"""Families of models, one file each: what Python needs to know to make files, and to read what a model writes.

The same for C++: `csrc/families/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pycrispasr.models.families import moss_diarize, moss_transcribe, qwen3_aligner, qwen3_asr
from pycrispasr.models.families.family import Family
from pycrispasr.models.families.parts import FLOAT_SIZES, Sizes

__all__ = ["ALIGNER", "CHECKPOINTS", "FAMILIES", "FLOAT_SIZES", "Family", "Sizes", "family_of"]

FAMILIES: Mapping[str, Family] = {
    family.architecture: family for family in (moss_transcribe.FAMILY, moss_diarize.FAMILY, qwen3_asr.FAMILY)
}
"""By "general.architecture"; those first whose checkpoints have more to tell them by."""

ALIGNER = qwen3_aligner.FAMILY
"""What aligns a known text. Its files have the architecture of one of the others, and tell their bins of time."""

CHECKPOINTS = (ALIGNER, *FAMILIES.values())
"""In the order in which checkpoints are tried: the first that takes one."""


def family_of(values: Mapping[str, Any]) -> Family | None:
    """The family of a file's metadata (`gguf_file.load`), as far as they tell it; None for another one."""
    architecture = values.get("general.architecture")
    return None if architecture is None else FAMILIES.get(str(architecture.content))
