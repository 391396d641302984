"""Qwen3-ForcedAligner: Qwen3-ASR's parts with a classifier of time bins. It tells when a known text was said.

Its files have Qwen3-ASR's architecture, and a head that has no row for each token, but one for each bin.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pycrispasr.models.families import qwen3_asr
from pycrispasr.models.families.parts import TIME_BINS, ConfigKey

_OF = qwen3_asr.FAMILY

_LANGUAGES = ("de", "en", "es", "fr", "it", "ja", "ko", "pt", "ru", "yue", "zh")


def _sections(config: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]] | None:
    """As for Qwen3-ASR, where `config.json` tells of classes too."""
    found = _OF.sections(config)
    if found is None:
        return None
    outermost = {**{key: config[key] for key in config if key.startswith("timestamp_")}, **found[""]}
    labels = outermost.get("id2label")
    bins = outermost.get("classify_num", outermost.get("num_labels", len(labels) if labels else None))
    if bins is None:
        return None
    bias = int(outermost.get("token_classification_bias", False))
    text = {**found["text_config"], "tie_word_embeddings": True}  # the classifier is the only head
    return {**found, "": {**outermost, "num_labels": bins, "token_classification_bias": bias}, "text_config": text}


def _in_checkpoint(name: str) -> tuple[str, ...]:
    part, _, kind = name.rpartition(".")
    return (f"thinker.lm_head.{kind}", f"score.{kind}") if part == "align.classifier" else _OF.in_checkpoint(name)


FAMILY = dataclasses.replace(
    _OF,
    name="Qwen3-ForcedAligner",
    hears="11 languages",
    parts=(*_OF.parts, TIME_BINS),
    keys={**_OF.keys, "align.bins": "classify_num", "align.bin_ms": "timestamp_segment_time"},
    tensors={tensor: name for tensor, name in _OF.tensors.items() if tensor != "llm.lm_head"}
    | {"align.classifier": _OF.tensors["llm.lm_head"]},
    specials={**_OF.specials, "timestamp_token_id": ("<timestamp>",)},
    named=("<|im_start|>",),
    sections=_sections,
    config={
        **_OF.config,
        "align.bins": ConfigKey("", "num_labels", None),
        "align.bin_ms": ConfigKey("", "timestamp_segment_time", 80),
        "align.bias": ConfigKey("", "token_classification_bias", 0),
    },
    in_checkpoint=_in_checkpoint,
    languages={code: _OF.languages[code] for code in _LANGUAGES},
    takes_context=False,
    without_language="spaces divide words, and each Chinese character is one",
)
