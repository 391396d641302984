"""The stages of a model one after the other, as each runtime computes them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pycrispasr.models.families import FAMILIES
from pycrispasr.models.foreign import check_vocabulary
from pycrispasr.options import Precision
from pycrispasr.runtimes import native
from pycrispasr.runtimes.crispasr_stages import Stages

Floats = npt.NDArray[np.float32]

AUDIO_ROW = -1
"""Stands in a prompt where an audio row goes."""


@dataclasses.dataclass
class Chain:
    """What one side computed. None: this side cannot tell.

    Attributes:
        log_mel: `[frames, n_mels]`.
        encoder_first: Rows after the encoder's first layer, `[rows, encoder_d_model]`.
        encoder: `[rows, encoder_output]`.
        adapter: `[rows, llm_hidden]`.
        prompt: Token ids, `AUDIO_ROW` in the places of audio rows.
        embeddings: Of the whole prompt, audio rows included, `[positions, llm_hidden]`.
        layers: The last position after so many layers of the decoder, each `[1, llm_hidden]`.
        logits: After the prompt, `[1, llm_vocab]`.
        tokens: What the side transcribes.
        looped: They stop where one phrase came again and again.
    """

    log_mel: Floats | None
    encoder_first: Floats | None
    encoder: Floats
    adapter: Floats
    prompt: list[int]
    embeddings: Floats
    layers: dict[int, Floats]
    logits: Floats
    tokens: list[int]
    looped: bool = False


def native_chain(
    path: Path, samples: Floats, *, max_new_tokens: int, precision: Precision = "auto", given: Chain | None = None
) -> Chain:
    """The stages of the runtime on one file.

    Args:
        path: The model.
        samples: Mono at 16 kHz, `[n]`.
        max_new_tokens: Where the tokens are cut.
        precision: See `Model`.
        given: Take every stage's input from this chain instead of the stage before.
    """
    model = native.NativeModel(path, "auto", precision)
    session = native.NativeSession(model, max_new_tokens=max_new_tokens)
    info = model.info()
    mel = session.log_mel(samples)
    tokens = [token for token, _ in session.decode_clip(samples)]
    looped, n_rows = bool(session.result()["looped"]), session.result()["n_rows"]
    mel_in = mel if given is None or given.log_mel is None else given.log_mel
    rows = session.encode(mel_in)[:n_rows]  # what fills up a last window gives none
    audio_rows = session.adapt(given.encoder if given else rows)
    prompt = model.prompt(len(audio_rows))
    embeddings = place_rows(prompt, given.adapter if given else audio_rows, session.embed)
    decoder_in = given.embeddings if given and given.embeddings.shape == embeddings.shape else embeddings
    return Chain(
        log_mel=mel,
        encoder_first=session.encode(mel_in, 1),
        encoder=rows,
        adapter=audio_rows,
        prompt=prompt,
        embeddings=embeddings,
        layers={n: session.decode(decoder_in, n_layers=n)[None] for n in shown_layers(info["llm_layers"])},
        logits=session.decode(decoder_in)[None],
        tokens=tokens,
        looped=looped,
    )


def crispasr_chain(path: Path, samples: Floats, *, max_new_tokens: int) -> Chain:
    """The stages of libcrispasr on the same file, which gives nothing between layers.

    Args:
        path: The model.
        samples: Mono at 16 kHz, `[n]`.
        max_new_tokens: Where the tokens are cut.

    Raises:
        InstallationError: The library is missing.
        UnsupportedModelError: It cannot load the file.
    """
    check_vocabulary(path)
    model = native.NativeModel(path, "cpu")
    info = model.info()
    with Stages(path, FAMILIES[info["architecture"]].crispasr) as stages:
        mel = None if stages.encodes_samples else stages.log_mel(samples)
        rows = stages.encode(samples if mel is None else mel)
        adapted = stages.adapt(rows)
        prompt = model.prompt(len(adapted))
        embeddings = place_rows(prompt, adapted, lambda ids: stages.embed(ids, adapted.shape[1]))
        stages.start(len(prompt) + 1)
        logits = stages.logits(embeddings, 0)[None]
        tokens = stages.transcribe(samples, max_new_tokens)
        if tokens is None:
            tokens = stages.greedy(embeddings, info["eos_token"], max_new_tokens)
    return Chain(mel, None, rows.reshape(-1, info["encoder_output"]), adapted, prompt, embeddings, {}, logits, tokens)


def shown_layers(count: int) -> list[int]:
    """The decoder's layers that are compared: after the first, the middle and the last."""
    return sorted({1, (count + 1) // 2, count})


def place_rows(prompt: list[int], rows: Floats, embed: Any) -> Floats:
    """The embeddings of a prompt with audio rows `[rows, llm_hidden]` in their places."""
    at_text = np.array(prompt) != AUDIO_ROW
    out = np.empty((len(prompt), rows.shape[1]), np.float32)
    out[at_text] = embed([token for token in prompt if token != AUDIO_ROW])
    out[~at_text] = rows
    return out
