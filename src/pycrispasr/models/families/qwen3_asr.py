"""Qwen3-ASR: Qwen3-Omni's audio tower, Qwen3. It writes the language first, and can be told it, and what to expect."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pycrispasr.decoding.reader import Piece, PlainReader, Reader
from pycrispasr.models.families.family import Family
from pycrispasr.models.families.parts import OMNI_TOWER, QWEN3, Sizes, assumed, omni_tower_config, qwen3_config

# The makers' names, which the model was trained with.
_LANGUAGES = {
    "ar": "Arabic", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English", "es": "Spanish",
    "fa": "Persian", "fi": "Finnish", "fil": "Filipino", "fr": "French", "hi": "Hindi", "hu": "Hungarian",
    "id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean", "mk": "Macedonian", "ms": "Malay",
    "nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sv": "Swedish",
    "th": "Thai", "tr": "Turkish", "vi": "Vietnamese", "yue": "Cantonese", "zh": "Chinese",
}  # fmt: skip
_CODES = {name.casefold(): code for code, name in _LANGUAGES.items()}

_TAG = b"<asr_text>"
_BEGINNING = b"language "
_LONGEST = 64  # bytes that the language and its tag take at the most
_NAMED = re.compile(r"\s*language\s+(\w+)\s*", re.IGNORECASE)


class LanguageReader:
    """Reads "language French<asr_text>Bonjour": the language first, then the text; "language None" for no speech.

    Where the tag does not come, everything is text, as its makers have it.
    """

    turns = None

    def __init__(self) -> None:
        self.language: str | None = None
        self._held: list[bytes] | None = []  # tokens before the text; None behind its beginning
        self._steps = 0

    def read(self, content: bytes) -> list[Piece]:
        """As for `Reader`."""
        self._steps += 1
        if self._held is None:
            return [Piece(self._steps - 1, content)]
        self._held.append(content)
        head = b"".join(self._held)
        at = head.find(_TAG)
        if at >= 0:
            self.language = _language(head[:at])
            return self._begin(at + len(_TAG))
        beginning = head.lstrip()
        if len(head) > _LONGEST or not (beginning.startswith(_BEGINNING) or _BEGINNING.startswith(beginning)):
            return self._begin(0)
        return []

    def end(self) -> list[Piece]:
        """As for `Reader`."""
        if self._held is None:
            return []
        named = _NAMED.fullmatch(b"".join(self._held).decode("utf-8", "replace"))
        if named is None or named[1].casefold() not in (*_CODES, "none"):
            return self._begin(0)
        self.language = _language(named[0].encode())
        return []

    def _begin(self, offset: int) -> list[Piece]:
        """The text begins so many bytes behind the first one: the pieces of it that were held back."""
        pieces, at = [], 0
        for step, content in enumerate(self._held or ()):
            at += len(content)
            if at > offset or (at == offset == 0):
                pieces.append(Piece(step, content[max(0, len(content) - (at - offset)) :]))
        self._held = None
        return pieces


def _language(head: bytes) -> str | None:
    """The code of the language that stands before the tag; its name where that is not known; None for none."""
    named = _NAMED.match(head.decode("utf-8", "replace"))
    if named is None or named[1].casefold() == "none":
        return None
    return _CODES.get(named[1].casefold(), named[1])


def _reader(language: str | None) -> Reader:
    return LanguageReader() if language is None else PlainReader(language)


def _sections(config: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]] | None:
    """As its makers publish it, below "thinker_config", or as the transformers library writes it."""
    whole = config.get("thinker_config", config)
    audio, text = (whole.get(key) if isinstance(whole, Mapping) else None for key in ("audio_config", "text_config"))
    if not isinstance(audio, Mapping) or not isinstance(text, Mapping):
        return None
    # Either says so: the library's own form has it in the outermost part, and something else further in.
    flags = [part["tie_word_embeddings"] for part in (whole, text) if "tie_word_embeddings" in part]
    tied = any(flags) or not flags
    # The vocabulary tells which tokens end and pad a text: here they depend on what training was like.
    outermost = {key: value for key, value in whole.items() if key not in ("eos_token_id", "pad_token_id")}
    text = {**text, "tie_word_embeddings": tied, "eos_token_id": None, "pad_token_id": None}
    return {"": outermost, "audio_config": audio, "text_config": text}


def _in_checkpoint(name: str) -> tuple[str, ...]:
    part, inside = name.partition(".")[0], FAMILY.module_name(name)
    if inside.startswith("lm_head."):
        return f"thinker.{inside}", inside
    if part == "llm":
        return f"thinker.model.{inside}", f"model.language_model.{inside}"
    projector = inside.replace("proj", "multi_modal_projector.linear_", 1) if inside.startswith("proj") else None
    return f"thinker.audio_tower.{inside}", f"model.{projector}" if projector else f"model.audio_tower.{inside}"


def _derived(sizes: Mapping[str, int | float | bool]) -> Sizes:
    """What its files tell besides."""
    return {
        "sample_rate": 16000,
        "n_fft": 400,
        "win_length": 400,
        "hop_length": 160,
        "audio.head_dim": int(sizes["enc.d_model"]) // int(sizes["enc.encoder_attention_heads"]),
    }


_BLOCK = {
    "attn_norm": "attn_norm", "attn.q": "attn_q", "attn.k": "attn_k", "attn.v": "attn_v", "attn.q_norm": "attn_q_norm",
    "attn.k_norm": "attn_k_norm", "ffn_norm": "ffn_norm", "ffn.fc1": "ffn_up", "ffn.fc2": "ffn_down",
    "ffn.gate": "ffn_gate", "ffn.up": "ffn_up", "ffn.down": "ffn_down",
}  # fmt: skip
_OTHERS = {
    "enc.conv1": "audio.conv.1", "enc.conv2": "audio.conv.2", "enc.conv3": "audio.conv.3",
    "enc.conv_out": "audio.conv_out", "enc.blk.*.attn.o": "audio.blk.*.attn_out", "enc.ln_post": "audio.ln_post",
    "enc.proj1": "audio.proj1", "enc.proj2": "audio.proj2", "llm.embed": "token_embd", "llm.lm_head": "output",
    "llm.blk.*.attn.o": "blk.*.attn_output", "llm.final_norm": "output_norm",
}  # fmt: skip


def _stored(tensor: str) -> str:
    if tensor in _OTHERS:
        return _OTHERS[tensor]
    part, _, inside = tensor.partition(".blk.*.")
    return f"{'audio.' if part == 'enc' else ''}blk.*.{_BLOCK[inside]}"


_PARTS = (OMNI_TOWER, QWEN3)

FAMILY = Family(
    architecture="qwen3asr",
    model_type="qwen3_asr",
    crispasr="qwen3_asr",
    name="Qwen3-ASR",
    hears="30 languages",
    parts=_PARTS,
    keys={
        "enc.num_mel_bins": "n_mels",
        "enc.encoder_layers": "audio.n_layers",
        "enc.d_model": "audio.d_model",
        "enc.encoder_attention_heads": "audio.n_heads",
        "enc.encoder_ffn_dim": "audio.ff_dim",
        "enc.downsample_hidden_size": "audio.conv_channels",
        "enc.output_dim": "audio.proj_dim",
        "enc.max_source_positions": "audio.max_source_pos",
        "enc.n_window": "audio.n_window",
        "enc.n_window_infer": "audio.n_window_infer",
        "llm.num_layers": "llm.n_layers",
        "llm.hidden_size": "llm.d_model",
        "llm.num_heads": "llm.n_heads",
        "llm.num_kv_heads": "llm.n_kv_heads",
        "llm.head_dim": "llm.head_dim",
        "llm.intermediate_size": "llm.ff_dim",
        "llm.rope_theta": "llm.rope_theta",
        "llm.rms_norm_eps": "llm.rms_norm_eps",
        "llm.vocab_size": "llm.vocab_size",
        "llm.max_position_embeddings": "llm.max_pos",
    },
    constants={"enc.layer_norm_eps": 1e-5},
    derived=_derived,
    tensors={tensor: _stored(tensor) for part in _PARTS for tensor in part.tensors},
    specials={
        "eos_token_id": ("<|im_end|>",),
        "pad_token_id": ("<|endoftext|>",),
        "audio_start_token_id": ("<|audio_start|>",),
        "audio_end_token_id": ("<|audio_end|>",),
        "audio_pad_token_id": ("<|audio_pad|>",),
    },
    named=("<|im_start|>", "<asr_text>"),
    sections=_sections,
    config={**omni_tower_config("audio_config"), **qwen3_config("text_config")},
    decoder_section="text_config",
    assumed=assumed("audio_config", "text_config"),
    in_checkpoint=_in_checkpoint,
    languages=_LANGUAGES,
    takes_context=True,
    reader=_reader,
)
