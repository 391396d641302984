"""Audio in every form becomes the same samples, and what cannot be right is refused."""

from __future__ import annotations

import io
import pathlib
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pycrispasr import AudioError, AudioNotFoundError, audio

from .sounds import make_tones


def tone(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def assert_is_tone(samples: np.ndarray, seconds: float, tolerance: float) -> None:
    """`samples` are the 440 Hz tone at 16 kHz, but for their ends, where a resampler has half a filter only."""
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert abs(len(samples) - seconds * 16000) <= 1
    inner = slice(1600, -1600)
    np.testing.assert_allclose(samples[inner], tone(seconds + 1, 16000)[: len(samples)][inner], atol=tolerance)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 24000, 44100, 48000, 96000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_channel_count_becomes_mono_at_16_khz(rate: int, channels: int) -> None:
    one = tone(1.5, rate)
    sound = one if channels == 1 else np.stack([one] * channels, axis=1)
    assert_is_tone(audio.load(sound, sample_rate=rate), 1.5, 2e-4)


@pytest.mark.parametrize(
    ("dtype", "scale", "tolerance"),
    [
        ("float32", 1, 1e-6),
        ("float64", 1, 1e-6),
        (">f4", 1, 1e-6),
        ("int16", 32768, 1e-4),
        (">i2", 32768, 1e-4),
        ("int32", 2**31, 1e-6),
    ],
)
def test_every_array_type_gives_the_same_samples(dtype: str, scale: int, tolerance: float) -> None:
    sound = (tone(1, 16000) * scale).astype(dtype)
    assert_is_tone(audio.load(sound, sample_rate=16000), 1, tolerance)


def test_full_scale_of_integers_is_one() -> None:
    extremes = np.array([-32768, 0, 32767], dtype=np.int16)
    np.testing.assert_allclose(audio.to_mono(extremes), [-1, 0, 1], atol=1e-4)
    extremes = np.array([-(2**31), 0, 2**31 - 1], dtype=np.int32)
    np.testing.assert_allclose(audio.to_mono(extremes), [-1, 0, 1], atol=1e-6)


def test_channels_are_averaged_and_not_added() -> None:
    loud = np.full((100, 2), 32767, dtype=np.int16)
    loud[:, 1] = -32767
    assert not audio.to_mono(loud).any()
    loud[:, 1] = 32767
    np.testing.assert_allclose(audio.to_mono(loud), 1, atol=1e-4)


def test_one_channel_in_two_dimensions_and_strided_arrays_are_read() -> None:
    sound = make_tones(0.5)
    np.testing.assert_array_equal(audio.load(sound[:, None], sample_rate=16000), sound)
    np.testing.assert_array_equal(audio.load(np.repeat(sound, 2)[::2], sample_rate=16000), sound)


@pytest.mark.parametrize(
    ("suffix", "subtype", "tolerance"),
    [
        ("wav", "PCM_U8", 1e-2),
        ("wav", "PCM_16", 1e-4),
        ("wav", "PCM_24", 1e-5),
        ("wav", "PCM_32", 1e-5),
        ("wav", "FLOAT", 1e-5),
        ("wav", "DOUBLE", 1e-5),
        ("wav", "ULAW", 3e-2),
        ("flac", "PCM_16", 1e-4),
        ("aiff", "PCM_16", 1e-4),
        ("ogg", "VORBIS", 3e-2),
        ("mp3", "MPEG_LAYER_III", 3e-2),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_file_format_is_read(tmp_path: Path, suffix: str, subtype: str, tolerance: float, channels: int) -> None:
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, np.stack([tone(1, 16000)] * channels, axis=1), 16000, subtype=subtype)
    assert_is_tone(audio.load(path), 1, tolerance)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000])
def test_a_file_at_any_rate_is_converted(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(5, rate), rate, subtype="FLOAT")
    assert_is_tone(audio.load(path), 5, 2e-4)


def test_path_bytes_and_file_objects_give_the_same_samples(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    soundfile.write(path, make_tones(0.5), 16000)
    wanted = audio.load(path)
    content = path.read_bytes()

    class NotSeekable:
        def __init__(self) -> None:
            self._file = io.BytesIO(content)

        def read(self, size: int = -1) -> bytes:
            return self._file.read(size)

    for form in (str(path), content, bytearray(content), memoryview(content), io.BytesIO(content), NotSeekable()):
        np.testing.assert_array_equal(audio.load(form), wanted)
    with path.open("rb") as file:
        np.testing.assert_array_equal(audio.load(file), wanted)


def test_file_names_may_hold_any_character(tmp_path: Path) -> None:
    path = tmp_path / "Ünïcode 语音 'quoted'.wav"
    soundfile.write(path, make_tones(0.1), 16000)
    assert len(audio.load(path)) == 1600


def test_a_file_s_own_rate_may_be_confirmed_but_not_contradicted(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    soundfile.write(path, tone(0.5, 8000), 8000)
    assert len(audio.load(path, sample_rate=8000)) == 8000
    with pytest.raises(AudioError, match=r"sound.wav.*8000.*16000"):
        audio.load(path, sample_rate=16000)


def test_blocks_of_any_length_give_what_the_whole_gives() -> None:
    sound = make_tones(3)
    whole = audio.load(sound, sample_rate=44100)
    for block in (1, 1000, 4097):
        sound_in_use = sound[:5000] if block == 1 else sound
        resampler = audio.Resampler(44100)
        parts = [resampler.push(sound_in_use[i : i + block]) for i in range(0, len(sound_in_use), block)]
        joined = np.concatenate([*parts, resampler.finish()])
        wanted = whole if block > 1 else audio.load(sound_in_use, sample_rate=44100)
        np.testing.assert_allclose(joined, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(0, np.float32), ["empty", "(0,)"]),
        (np.zeros((0, 2), np.float32), ["empty", "(0, 2)"]),
        (np.zeros((4, 4, 4), np.float32), ["(4, 4, 4)", "[frames, channels]"]),
        (np.zeros((), np.float32), ["shape ()"]),
        (np.zeros((2, 48000), np.float32), ["(2, 48000)", "audio.T"]),
        (np.zeros((1, 48000), np.float32), ["(1, 48000)", "audio.T"]),
        (np.zeros((1000, 65), np.float32), ["(1000, 65)"]),
        (np.zeros((1000, 0), np.float32), ["(1000, 0)"]),
        (np.zeros(1000, np.uint8), ["uint8", "float32"]),
        (np.zeros(1000, np.int8), ["int8"]),
        (np.zeros(1000, bool), ["bool"]),
        (np.zeros(1000, np.int64), ["int64"]),
        (np.zeros(1000, np.uint16), ["uint16"]),
        (np.zeros(1000, np.float16), ["float16"]),
        (np.zeros(1000, np.complex64), ["complex64"]),
        (np.zeros(1000, object), ["object"]),
        (np.array(["a", "b"]), ["U1"]),
        (np.array([0, 0.5, np.nan, 0], np.float32), ["nan", "finite"]),
        (np.array([0, 0.5, -np.inf, 0]), ["-inf", "finite"]),
        (np.array([[np.inf, -np.inf], [0, 0]]), ["nan", "finite"]),
        (np.array([0, 12345.0, 3], np.float32), ["12345", "32768"]),
    ],
    ids=lambda value: f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else "",
)
def test_an_array_that_cannot_be_right_is_refused(array: np.ndarray, words: list[str]) -> None:
    with pytest.raises(AudioError) as caught:
        audio.load(array, sample_rate=16000)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "rate", [0, -16000, None, 999, 1e9, 16000.5, float("nan"), float("inf"), True, "16000", 10**30]
)
def test_a_rate_that_cannot_be_right_is_refused_by_value(rate: object) -> None:
    with pytest.raises(AudioError, match="sample_rate") as caught:
        audio.load(np.zeros(16000, np.float32), sample_rate=rate)  # type: ignore[arg-type]
    assert rate is None or repr(rate) in str(caught.value)


@pytest.mark.parametrize("rate", [16000, 16000.0, np.int64(16000), np.float64(16000)])
def test_a_rate_may_be_any_kind_of_whole_number(rate: float) -> None:
    assert len(audio.load(np.zeros(160, np.float32), sample_rate=rate)) == 160


@pytest.mark.parametrize("thing", [None, 5, [0.0, 0.1], {"array": 1}], ids=repr)
def test_what_is_no_audio_at_all_is_refused(thing: object) -> None:
    with pytest.raises(AudioError, match=type(thing).__name__):
        audio.load(thing, sample_rate=16000)  # type: ignore[arg-type]


def test_unreadable_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(AudioNotFoundError, match=r"missing\.wav"):
        audio.load(tmp_path / "missing.wav")
    with pytest.raises(FileNotFoundError):
        audio.load("no/such/file.mp3")
    with pytest.raises(AudioNotFoundError):
        audio.load("x" * 5000)
    with pytest.raises(AudioError, match="directory"):
        audio.load(tmp_path)
    for name, content in {
        "empty.wav": b"",
        "text.wav": b"this is no sound\n" * 100,
        "header.wav": b"RIFF",
        "text.raw": b"\0" * 100,
        "noise.mp3": np.random.default_rng(0).bytes(5000),
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(AudioError, match=name):
            audio.load(path)
        with pytest.raises(AudioError):
            audio.load(content)
    soundfile.write(tmp_path / "silent.wav", np.zeros(0), 16000)
    with pytest.raises(AudioError, match=r"silent\.wav.*empty"):
        audio.load(tmp_path / "silent.wav")


def test_a_file_cut_anywhere_is_read_or_refused(tmp_path: Path) -> None:
    for suffix in ("wav", "flac", "ogg", "mp3"):
        path = tmp_path / f"sound.{suffix}"
        soundfile.write(path, make_tones(1), 16000)
        content = path.read_bytes()
        for end in range(0, len(content), len(content) // 17):
            try:
                samples = audio.load(content[:end])
            except AudioError:
                continue
            assert 0 < len(samples) <= 17000


def test_a_file_with_nan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.wav"
    soundfile.write(path, np.array([0.0, np.nan, 0.0] * 100), 16000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"broken\.wav.*nan"):
        audio.load(path)


def test_a_text_file_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("hello")
    with path.open(encoding="utf-8") as file, pytest.raises(AudioError, match="'rb'"):
        audio.load(file)  # type: ignore[arg-type]


def test_a_path_object_with_its_own_type_is_a_path(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", make_tones(0.1), 16000)
    assert len(audio.load(pathlib.PurePath(tmp_path, "a.wav"))) == 1600


def test_reading_leaves_the_caller_s_array_alone() -> None:
    sound = make_tones(0.1)
    before = sound.copy()
    audio.load(sound, sample_rate=16000)
    np.testing.assert_array_equal(sound, before)
