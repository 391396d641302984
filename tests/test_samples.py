"""The bundled model hears the samples as they were spoken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from pycrispasr import Model

SAMPLES = Path(__file__).parent.parent / "samples"
RECORDINGS = sorted(path for path in SAMPLES.glob("*") if path.suffix in (".wav", ".mp3"))


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.name)
def test_every_sample_is_transcribed_exactly(tiny: Model, recording: Path) -> None:
    transcript = tiny.transcribe(recording)
    assert transcript.text == recording.with_suffix(".txt").read_text(encoding="utf-8").strip()
    assert transcript.complete


def test_the_samples_have_every_kind_of_recording() -> None:
    infos = [soundfile.info(path) for path in RECORDINGS]
    assert len(infos) >= 4
    assert any(info.duration > 16 for info in infos)
    assert any((info.samplerate, info.channels) == (44100, 2) for info in infos)
    assert any(info.format == "MP3" for info in infos)


def test_the_model_hears_no_words_in_silence_and_noise(tiny: Model) -> None:
    rng = np.random.default_rng(0)
    for loudness in (0, 1e-4, 1e-2, 0.1):
        noise = loudness * rng.standard_normal(3 * 16000)
        assert tiny.transcribe(noise, sample_rate=16000).text == "", loudness
