"""Qwen's vocabulary, as it is published."""

from __future__ import annotations

import base64
import importlib.metadata
import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from .reference import model as ref


def _published() -> Path:
    try:
        files = importlib.metadata.files("dashscope") or ()
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the published vocabulary: pip install --no-deps dashscope")
    return Path(str(next(file for file in files if file.name == "qwen.tiktoken").locate()))


class Vocabulary:
    """The vocabulary that is published, from Alibaba's own package: tokens, merges, and a tokenizer of these.

    Args:
        folder: Made, with `tokenizer.json` in it.
        added: Control tokens behind the vocabulary, by id.
    """

    def __init__(self, folder: Path, added: Mapping[int, str]) -> None:
        lines = _published().read_text(encoding="ascii").split("\n")
        ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
        alphabet = ref.byte_alphabet()
        self.tokens = ["".join(alphabet[byte] for byte in token) for token in ranks]
        self.merges = []
        for token, rank in ranks.items():
            if len(token) > 1:
                parts = [bytes([byte]) for byte in token]
                while len(parts) > 2:  # merged as far as what was learnt before
                    pairs = [ranks.get(a + b, len(ranks)) for a, b in itertools.pairwise(parts)]
                    best = min(range(len(pairs)), key=pairs.__getitem__)
                    assert pairs[best] < rank
                    parts[best : best + 2] = [parts[best] + parts[best + 1]]
                self.merges.append(" ".join("".join(alphabet[byte] for byte in part) for part in parts))
        folder.mkdir()
        document = {
            "version": "1.0",
            "added_tokens": [
                {"id": id_, "content": token, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
                 "normalized": False} for id_, token in added.items()
            ],
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {"Regex":
                        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                        r"|\s*[\r\n]+|\s+(?!\S)|\s+"}},
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
                ],
            },
            "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(self.tokens)}, "merges": self.merges},
        }  # fmt: skip
        # Tokens between those that are added here stand for others, which no prompt has.
        for id_ in range(len(self.tokens), 151705):
            if id_ not in added:
                document["added_tokens"].append(  # type: ignore[attr-defined]
                    {"id": id_, "content": f"<|other {id_}|>", "special": True, "single_word": False, "lstrip": False,
                     "rstrip": False, "normalized": False}
                )  # fmt: skip
        document["added_tokens"].sort(key=lambda token: token["id"])  # type: ignore[attr-defined]
        (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
