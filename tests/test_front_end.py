"""A model file that tells of another front end than the runtime's is refused with the value."""

from __future__ import annotations

from pathlib import Path

import pytest

from pycrispasr import Model, ModelFormatError, UnsupportedModelError

from .gguf_edit import rewrite


@pytest.mark.parametrize(
    ("key", "value", "right"),
    [
        ("frontend.n_fft", 640, 400),
        ("frontend.win_length", 320, 400),
        ("frontend.hop_length", 200, 160),
        ("frontend.sample_rate", 8000, 16000),
        ("audio.sampling_rate", 44100.0, 16000),
        ("n_fft", 512, 400),
        ("frontend.num_mel_bins", 7, None),
        ("frontend.feature_size", 7, None),
    ],
)
def test_another_front_end_is_refused_with_its_value(
    key: str, value: float, right: int | None, nano_path: Path, nano: Model, tmp_path: Path
) -> None:
    right = right or nano.info.n_mels
    path = rewrite(nano_path, tmp_path / "other.gguf", values={f"moss_transcribe.{key}": value})
    with pytest.raises(
        UnsupportedModelError, match=rf"'moss_transcribe\.{key}' is {value:g}: .* computes with {right}"
    ):
        Model(path, runtime="pycrispasr")
    told = rewrite(nano_path, tmp_path / "told.gguf", values={f"moss_transcribe.{key}": type(value)(right)})
    Model(told).close()


def test_bins_that_are_not_told_are_not_made_up(nano_path: Path, tmp_path: Path) -> None:
    lacking = rewrite(nano_path, tmp_path / "lacking.gguf", values={"moss_transcribe.enc.num_mel_bins": None})
    with pytest.raises(ModelFormatError, match=r"enc\.num_mel_bins"):
        Model(lacking, runtime="pycrispasr")
