"""MOSS-Transcribe-Diarize: Whisper's audio tower, an MLP, Qwen3. It writes who said what, and when."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pycrispasr.decoding.reader import Piece, Turn
from pycrispasr.models.chat_template import chat_template
from pycrispasr.models.families.family import Family
from pycrispasr.models.families.parts import (
    NORMED_MLP,
    QWEN3,
    WHISPER_TOWER,
    ConfigKey,
    Sizes,
    assumed,
    qwen3_config,
    whisper_tower_config,
)

_TIME = re.compile(rb"\[(?:(\d+):)?(?:(\d+):)?(\d+(?:\.\d+)?)\]")
_SPEAKER = re.compile(rb"\[S(\d+)\]")
_IN_MARKS = b"0123456789.:S"
_LONGEST = 32  # bytes of a mark


class TurnReader:
    """Reads "[0.12][S01]Hello.[1.48][1.6][S02]Yes.[2.04]": who said what, and when.

    All but these marks is text. What has no speaker in front of it is a turn without one. A time behind which text goes
    on is a part of the text, as its makers have it.

    Args:
        language: Is not told by the model.
    """

    def __init__(self, language: str | None = None) -> None:
        self.language = language
        self._turns: list[Turn] = []
        self._steps = 0
        self._held: list[tuple[int, int]] = []  # a mark so far: the bytes with their tokens
        self._end: list[tuple[int, int]] = []  # the mark that ended the last turn, unless text goes on, and space
        self._next: float | None = None  # where the next turn begins
        self._is_open = self._has_text = False  # the last turn

    def read(self, content: bytes) -> list[Piece]:
        """As for `Reader`."""
        text: list[tuple[int, int, int]] = []  # turn, token, byte
        for byte in content:
            self._take(self._steps, byte, text)
        self._steps += 1
        return _joined(text)

    @property
    def turns(self) -> Sequence[Turn]:
        """As for `Reader`."""
        return self._turns

    def end(self) -> list[Piece]:
        """As for `Reader`."""
        text: list[tuple[int, int, int]] = []
        self._release(text)
        self._close()
        return _joined(text)

    def _take(self, step: int, byte: int, text: list[tuple[int, int, int]]) -> None:
        if byte == ord("["):
            self._release(text)
            self._held = [(step, byte)]
        elif not self._held:
            self._write(step, byte, text)
        else:
            self._held.append((step, byte))
            mark = bytes(one for _, one in self._held)
            if byte == ord("]"):
                if (time := _TIME.fullmatch(mark)) is not None:
                    self._time(
                        sum(float(part or 0) * unit for part, unit in zip(_clock(time), (3600, 60, 1), strict=True))
                    )
                elif (speaker := _SPEAKER.fullmatch(mark)) is not None:
                    self._speaker(int(speaker[1]))
                else:
                    self._release(text)
                self._held = []
            elif byte not in _IN_MARKS or len(mark) > _LONGEST:
                self._release(text)

    def _release(self, text: list[tuple[int, int, int]]) -> None:
        """What was held is no mark."""
        held, self._held = self._held, []
        for step, byte in held:
            self._write(step, byte, text)

    def _write(self, step: int, byte: int, text: list[tuple[int, int, int]]) -> None:
        if bytes((byte,)).isspace() and not self._is_open:
            if self._end:
                self._end.append((step, byte))
            return
        if not self._is_open and self._end:  # the time was a part of the text
            self._is_open, self._turns[-1].end = True, None
            text += [(len(self._turns) - 1, *one) for one in self._end]
            self._end = []
        elif not self._is_open:
            self._begin(None)
        self._has_text = True
        text.append((len(self._turns) - 1, step, byte))

    def _time(self, seconds: float) -> None:
        if not self._is_open:
            self._close()
            self._next = seconds
        elif not self._has_text and self._turns[-1].start is None:
            self._turns[-1].start = seconds
        else:
            self._turns[-1].end, self._is_open, self._end = seconds, False, list(self._held)

    def _speaker(self, number: int) -> None:
        self._begin(number)

    def _begin(self, speaker: int | None) -> None:
        before = self._turns[-1].end if self._turns else None
        self._close()
        self._turns.append(Turn(self._next if self._next is not None else before, speaker))
        self._next, self._is_open, self._has_text = None, True, False

    def _close(self) -> None:
        """Nothing more comes of the last turn."""
        if self._turns:
            self._turns[-1].closed = True
        self._is_open, self._end = False, []


def _clock(time: re.Match[bytes]) -> tuple[bytes | None, bytes | None, bytes]:
    """Hours, minutes and seconds: of two numbers the first are minutes."""
    first, second, seconds = time.groups()
    return (first, second, seconds) if second is not None else (None, first, seconds)


def _joined(text: list[tuple[int, int, int]]) -> list[Piece]:
    """Bytes with their turns and tokens as pieces."""
    return [
        Piece(step, bytes(byte for _, _, byte in group), turn)
        for (turn, step), group in itertools.groupby(text, key=lambda one: one[:2])
    ]


_PARTS = (WHISPER_TOWER, NORMED_MLP, QWEN3)


def _sections(config: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]] | None:
    audio, text = config.get("audio_config"), config.get("text_config")
    if not isinstance(audio, Mapping) or not isinstance(text, Mapping):
        return None
    if "audio_merge_size" not in config and "adaptor_input_dim" not in config:
        return None
    # Whisper's sizes have two names each.
    other = {
        "hidden_size": "d_model", "num_hidden_layers": "encoder_layers", "intermediate_size": "encoder_ffn_dim",
        "num_attention_heads": "encoder_attention_heads",
    }  # fmt: skip
    audio = {other[key]: value for key, value in audio.items() if key in other} | dict(audio)
    joined, width = config.get("adaptor_input_dim"), audio.get("d_model")
    if "audio_merge_size" not in config and isinstance(joined, int) and isinstance(width, int) and width > 0:
        config = {**config, "audio_merge_size": joined // width}
    text = {"max_position_embeddings": _POSITIONS, **text}
    processor = dict(config.get("processor") or {})
    if not processor.get("enable_time_marker", True):
        processor["time_marker_every_seconds"] = 0
    return {"": config, "audio_config": audio, "text_config": text, "processor": processor}


def _prompt(folder: Path) -> dict[str, str]:
    """The prompt in front of the audio and behind it, as the checkpoint's chat template makes it, where it has one.

    The instruction stands in the template, or else in its makers' programs: then it is theirs. "{context}" stands for
    the keywords, where the template takes them behind the audio.
    """
    template = chat_template(folder)
    if template is None:
        return {}
    audio = {"type": "audio", "audio": "audio"}
    keywords = {"type": "keywords", "keywords": list(_KEYWORDS)}
    for content in ([audio], [audio, {"type": "text", "text": _INSTRUCTION}]):
        before, placeholder, after = template([{"role": "user", "content": content}]).partition("<|audio_pad|>")
        instruction, end, _ = after.partition("<|im_end|>")
        if placeholder and end and instruction.replace("<|audio_end|>", "").strip():
            found = {"prompt_before": before, "prompt_after": after}
            hinted = template([{"role": "user", "content": [*content, keywords]}]).partition("<|audio_pad|>")[2]
            above, first, rest = hinted.partition(_KEYWORDS[0])
            _, second, below = rest.partition(_KEYWORDS[1])
            return found | ({"prompt_after_context": f"{above}{{context}}{below}"} if first and second else {})
    return {}


_KEYWORDS = ("\ue000", "\ue001")  # found again in what a template makes of them

_INSTRUCTION = (
    "请将音频转写为文本，每一段需以起始时间戳和说话人编号（[S01]、[S02]、[S03]…）开头，正文为对应的语音内容，"
    "并在段末标注结束时间戳，以清晰标明该段语音范围。"
)


_POSITIONS = 131072  # where a file does not say


def _in_checkpoint(name: str) -> tuple[str, ...]:
    part, inside = name.partition(".")[0], FAMILY.module_name(name)
    if inside.startswith("lm_head."):
        return (inside,)
    if part == "llm":
        return (f"model.language_model.{inside}",)
    if part == "enc":
        return f"model.whisper_encoder.{inside}", f"model.audio_tower.{inside}"
    layer = {"linear_1": "0", "linear_2": "2", "norm": "3"}
    stem, _, kind = inside.partition(".")
    return f"model.vq_adaptor.layers.{layer[stem]}.{kind}", f"model.multi_modal_projector.{inside}"


def _derived(sizes: Mapping[str, int | float | bool]) -> Sizes:
    """What its files tell besides."""
    return {
        "adaptor.in_dim": int(sizes["enc.merge"]) * int(sizes["enc.d_model"]),
        "adaptor.out_dim": int(sizes["llm.hidden_size"]),
    }


_BLOCK = {
    "attn_norm": "attn_norm", "attn.q": "attn_q", "attn.k": "attn_k", "attn.v": "attn_v", "attn.q_norm": "q_norm",
    "attn.k_norm": "k_norm", "ffn_norm": "ffn_norm", "ffn.fc1": "ffn_up", "ffn.fc2": "ffn_down",
    "ffn.gate": "ffn_gate", "ffn.up": "ffn_up", "ffn.down": "ffn_down",
}  # fmt: skip
_OTHERS = {
    "enc.conv1": "enc.conv1", "enc.conv2": "enc.conv2", "enc.pos_embed": "enc.pos_embed",
    "enc.blk.*.attn.o": "enc.blk.*.attn_out", "enc.ln_post": "enc.ln_post", "adapter.fc1": "adaptor.fc1",
    "adapter.fc2": "adaptor.fc2", "adapter.norm": "adaptor.norm", "llm.embed": "token_embd", "llm.lm_head": "output",
    "llm.blk.*.attn.o": "blk.*.attn_o", "llm.final_norm": "output_norm",
}  # fmt: skip


def _stored(tensor: str) -> str:
    if tensor in _OTHERS:
        return _OTHERS[tensor]
    part, _, inside = tensor.partition(".blk.*.")
    return f"{'enc.' if part == 'enc' else ''}blk.*.{_BLOCK[inside]}"


FAMILY = Family(
    architecture="moss_transcribe_diarize",
    prefix="moss_diarize",
    model_type="moss_transcribe_diarize",
    crispasr="moss_diarize",
    name="MOSS-Transcribe-Diarize",
    hears="Chinese, English and others",
    parts=_PARTS,
    keys={
        "enc.num_mel_bins": "enc.n_mels",
        "enc.encoder_layers": "enc.n_layers",
        "enc.d_model": "enc.d_model",
        "enc.encoder_attention_heads": "enc.n_heads",
        "enc.encoder_ffn_dim": "enc.ffn_dim",
        "enc.max_source_positions": "enc.max_pos",
        "enc.merge": "audio_merge_size",
        "enc.rows_per_second": "audio_tokens_per_second",
        "enc.marker_seconds": "time_marker_every_seconds",
        "llm.num_layers": "llm.n_layers",
        "llm.hidden_size": "llm.dim",
        "llm.num_heads": "llm.n_heads",
        "llm.num_kv_heads": "llm.n_kv_heads",
        "llm.head_dim": "llm.head_dim",
        "llm.intermediate_size": "llm.ff_dim",
        "llm.rope_theta": "llm.rope_theta",
        "llm.rms_norm_eps": "llm.rms_eps",
        "llm.vocab_size": "llm.vocab_size",
        "llm.max_position_embeddings": "llm.max_pos",
        "llm.tied_embeddings": "llm.tied_embeddings",
    },
    constants={"enc.layer_norm_eps": 1e-5},
    derived=_derived,
    tensors={tensor: _stored(tensor) for part in _PARTS for tensor in part.tensors},
    specials={"audio_token_id": ("<|audio_pad|>",)},
    named=("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|audio_start|>", "<|audio_end|>"),
    sections=_sections,
    config={
        **whisper_tower_config("audio_config"),
        "enc.merge": ConfigKey("", "audio_merge_size", 4),
        "enc.rows_per_second": ConfigKey("processor", "audio_tokens_per_second", 12.5),
        "enc.marker_seconds": ConfigKey("processor", "time_marker_every_seconds", 2),
        **qwen3_config("text_config"),
    },
    decoder_section="text_config",
    assumed=(
        *assumed("audio_config", "text_config"),
        ("", "projector_hidden_act", "silu"),
        ("", "projector_bias", True),
    ),
    in_checkpoint=_in_checkpoint,
    texts=_prompt,
    takes_context=True,
    reader=TurnReader,
    conversation=True,
)
