"""Audio as it comes out of a pipe: raw samples of every kind, WAV headers, and what FFmpeg decodes as it comes."""

from __future__ import annotations

import io
import itertools
import os
import struct
import subprocess
import sys
import threading
import time
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pycrispasr import AudioError, UsageError, audio
from pycrispasr.audio import pipes

from .sound_files import sndfile
from .sounds import SAMPLES

RATE = 16000
RNG = np.random.default_rng(3)
SOUND = np.convolve(RNG.normal(0, 0.2, 20000), np.ones(8) / 8, "same").astype(np.float32)


class Pieces(io.RawIOBase):
    """A stream that gives what has come: pieces of these lengths, again and again."""

    def __init__(self, content: bytes, lengths: tuple[int, ...] = (1000,)) -> None:
        self._content, self._lengths = content, itertools.cycle(lengths)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        length = min(size, next(self._lengths))
        piece, self._content = self._content[:length], self._content[length:]
        return piece


def hear(content: bytes, lengths: tuple[int, ...] = (1000,), **options: object) -> tuple[np.ndarray, list[str]]:
    with audio.listen(Pieces(content, lengths), **options) as reader:  # type: ignore[arg-type]
        return np.concatenate(list(reader.blocks())), reader.warnings


def raw(sound: np.ndarray, form: str) -> bytes:
    subtype, _, order = pipes.FORMATS[form]
    file = io.BytesIO()
    soundfile.write(file, sound, RATE, format="RAW", subtype=subtype, endian=order)
    return file.getvalue()


@pytest.mark.parametrize("form", pipes.FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_raw_samples_of_every_format_are_heard(form: str, channels: int) -> None:
    sound = np.stack([SOUND, -SOUND / 2][:channels], axis=1)
    got, warnings = hear(raw(sound, form), (7, 1, 12000), format=form, channels=channels)
    tolerance = 0.05 if form in ("s8", "u8", "alaw", "mulaw") else 2e-4
    np.testing.assert_allclose(got, sound.mean(axis=1), atol=tolerance)
    assert warnings == []


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=5), st.integers(1, 4), st.integers(0, 300))
def test_how_a_stream_is_divided_changes_nothing(lengths: list[int], channels: int, cut: int) -> None:
    """Neither in samples nor in a header; what is left of a frame at the end is no sound."""
    sound = np.stack([SOUND[:4000]] * channels, axis=1)
    content = raw(sound, "s24le")
    whole, _ = hear(content, format="s24le", channels=channels)
    got, _ = hear(content[: len(content) - cut], tuple(lengths), format="s24le", channels=channels)
    np.testing.assert_array_equal(got, whole[: (len(content) - cut) // (3 * channels)])
    wav = sndfile(sound, RATE)
    np.testing.assert_array_equal(hear(wav, tuple(lengths))[0], audio.load(wav))


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
@pytest.mark.parametrize("form", ["WAV", "WAVEX", "RF64"])
def test_a_wav_header_tells_rate_channels_and_format(form: str, subtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    file = io.BytesIO()
    soundfile.write(file, np.stack([SOUND, SOUND / 2], axis=1), 44100, format=form, subtype=subtype)
    got, warnings = hear(file.getvalue(), (13, 4000))
    np.testing.assert_allclose(got, audio.load(file.getvalue()), atol=1e-6)
    assert warnings == []


def wav_of_a_pipe(size: int) -> bytes:
    content = bytearray(sndfile(SOUND, RATE))
    at = content.index(b"data") + 4
    content[at : at + 4] = struct.pack("<I", size)
    return bytes(content)


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x80000000, 0xFFFFFFFF])
def test_a_size_that_was_never_filled_in_means_to_the_end(size: int) -> None:
    got, warnings = hear(wav_of_a_pipe(size))
    np.testing.assert_array_equal(got, audio.load(sndfile(SOUND, RATE)))
    assert warnings == []


def test_samples_beyond_the_size_are_heard_and_told_of() -> None:
    got, warnings = hear(wav_of_a_pipe(8000))
    assert len(got) == len(SOUND)
    assert warnings == ["its header tells of 0.25 s, but the samples go on: they are read to their end"]


def test_wav_files_behind_each_other_and_chunks_behind_samples_are_understood() -> None:
    one, two = sndfile(SOUND, RATE), sndfile(np.stack([SOUND] * 2, axis=1), 48000)
    chunk = b"LIST" + struct.pack("<I", 5) + b"INFOx\0"
    got, warnings = hear(one + chunk + two + chunk)
    np.testing.assert_allclose(got, np.concatenate([audio.load(one), audio.load(two)]), atol=1e-6)
    assert warnings == []


def encoded(kind: str, codec: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as out:
        stream = out.add_stream(codec, rate=48000 if codec == "libopus" else 44100)
        stream.layout = "mono"
        stream.bit_rate = 96000
        frame = av.AudioFrame.from_ndarray(SOUND[None], format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), 0
        resampler = av.AudioResampler(
            stream.codec_context.format or "s16",
            "mono",
            stream.rate,
            frame_size=stream.codec_context.frame_size or 1024,
        )
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            out.mux(stream.encode(part))
    return file.getvalue()


KINDS = [
    ("ogg", "libopus"), ("ogg", "flac"), ("flac", "flac"), ("mp3", "libmp3lame"), ("adts", "aac"),
    ("mpegts", "aac"),
    ("webm", "libopus"), ("matroska", "pcm_s16le"), ("au", "pcm_s16be"), ("aiff", "pcm_s16be"), ("caf", "pcm_s16le"),
    ("w64", "pcm_s16le"), ("wav", "adpcm_ms"), ("asf", "wmav2"), ("ac3", "ac3"), ("flv", "aac"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "codec"), KINDS, ids=str)
def test_what_ffmpeg_decodes_as_it_comes_is_recognised(kind: str, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    content = encoded(kind, codec)
    got, _ = hear(content, (17, 3000))
    assert len(got) / RATE == pytest.approx(len(SOUND) / RATE, abs=0.15)
    shift = max(range(-200, 3000), key=lambda at: float(np.dot(got[4000 + at : 12000 + at], SOUND[4000:12000])))
    like = np.corrcoef(got[4000 + shift : 12000 + shift], SOUND[4000:12000])[0, 1]
    assert like > 0.6
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(
        AudioError, match=r"the stream: it is .*, for which PyAV is needed: pip install 'pycrispasr\[av\]'"
    ):
        hear(content)


@settings(max_examples=60, deadline=None)
@given(
    st.binary(min_size=4, max_size=64),
    st.sampled_from([b"", b"\xff\xfb", b"\xff\xf1", b"\x47", b"\x0b\x77", b"\xff\xff"]),
)
def test_samples_that_only_begin_like_a_format_are_samples(content: bytes, first: bytes) -> None:
    samples = first + b"".join(content for _ in range(100))
    # These are no mere likeness: a format's signature, and the packets of a transport stream.
    assume(not samples.startswith(tuple(pipes._MAGIC)))
    assume(set(samples[::188]) != {0x47})
    got, _ = hear(samples, format=None)
    wanted = np.frombuffer(samples[: len(samples) // 2 * 2], "<i2")
    np.testing.assert_array_equal(got, (wanted / 32768).astype(np.float32))


@pytest.mark.parametrize("kind", ["raw", "ogg"])
def test_sound_is_heard_as_it_comes_and_not_at_its_end(kind: str) -> None:
    content = raw(np.tile(SOUND, 20), "s16le") if kind == "raw" else encoded("ogg", "libopus") * 2
    reader, writer = os.pipe()
    heard = threading.Event()

    def feed() -> None:
        half = len(content) // 2
        os.write(writer, content[:half])
        assert heard.wait(20)
        os.write(writer, content[half:])
        os.close(writer)

    threading.Thread(target=feed, daemon=True).start()
    with io.FileIO(reader) as source, audio.listen(source) as got:
        blocks = got.blocks()
        assert next(blocks).size
        heard.set()
        assert sum(map(len, blocks))


def test_a_stream_that_does_not_block_is_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)

    def feed() -> None:
        time.sleep(0.2)
        os.write(writer, raw(SOUND[:8000], "s16le"))
        os.close(writer)

    threading.Thread(target=feed, daemon=True).start()
    with io.FileIO(reader) as source, audio.listen(source) as got:
        assert sum(map(len, got.blocks())) == 8000


@pytest.mark.parametrize(
    ("options", "content", "error", "words"),
    [
        ({"format": "s20"}, b"", UsageError, "there is no format 's20': choose one of s8, u8"),
        ({"channels": 0}, b"", UsageError, "channels cannot be 0"),
        ({"channels": 65}, b"", UsageError, "channels cannot be 65"),
        ({"sample_rate": 10}, b"", AudioError, "sample_rate cannot be 10"),
        ({}, b"", AudioError, "the stream: no audio came"),
        ({"format": "f32le"}, b"\xff\xff\xff\xff" * 9, AudioError, "the stream: "),
        ({"channel": 1}, b"ab" * 9, AudioError, "there is no channel 1"),
        ({}, b"OggS" + bytes(3000), AudioError, "the stream: it is ogg, but cannot be decoded"),
        ({}, sndfile(SOUND, RATE)[:44], AudioError, "the stream: no audio came"),
    ],
)
def test_what_cannot_be_heard_is_an_error_that_names_it(
    options: dict[str, object], content: bytes, error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        hear(content, **options)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["date.mp3", "digits.wav"])
def test_the_command_hears_a_file_through_a_pipe(name: str) -> None:
    path = SAMPLES / name
    command = [sys.executable, "-m", "pycrispasr", "live", "-m", "tiny", "-"]
    done = subprocess.run(command, input=path.read_bytes(), capture_output=True, timeout=60, check=True)
    assert done.stdout.decode().strip() == path.with_suffix(".txt").read_text(encoding="utf-8").strip()
    assert done.stderr == b""
