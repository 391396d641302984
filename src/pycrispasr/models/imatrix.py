"""Importance matrices: how strongly each column of a model's matrices is used, measured on real audio.

Rounding weights to a few bits cannot be equally right everywhere. With the mean energy (the mean of the squares) of
what each column is multiplied with, a quantiser is most careful where a mistake would be heard most.

The file is a GGUF file as llama.cpp's tool of this name writes it: for each matrix `NAME.in_sum2`, the sum of the
squares `[columns]`, and `NAME.counts`, the number of rows that were multiplied `[1]`, both F32.

Needs the package `gguf`: `pip install 'pycrispasr[convert]'`.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pycrispasr import audio
from pycrispasr.errors import AudioError, ModelFormatError, UsageError
from pycrispasr.models import gguf_file, hub
from pycrispasr.models.gguf_file import Value, from_array
from pycrispasr.options import DecodingOptions
from pycrispasr.runtimes import native
from pycrispasr.segmentation import segmenter

_SUMS, _COUNTS = ".in_sum2", ".counts"
_SMALLEST = 1e-4  # share of the mean weight: a column that was never used still counts a little


def collect(
    model: str | os.PathLike[str],
    recordings: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    threads: int | None = None,
    max_new_tokens: int | None = None,
    progress: Callable[[float, float], object] | None = None,
) -> None:
    """Transcribes recordings, and writes what went through each matrix meanwhile.

    Args:
        model: As `Model` takes it. Best the F32, BF16 or F16 file that is to be quantised.
        recordings: Audio files like those that the model will hear; some minutes are enough.
        out: The file to write.
        threads: Threads for computing; by default one for each physical core.
        max_new_tokens: As for `DecodingOptions`; nothing is tried again.
        progress: Called with the seconds of audio done and their total after each segment.

    Raises:
        AudioError: A recording cannot be read. Nothing is written.
        ModelNotFoundError: There is no such model.
        UsageError: There is no recording.
        InstallationError: The package `gguf` is missing.
        PycrispasrError: What `Model` raises, or `out` cannot be written.
    """
    gguf_file.import_gguf()
    if not recordings:
        raise UsageError("an importance matrix is collected from recordings: name at least one")
    opened = native.NativeModel(hub.resolve(model), "cpu")
    session = native.NativeSession(
        opened,
        threads=threads or 0,
        max_new_tokens=DecodingOptions(max_new_tokens=max_new_tokens).token_limit,
        importance=True,
    )
    clips = [audio.load(recording) for recording in recordings]
    total, done, n_segments = sum(map(len, clips)), 0, 0
    for recording, clip in zip(recordings, clips, strict=True):
        for start, end in segmenter.plan(clip):
            try:
                collections.deque(session.decode_clip(clip[start:end]), maxlen=0)
            except AudioError as error:
                raise AudioError(f"{os.fspath(recording)}: {error}") from None
            done, n_segments = done + end - start, n_segments + 1
            if progress:
                progress(done / audio.SAMPLE_RATE, total / audio.SAMPLE_RATE)
    values = {
        "general.architecture": Value(gguf_file.STRING, opened.info()["architecture"]),
        "general.type": Value(gguf_file.STRING, "imatrix"),
        "imatrix.datasets": Value(
            gguf_file.ARRAY, [Path(recording).name for recording in recordings], gguf_file.STRING
        ),
        "imatrix.chunk_count": Value(gguf_file.U32, n_segments),
        "imatrix.chunk_size": Value(gguf_file.U32, round(audio.CHUNK_SECONDS * audio.SAMPLE_RATE)),
    }
    tensors = []
    for name, (energies, rows) in session.importance().items():
        tensors.append(from_array(name + _SUMS, energies.astype(np.float32), "F32"))
        tensors.append(from_array(name + _COUNTS, np.array([rows], np.float32), "F32"))
    gguf_file.write(out, values, tensors)


def read(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[np.float32]]:
    """The weights of each matrix's columns: their mean energy, none of them nought.

    Raises:
        ModelNotFoundError: The file cannot be read.
        ModelFormatError: It is no importance matrix.
    """
    values, tensors = gguf_file.load(path)
    if "general.type" not in values or values["general.type"].content != "imatrix":
        raise ModelFormatError(
            f"{os.fspath(path)!r} is a GGUF file, but no importance matrix: make one with `pycrispasr imatrix`"
        )
    stored = {
        tensor.name: gguf_file.rows(path, tensor).reshape(-1).view(np.float32)
        for tensor in tensors
        if tensor.type == "F32"
    }
    found = {}
    for name, sums in stored.items():
        if not name.endswith(_SUMS):
            continue
        matrix = name.removesuffix(_SUMS)
        counts = stored.get(matrix + _COUNTS)
        if counts is None or not np.isfinite(sums).all() or sums.min() < 0 or not counts[0] >= 0:
            raise ModelFormatError(f"{os.fspath(path)!r} is damaged at {matrix!r}: make it again")
        if counts[0] and sums.any():
            weights = sums / counts[0]
            found[matrix] = np.maximum(weights, _SMALLEST * weights.mean())
    return found
