"""Files in every form that is found in the world, whole and damaged, give the samples that were written into them."""

from __future__ import annotations

import io
import os
import struct
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from pycrispasr import AudioError, AudioNotFoundError, ClosedError, UsageError, audio
from pycrispasr.audio import containers, decoders

from .sound_files import ffmpeg, flash_video, sndfile
from .sounds import make_tones

SECONDS = 2
SOUND = make_tones(SECONDS)  # at 16 kHz


def at(rate: int, channels: int = 1, seconds: float = SECONDS) -> np.ndarray:
    """The sound, below 3.6 kHz so that every rate holds it, `[frames, channels]`, in which each channel is as loud."""
    low = soxr.resample(soxr.resample(make_tones(seconds), 16000, 7200), 7200, rate)
    return np.stack([low] * channels, axis=1).astype(np.float32)


def read(content: audio.Audio, **options: int) -> tuple[np.ndarray, list[str]]:
    """All samples and all warnings."""
    with audio.open(content, **options) as reader:
        blocks = list(reader.blocks())
        assert all(0 < len(block) <= 5 * 16000 and block.dtype == np.float32 and block.ndim == 1 for block in blocks)
        return np.concatenate(blocks), reader.warnings


def error_to(got: np.ndarray, wanted: np.ndarray) -> float:
    """The error's root mean square relative to the sound's."""
    inner = slice(800, min(len(got), len(wanted)) - 800)  # at the ends resamplers and codecs have half a filter only
    return float(np.sqrt(np.mean(np.square(got[inner] - wanted[inner])) / np.mean(np.square(wanted[inner]))))


def aligned(got: np.ndarray, rate: int, wanted: np.ndarray) -> tuple[np.ndarray, float]:
    """`got` at the rate of `wanted`, without what an encoder has put before it, and how many seconds that was."""
    got = soxr.resample(got, 16000, rate)
    size = 2 * max(len(got), len(wanted))
    alike = np.fft.irfft(np.fft.rfft(got, size) * np.conj(np.fft.rfft(wanted, size)))
    late = int(np.argmax(alike[: size // 2]))
    return got[late:], late / rate


WANTED = soxr.resample(at(48000)[:, 0], 48000, 16000)


# ---- Every format ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "subtype", "tolerance"),
    [
        ("WAV", "PCM_U8", 0.1),
        ("WAV", "PCM_24", 1e-3),
        ("WAV", "DOUBLE", 1e-3),
        ("WAV", "ULAW", 0.05),
        ("WAV", "ALAW", 0.05),
        ("WAV", "IMA_ADPCM", 0.2),
        ("WAV", "MS_ADPCM", 0.2),
        ("WAVEX", "PCM_16", 2e-3),
        ("RF64", "PCM_16", 2e-3),
        ("W64", "PCM_16", 2e-3),
        ("CAF", "PCM_16", 2e-3),
        ("CAF", "ALAC_16", 2e-3),
        ("AU", "ULAW", 0.05),
        ("AIFF", "PCM_S8", 0.1),
        ("FLAC", "PCM_24", 1e-3),
        ("OGG", "VORBIS", 0.2),
        ("OGG", "OPUS", 0.2),
        ("MP3", "MPEG_LAYER_III", 0.2),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_what_libsndfile_writes_is_read(kind: str, subtype: str, tolerance: float, channels: int) -> None:
    got, warnings = read(sndfile(at(48000, channels), 48000, format=kind, subtype=subtype))
    assert abs(len(got) - SECONDS * 16000) <= 800  # some codecs fill their last block
    assert error_to(got, WANTED) < tolerance
    assert warnings == []


@pytest.mark.parametrize(
    ("codec", "suffix", "tolerance"),
    [
        ("aac", "m4a", 0.05),
        ("aac", "mp4", 0.05),
        ("alac", "m4a", 2e-3),
        ("libopus", "webm", 0.2),
        ("libopus", "mp4", 0.2),
        ("flac", "mkv", 2e-3),
        ("aac", "mkv", 0.05),
        ("pcm_u8", "mkv", 0.1),
        ("pcm_s24le", "mov", 1e-3),
        ("pcm_f64le", "mov", 1e-3),
        ("libmp3lame", "avi", 0.2),
        ("aac", "ts", 0.05),
        ("aac", "aac", 0.05),
        ("ac3", "ac3", 0.1),
        ("mp2", "mp2", 0.25),
        ("tta", "tta", 0.1),
        ("wavpack", "wv", 0.1),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_what_ffmpeg_writes_is_read(tmp_path: Path, codec: str, suffix: str, tolerance: float, channels: int) -> None:
    got, warnings = read(ffmpeg(tmp_path / f"sound.{suffix}", [at(48000, channels)], 48000, codec=codec))
    assert abs(len(got) - SECONDS * 16000) <= 1200
    wanted = at(48000)[:, 0]
    got, late = aligned(got, 48000, wanted)
    # These do not tell their encoder's delay, or not every version of FFmpeg writes it.
    assert late < (0.05 if suffix in ("ac3", "avi", "aac", "mp2", "ts", "mkv") else 1e-4)
    assert error_to(got, wanted) < tolerance
    assert warnings == []


@pytest.mark.parametrize("rate", [8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 96000, 192000])
@pytest.mark.parametrize("channels", [1, 2, 6, 8])
def test_every_rate_and_layout_gives_the_same_samples(rate: int, channels: int) -> None:
    got, warnings = read(sndfile(at(rate, channels), rate))
    assert abs(len(got) - SECONDS * 16000) <= 1
    assert error_to(got, WANTED) < 5e-3
    assert warnings == []


def test_both_libraries_give_the_same_samples_for_the_same_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, subtype, tolerance in [
        ("WAV", "PCM_U8", 1e-6),
        ("WAV", "PCM_16", 1e-6),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "DOUBLE", 1e-6),
        ("FLAC", "PCM_16", 1e-6),
        ("OGG", "VORBIS", 1e-4),
        ("MP3", "MPEG_LAYER_III", 1e-4),
    ]:
        content = sndfile(at(44100, 2), 44100, format=kind, subtype=subtype)
        one = audio.load(content)
        with monkeypatch.context() as patch:
            patch.setattr(decoders, "_Libsndfile", raise_not_recognised)
            other = audio.load(content)
        assert len(one) == len(other)
        np.testing.assert_allclose(one, other, atol=tolerance, err_msg=f"{kind} {subtype}")


def raise_not_recognised(*_: object) -> None:
    raise soundfile.LibsndfileError(1)


def test_without_pyav_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sound.m4a"
    ffmpeg(path, [at(48000)], 48000)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioError, match=r"sound\.m4a.*pip install 'pycrispasr\[av\]'"):
        audio.open(path)


# ---- Video -----------------------------------------------------------------------------------------------------------


def test_of_several_streams_of_sound_the_first_is_taken(tmp_path: Path) -> None:
    sound = at(48000)
    content = ffmpeg(tmp_path / "film.mkv", [sound, 0.1 * sound[::-1]], 48000, codec="flac", video=SECONDS)
    got, warnings = read(content)
    assert error_to(got, WANTED) < 2e-3
    assert warnings == ["it has 2 sound tracks: the first one is used, see track="]


def test_video_without_sound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "silent.mp4"
    ffmpeg(path, [], 48000, video=1)
    with pytest.raises(AudioError, match=r"silent\.mp4.*no sound in it, only video"):
        audio.open(path)


def test_times_are_those_of_the_picture_where_the_sound_begins_later(tmp_path: Path) -> None:
    content = ffmpeg(tmp_path / "film.mkv", [at(48000)], 48000, codec="flac", video=4, delay=1.5)
    got, _ = read(content)
    assert abs(len(got) - (SECONDS + 1.5) * 16000) <= 200
    assert not got[:23000].any()
    assert error_to(got[24000:], WANTED) < 0.01


def test_files_that_refer_to_others_open_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.ts").write_bytes(ffmpeg(tmp_path / "sound.ts", [at(48000)], 48000))
    (tmp_path / "secret.wav").write_bytes(sndfile(at(48000), 48000))
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n"
    for name, text in {
        "list.m3u8": playlist.format((tmp_path / "secret.ts").as_uri()),
        "web.m3u8": playlist.format("http://127.0.0.1:9/sound.ts"),
        "beside.ffconcat": "ffconcat version 1.0\nfile secret.wav\n",
        "list.ffconcat": f"ffconcat version 1.0\nfile {tmp_path / 'secret.wav'}\n",
    }.items():
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(AudioError, match=name):
            audio.load(path)


# ---- Headers that are wrong ------------------------------------------------------------------------------------------


def wav_with_size(size: int, riff: int | None = None) -> tuple[bytes, np.ndarray]:
    """A WAV file whose header tells this size of its samples, and the samples."""
    content = sndfile(SOUND, 16000)
    place = content.index(b"data") + 4
    riff = struct.unpack("<I", content[4:8])[0] if riff is None else riff
    changed = content[:4] + struct.pack("<I", riff) + content[8:place] + struct.pack("<I", size) + content[place + 4 :]
    return changed, soundfile.read(io.BytesIO(content), dtype="float32")[0]


@pytest.mark.parametrize(
    ("size", "riff"),
    [
        (0, 0),
        (0, None),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, None),
        (0x7FFFF000, 0x7FFFF024),
        (2 * len(SOUND), 0),
        (2 * len(SOUND), 0xFFFFFFFF),
    ],
)
def test_a_wav_file_written_to_a_pipe_is_read_to_its_end(size: int, riff: int | None) -> None:
    content, wanted = wav_with_size(size, riff)
    got, warnings = read(content)
    np.testing.assert_array_equal(got, wanted)
    assert warnings == []


def test_a_size_that_is_odd_is_taken_at_its_word() -> None:
    content, wanted = wav_with_size(2 * len(SOUND) - 1)
    np.testing.assert_array_equal(read(content)[0], wanted[:-1])


@pytest.mark.parametrize("tail", [b"", b"LIST\x04\0\0\0INFO"])
def test_a_wav_file_without_samples_is_empty(tail: bytes) -> None:
    content = sndfile(np.zeros(0), 16000) + tail
    with pytest.raises(AudioError, match="the audio is empty"):
        audio.load(content)


def test_chunks_around_the_samples_are_no_sound() -> None:
    content, wanted = wav_with_size(2 * len(SOUND))
    place = content.index(b"data")
    content = content[:place] + b"LIST\x05\0\0\0abcde\0" + content[place:] + b"LIST\x04\0\0\0INFO"
    np.testing.assert_array_equal(read(content)[0], wanted)


# ---- Files that end too early, or are damaged ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("AIFF", "PCM_16"), ("W64", "PCM_16"), ("RF64", "PCM_16"), ("AU", "PCM_16")],
)
def test_a_file_that_ends_too_early_is_read_and_told_of(kind: str, subtype: str) -> None:
    content = sndfile(at(16000), 16000, format=kind, subtype=subtype)
    got, warnings = read(content[: len(content) // 2])
    assert 0.45 < len(got) / (SECONDS * 16000) < 0.55
    assert error_to(got, at(16000)[:, 0]) < 2e-3
    assert len(warnings) == 1
    assert warnings[0].startswith("it is cut short: its header tells of 2.0")
    assert f"but only {len(got) / 16000:.2f} s are there" in warnings[0]


def test_an_mp3_or_flac_file_that_ends_too_early_is_read_and_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, subtype, words in [
        ("MP3", "MPEG_LAYER_III", ["tells of 10.00 s"]),
        ("FLAC", "PCM_16", ["tells of 10.00 s", "beyond 4.", "beyond 5."]),
    ]:
        content = sndfile(at(16000, seconds=10), 16000, format=kind, subtype=subtype)
        for with_ffmpeg in (True, False):
            with monkeypatch.context() as patch:
                if not with_ffmpeg:
                    patch.setitem(sys.modules, "av", None)
                got, warnings = read(content[: len(content) // 2])
            assert 4 < len(got) / 16000 < 6
            assert error_to(got[:56000], at(16000, seconds=10)[:56000, 0]) < 0.2
            assert any(word in " ".join(warnings) for word in words)


def test_films_that_end_too_early_are_read_and_told_of(tmp_path: Path) -> None:
    for name, options in [("film.mp4", {"movflags": "faststart"}), ("film.mkv", {})]:
        content = ffmpeg(tmp_path / name, [at(48000, seconds=10)], 48000, options=options)
        got, warnings = read(content[: len(content) // 2])
        assert 4 < len(got) / 16000 < 6
        assert "it is cut short" in warnings[-1]


def test_a_film_whose_index_is_missing_is_refused(tmp_path: Path) -> None:
    content = ffmpeg(tmp_path / "film.mp4", [at(48000)], 48000)
    with pytest.raises(AudioError, match=r"cannot be decoded.*FFmpeg: Invalid data"):
        audio.load(content[: len(content) // 2])


@pytest.mark.parametrize("suffix", ["mp3", "m4a", "aac", "flac"])
def test_what_follows_a_damaged_place_is_still_read(tmp_path: Path, suffix: str) -> None:
    codec = {"mp3": "libmp3lame", "flac": "flac"}.get(suffix, "aac")
    content = bytearray(ffmpeg(tmp_path / f"sound.{suffix}", [at(48000, seconds=10)], 48000, codec=codec))
    middle = len(content) // 2
    content[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    got, warnings = read(bytes(content))
    wanted = at(48000, seconds=10)[:, 0]
    begin, _ = aligned(got, 48000, wanted)
    assert error_to(begin[: 4 * 48000], wanted) < 0.2
    assert 9 < len(got) / 16000 < 10.1
    assert np.abs(got[-16000:]).max() > 0.1
    assert warnings


@pytest.mark.parametrize(("kind", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")])
def test_files_that_are_several_one_after_the_other_are_read_to_the_end(
    kind: str, subtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = sndfile(at(16000), 16000, format=kind, subtype=subtype)
    got, warnings = read(content + content)
    assert abs(len(got) / 16000 - 2 * SECONDS) < 0.2
    assert all("packets cannot be decoded" in warning for warning in warnings)  # older FFmpegs: the second's header
    second, _ = aligned(got[SECONDS * 16000 - 1600 :], 16000, at(16000)[:, 0])
    assert error_to(second, at(16000)[:, 0]) < 0.2
    monkeypatch.setitem(sys.modules, "av", None)
    got, warnings = read(content + content)
    assert len(got) == 2 * SECONDS * 16000
    assert warnings == []
    assert read(content + b"TAG" + bytes(125))[1] == []


DAMAGED = {
    "WAV": "PCM_16", "RF64": "PCM_16", "W64": "PCM_16", "AIFF": "PCM_16", "AU": "PCM_16", "CAF": "ALAC_16",
    "SDS": "PCM_16", "NIST": "PCM_16", "VOC": "PCM_16", "FLAC": "PCM_16", "OGG": "VORBIS", "MP3": "MPEG_LAYER_III",
    "m4a": "aac", "mkv": "aac", "ts": "aac", "aac": "aac", "wv": "wavpack", "flv": "",
}  # fmt: skip
CACHE: dict[str, bytes] = {}


def damageable(name: str) -> bytes:
    """A file of one of these formats, made once."""
    if name == "flv":
        return flash_video(1)
    if name not in CACHE:
        if name.isupper():
            CACHE[name] = sndfile(SOUND, 16000, format=name, subtype=DAMAGED[name])
        else:
            with tempfile.TemporaryDirectory() as folder:
                CACHE[name] = ffmpeg(Path(folder) / f"sound.{name}", [at(16000)], 16000, codec=DAMAGED[name])
    return CACHE[name]


@settings(max_examples=200, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(DAMAGED)))
def test_damage_gives_sound_or_an_error_of_ours(data: st.DataObject, name: str) -> None:
    content = bytearray(damageable(name))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, 200) | st.integers(0, len(content) - 1))  # headers are short
        end = place + data.draw(st.integers(0, 8))
        content[place:end] = data.draw(st.binary(max_size=16))
    content = content[: data.draw(st.integers(len(content) // 2, len(content)))]
    try:
        with audio.open(bytes(content), limits=audio.Limits(seconds=60)) as reader:
            for block in reader.blocks():
                assert np.isfinite(block).all()
    except AudioError:
        return
    assert all(isinstance(warning, str) and warning for warning in reader.warnings)


def test_a_codec_that_nobody_knows_is_an_error() -> None:
    content = damageable("mkv")
    assert b"A_AAC" in content
    with pytest.raises(AudioError, match="no decoder for the codec"):
        read(content.replace(b"A_AAC", b"A_XYZ"))


def test_a_place_before_the_beginning_is_not_gone_to(tmp_path: Path) -> None:
    path = tmp_path / "ten"
    path.write_bytes(bytes(10))
    with path.open("rb") as real:
        for file in (real, io.BytesIO(bytes(10))):
            window = containers.Window(file)
            assert window.seek(4) == 4
            assert window.seek(-1) == window.tell() == 4


def test_a_file_that_fails_while_it_is_read_is_an_error_with_its_reason(capfd: pytest.CaptureFixture[str]) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 100_000:
                raise OSError(5, "Input/output error")
            return super().read(size)

    file = Failing(sndfile(at(48000), 48000))
    with audio.open(file) as reader, pytest.raises(AudioError, match="cannot be read: Input/output error"):
        list(reader.blocks())
    assert capfd.readouterr().err == ""


# ---- Blocks and memory -----------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    block=st.integers(1000, 40000),
    rate=st.sampled_from([8000, 16000, 44100]),
    channels=st.integers(1, 3),
    form=st.sampled_from(["array", "MP3", "OGG", "FLAC", "WAV"]),
)
def test_the_length_of_blocks_changes_neither_samples_nor_warnings(
    block: int, rate: int, channels: int, form: str
) -> None:
    sound = np.clip(20 * at(rate, channels), -1, 1)
    options = {}
    content: audio.Audio = sound
    if form == "array":
        options = {"sample_rate": rate}
    else:
        subtype = {"MP3": "MPEG_LAYER_III", "OGG": "VORBIS"}.get(form, "PCM_16")
        content = sndfile(sound[:, :2], rate, format=form, subtype=subtype)
    whole, warnings = read(content, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoders, "BLOCK_FRAMES", block)
        got, again = read(content, **options)
    assert len(got) == len(whole)
    np.testing.assert_allclose(got, whole, atol=1e-6)
    assert again == warnings
    assert warnings


def test_a_last_block_with_fewer_frames_than_channels_is_read() -> None:
    sound = np.zeros((decoders.BLOCK_FRAMES + 3, 6), np.float32)
    sound[-1] = 0.5
    for content, options in ((sndfile(sound, 48000), {}), (sound, {"sample_rate": 48000})):
        assert len(read(content, **options)[0]) == pytest.approx(len(sound) / 3, abs=1)


@pytest.fixture(scope="module")
def long_mp3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quarter of an hour, of a piece that is repeated."""
    path = tmp_path_factory.mktemp("long") / "long.mp3"
    piece = ffmpeg(path, [at(16000, seconds=10)], 16000, codec="libmp3lame", format="mp3", options={"write_xing": "0"})
    path.write_bytes(piece[piece.index(b"\xff\xf3") :] * 90)
    return path


@pytest.mark.parametrize("library", ["libsndfile", "ffmpeg"])
def test_a_long_mp3_is_never_in_memory_whole(long_mp3: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if library == "ffmpeg":
        monkeypatch.setattr(decoders, "_Libsndfile", raise_not_recognised)
    audio.load(sndfile(SOUND, 16000))  # what is imported once
    process = psutil.Process()
    before, highest, seconds = process.memory_info().rss, 0, 0.0
    tracemalloc.start()
    try:
        with audio.open(long_mp3) as reader:
            for samples in reader.blocks():
                seconds += len(samples) / 16000
                highest = max(highest, process.memory_info().rss)
        _, traced = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seconds == pytest.approx(900, rel=0.02)  # 58 MB of samples
    assert traced < 8 << 20
    assert highest - before < 32 << 20
    assert reader.duration == pytest.approx(900, rel=0.05)


def test_a_huge_array_is_converted_in_blocks() -> None:
    sound = np.zeros((20_000_000, 2), np.int16)
    sound[::7] = 9000
    tracemalloc.start()
    try:
        with audio.open(sound, sample_rate=16000) as reader:
            total = sum(map(len, reader.blocks()))
        _, traced = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == len(sound)
    assert traced < 8 << 20


# ---- The reader ------------------------------------------------------------------------------------------------------


def test_the_duration_is_told_beforehand() -> None:
    for content in (sndfile(SOUND, 16000), sndfile(SOUND, 16000, format="MP3", subtype="MPEG_LAYER_III")):
        with audio.open(content) as reader:
            assert reader.duration == pytest.approx(SECONDS, abs=0.1)
    with audio.open(SOUND, sample_rate=8000) as reader:
        assert reader.duration == 2 * SECONDS


def test_a_reader_is_read_once_and_not_after_it_is_closed(tmp_path: Path) -> None:
    with audio.open(SOUND, sample_rate=16000) as reader:
        assert sum(map(len, reader.blocks())) == len(SOUND)
        with pytest.raises(UsageError, match="open it again"):
            reader.blocks()
    with pytest.raises(ClosedError, match="open it again"):
        reader.blocks()
    reader.close()


def test_closing_closes_our_files_and_leaves_the_caller_s_open(tmp_path: Path) -> None:
    process = psutil.Process()
    path = tmp_path / "sound.m4a"
    content = ffmpeg(path, [at(48000)], 48000)
    for _ in range(2):
        with audio.open(path) as reader:
            next(reader.blocks())
        assert str(path) not in [file.path for file in process.open_files()]
    for form in (content, sndfile(SOUND, 16000)):
        file = io.BytesIO(form)
        first, again = audio.load(file), audio.load(file)  # from its beginning each time
        assert not file.closed
        np.testing.assert_array_equal(first, again)
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(AudioError):
        audio.open(tmp_path / "text.wav")
    assert str(tmp_path / "text.wav") not in [file.path for file in process.open_files()]


# ---- What is no file -------------------------------------------------------------------------------------------------


def pour(content: bytes, into: Callable[[], int]) -> threading.Thread:
    """Writes into a pipe from another thread, as another process would."""

    def write() -> None:
        with os.fdopen(into(), "wb") as file:
            file.write(content)

    thread = threading.Thread(target=write)
    thread.start()
    return thread


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are a thing of Unix")
@pytest.mark.parametrize("suffix", ["wav", "mp3", "m4a"])
def test_pipes_with_and_without_a_name_are_read(tmp_path: Path, suffix: str) -> None:
    codec = {"wav": "pcm_s16le", "mp3": "libmp3lame"}.get(suffix, "aac")
    content = ffmpeg(tmp_path / f"sound.{suffix}", [at(48000)], 48000, codec=codec)
    wanted = audio.load(content)
    os.mkfifo(tmp_path / "pipe")
    thread = pour(content, lambda: os.open(tmp_path / "pipe", os.O_WRONLY))
    np.testing.assert_array_equal(audio.load(tmp_path / "pipe"), wanted)
    thread.join()
    end, begin = os.pipe()
    thread = pour(content, lambda: begin)
    with os.fdopen(end, "rb") as file:
        np.testing.assert_array_equal(audio.load(file), wanted)
    thread.join()


def test_a_long_stream_is_kept_on_disk_and_not_in_memory() -> None:
    class Stream:
        """A WAV file of 100 MB that cannot be sought in."""

        left = 100 << 20
        header = sndfile(np.zeros(0), 16000)

        def read(self, size: int) -> bytes:
            if self.header:
                begin, self.header = self.header, b""
                return begin
            size = min(size, self.left)
            self.left -= size
            return b"\x01\x20" * (size // 2)

    tracemalloc.start()
    try:
        with audio.open(Stream()) as reader:  # type: ignore[arg-type]
            total = sum(map(len, reader.blocks()))
        _, traced = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == 50 << 20
    assert traced < 40 << 20


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.SpooledTemporaryFile", lambda size: io.FileIO("/dev/full", "w"))

    class Stream:
        def read(self, size: int) -> bytes:
            return bytes(size)

    with pytest.raises(AudioError, match=r"cannot be kept in.*No space left.*TMPDIR"):
        audio.open(Stream())  # type: ignore[arg-type]


def test_devices_directories_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="directory: name the audio files in it"):
        audio.open(tmp_path)
    with pytest.raises(AudioNotFoundError, match=r"gone\.wav.*no such audio file"):
        audio.open(tmp_path / "gone.wav")
    with pytest.raises(AudioNotFoundError):
        audio.open("a\0b")
    if os.path.exists("/dev/zero"):
        with pytest.raises(AudioError, match=r"/dev/zero.*device"):
            audio.open("/dev/zero")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "locked.wav"
    path.write_bytes(sndfile(SOUND, 16000))
    path.chmod(0)
    with pytest.raises(AudioError, match=r"locked\.wav.*Permission denied"):
        audio.open(path)


# ---- Channels --------------------------------------------------------------------------------------------------------


def test_a_channel_is_picked_from_arrays_and_from_both_libraries(tmp_path: Path) -> None:
    sound = at(16000, 2) * np.array([1, 0.25], np.float32)
    for content, options in (
        (sound, {"sample_rate": 16000}),
        (sndfile(sound, 16000, subtype="FLOAT"), {}),
        (ffmpeg(tmp_path / "sound.mkv", [sound], 16000, codec="pcm_f32le"), {}),
    ):
        for channel in (0, 1, np.int64(1)):
            got, _ = read(content, channel=channel, **options)
            np.testing.assert_allclose(got, sound[:, channel], atol=1e-6)
        np.testing.assert_allclose(read(content, **options)[0], sound.mean(axis=1), atol=1e-6)
        with pytest.raises(AudioError, match="there is no channel 2: the audio has 2 channels, 0 to 1"):
            audio.open(content, channel=2, **options)


def test_a_channel_that_cannot_be_is_refused_by_value() -> None:
    with pytest.raises(AudioError, match="there is no channel 1: the audio has one channel, 0"):
        audio.load(SOUND, sample_rate=16000, channel=1)
    for channel in (-1, 0.5, "left", True):
        with pytest.raises(AudioError, match=f"channel cannot be {channel!r}"):
            audio.load(SOUND, sample_rate=16000, channel=channel)  # type: ignore[arg-type]


def test_channels_not_taken_may_hold_anything() -> None:
    sound = np.stack([SOUND, np.full_like(SOUND, np.nan)], axis=1)
    np.testing.assert_array_equal(audio.load(sound, sample_rate=16000, channel=0), SOUND)
    with pytest.raises(AudioError, match="finite"):
        audio.load(sound, sample_rate=16000)


# ---- Values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_refused_with_its_time(tmp_path: Path, value: float) -> None:
    sound = at(44100, seconds=12)[:, 0]
    sound[10 * 44100] = value
    for content, options in ((sndfile(sound, 44100, subtype="FLOAT"), {}), (sound, {"sample_rate": 44100})):
        with pytest.raises(AudioError, match=rf"a sample at 10\.000 s is {value}: every sample must be a finite"):
            audio.load(content, **options)


def test_values_far_beyond_one_are_refused_and_others_kept() -> None:
    loud = SOUND * np.float32(15.9 / np.abs(SOUND).max())
    np.testing.assert_array_equal(audio.load(sndfile(loud, 16000, subtype="FLOAT")), loud)
    loud[8000] = -17
    with pytest.raises(AudioError, match=r"samples at 0\.500 s reach 17.*divide 16-bit samples by 32768"):
        audio.load(sndfile(loud, 16000, subtype="FLOAT"))


def test_a_clean_recording_has_no_warnings() -> None:
    for path in sorted((Path(__file__).parent.parent / "samples").glob("*.wav")):
        assert read(path)[1] == []
    assert read(SOUND / np.abs(SOUND).max(), sample_rate=16000)[1] == []  # reaches full scale, once


def test_clipping_is_told_of_and_changes_nothing() -> None:
    clipped = np.clip(12 * SOUND, -1, 1)
    for content, options in (
        (clipped, {"sample_rate": 16000}),
        ((clipped * 32767).astype(np.int16), {"sample_rate": 16000}),
        (sndfile(clipped, 16000), {}),
        (np.stack([clipped, SOUND], axis=1), {"sample_rate": 16000}),  # the mean of both is not at full scale
    ):
        got, warnings = read(content, **options)
        assert len(got) == len(SOUND)
        assert len(warnings) == 1
        share = float(warnings[0].split("it is clipped: ")[1].split("%")[0])
        assert 1 < share < 60


def test_silence_is_told_of() -> None:
    for content in (np.zeros(16000, np.float32), np.ones((16000, 2), np.int16)):
        assert read(content, sample_rate=16000)[1] == ["it is silent: no sample is above -80 dB of full scale"]


def test_an_offset_is_told_of_where_it_is_larger_than_the_sound() -> None:
    quiet = SOUND / 4
    size = float(np.sqrt(np.mean(np.square(quiet))))
    assert read(quiet + 0.5 * size, sample_rate=16000)[1] == []
    got, warnings = read((quiet + 2 * size).astype(np.float32), sample_rate=16000)
    np.testing.assert_array_equal(got, (quiet + 2 * size).astype(np.float32))
    assert len(warnings) == 1
    assert f"a constant offset of {2 * size + quiet.mean():.3f}" in warnings[0]


def test_channels_that_cancel_each_other_are_told_of() -> None:
    sound = np.stack([SOUND, -0.98 * SOUND], axis=1)
    assert "channel=0" in read(sound, sample_rate=16000)[1][0]
    assert read(sound, sample_rate=16000, channel=1)[1] == []
    assert read(np.stack([SOUND, 0 * SOUND], axis=1), sample_rate=16000)[1] == []
