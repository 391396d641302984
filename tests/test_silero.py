"""The voice activity detector hears speech where it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pycrispasr import audio
from pycrispasr.segmentation.silero import FRAME, VoiceDetector

SAMPLES = Path(__file__).parent.parent / "samples"


def test_blocks_do_not_change_a_bit() -> None:
    sound = audio.load(SAMPLES / "spelling.wav")
    whole = VoiceDetector().push(sound)
    assert len(whole) == len(sound) // FRAME
    rng = np.random.default_rng(0)
    for most in (1000, 5000):
        detector, got, start = VoiceDetector(), [], 0
        while start < len(sound):
            end = start + int(rng.integers(0, most))
            got += detector.push(sound[start:end])
            start = end
        assert got == whole


@pytest.mark.parametrize("name", ["hello.wav", "digits.wav", "spelling.wav", "decimal.wav", "thank-you-goodbye.wav"])
def test_speech_is_found_between_silences(name: str) -> None:
    sound = audio.load(SAMPLES / name)
    quiet = np.zeros(31 * FRAME, np.float32)
    speech = np.array(VoiceDetector().push(np.concatenate([quiet, sound, quiet]))) > 0.5
    found = np.flatnonzero(speech)
    assert 31 <= found[0] < 31 + 20
    assert len(speech) - 31 - 20 < found[-1] <= len(speech) - 31 + 5
    assert speech[found[0] : found[-1]].mean() > 0.8


def test_silence_and_noise_are_no_speech() -> None:
    rng = np.random.default_rng(0)
    for loudness in (0.0, 1e-4, 1e-2, 0.1):
        noise = (loudness * rng.standard_normal(3 * 16000)).astype(np.float32)
        assert max(VoiceDetector().push(noise)) < 0.5, loudness
