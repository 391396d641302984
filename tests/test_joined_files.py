"""Files that are several one behind the other, or lack some of their sound: all is heard, once, and in its place."""

from __future__ import annotations

import io
import itertools
import re
import struct
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr

import pycrispasr
from pycrispasr import AudioError, Model, audio
from pycrispasr.audio import containers

from .command import run
from .sound_files import ffmpeg, sndfile
from .sounds import SAMPLES, make_tones

RATE = 16000
RNG = np.random.default_rng(5)
# Noise is like itself at one place only.
ONE, TWO = (np.convolve(RNG.normal(0, 0.1, n), np.ones(8) / 8, "same").astype(np.float32) for n in (12000, 20000))


def read(content: object, **options: int) -> tuple[np.ndarray, list[str]]:
    with audio.open(content, **options) as reader:  # type: ignore[arg-type]
        return np.concatenate(list(reader.blocks())), reader.warnings


def places(got: np.ndarray, wanted: np.ndarray) -> list[float]:
    """Seconds at which a sound stands in another one, wherever it is at least half as loud there."""
    size = len(got) + len(wanted)
    alike = np.fft.irfft(np.fft.rfft(got, size) * np.conj(np.fft.rfft(wanted, size)), size)[: len(got)]
    found = []
    while (best := int(np.argmax(alike))) >= 0 and alike[best] > 0.5 * float(np.square(wanted).sum()):
        found.append(best / RATE)
        alike[max(0, best - 1600) : best + 1600] = 0
    return sorted(found)


def mp3(sound: np.ndarray, *, xing: bool = True, rate: int = RATE, channels: int = 1, kbps: int = 64) -> bytes:
    """An MP3 file without tags."""
    file = io.BytesIO()
    options = {"write_xing": str(int(xing)), "id3v2_version": "0", "write_id3v1": "0"}
    with av.open(file, "w", format="mp3", options=options) as container:
        stream = container.add_stream("libmp3lame", rate=rate, layout={1: "mono", 2: "stereo"}[channels])
        stream.bit_rate = kbps * 1000
        frame = av.AudioFrame.from_ndarray(sound[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), 0
        context = stream.codec_context
        resampler = av.AudioResampler(context.format, context.layout, rate, frame_size=1152 if rate > 24000 else 576)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode())
    return file.getvalue()


def id3v2(size: int) -> bytes:
    return (
        b"ID3\3\0\0"
        + bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
        + bytes(RNG.integers(1, 255, size, np.uint8))
    )


APE = (
    b"APETAGEX"
    + struct.pack("<IIII8x", 2000, 132, 1, 0xA0000000)
    + b"x" * 100
    + b"APETAGEX"
    + struct.pack("<IIII8x", 2000, 132, 1, 0x80000000)
)
BETWEEN = {
    "nothing": b"",
    "ID3v2": id3v2(300),
    "two of ID3v2": id3v2(300) + id3v2(20),
    "a large picture": id3v2(400_000),
    "ID3v1": b"TAG" + b"part one".ljust(125),
    "ID3v1 and ID3v2": b"TAG" + b"part one".ljust(125) + id3v2(300),
    "APE": APE,
    "zeros": bytes(2000),
    "many zeros": bytes(3_000_000),
}


@pytest.fixture(params=[True, False], ids=["with PyAV", "without PyAV"])
def with_pyav(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setitem(sys.modules, "av", None)
    return bool(request.param)


# ---- MP3 -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mp3s() -> dict[str, bytes]:
    return {
        "one": mp3(ONE),
        "two": mp3(TWO),
        "one without Xing": mp3(ONE, xing=False),
        "two without Xing": mp3(TWO, xing=False),
        "two at 44100 Hz": mp3(TWO, rate=44100, channels=2, kbps=128),
    }


@pytest.mark.parametrize("second", ["two", "two without Xing", "two at 44100 Hz"])
@pytest.mark.parametrize("between", BETWEEN)
def test_every_part_of_joined_mp3_files_is_heard(
    mp3s: dict[str, bytes], between: str, second: str, with_pyav: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    got, warnings = read(mp3s["one"] + BETWEEN[between] + mp3s[second] + BETWEEN[between] + mp3s["one"])
    delay = 0.08 if "without" in second else 0.002  # of an encoder that nothing tells of
    assert places(got, ONE) == pytest.approx([0, (len(ONE) + len(TWO)) / RATE], abs=2 * delay)
    assert places(got, TWO) == pytest.approx([len(ONE) / RATE], abs=delay)
    assert warnings == []
    assert capfd.readouterr() == ("", "")


def test_rubbish_between_mp3_files_is_told_of(
    mp3s: dict[str, bytes], with_pyav: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    got, warnings = read(mp3s["one"] + RNG.bytes(100_000) + mp3s["two"])
    assert places(got, TWO) == pytest.approx([len(ONE) / RATE], abs=0.04)
    assert len(warnings) == 1
    assert re.fullmatch(r"it is damaged at 0\.[78]\d s: \d{5,6} bytes there are no MP3", warnings[0])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("before", [bytes(5000), id3v2(500), id3v2(0) + id3v2(100_000), BETWEEN["APE"]], ids=len)
def test_what_stands_before_an_mp3_file_is_passed_over(mp3s: dict[str, bytes], before: bytes) -> None:
    got, warnings = read(before + mp3s["two"])
    assert places(got, TWO) == pytest.approx([0], abs=0.08)
    assert warnings == []


def test_a_tag_that_does_not_tell_its_length_hides_nothing(mp3s: dict[str, bytes], with_pyav: bool) -> None:
    got, _ = read(b"ID3\3\0\0\0\0\0\0" + id3v2(300_000)[10:] + mp3s["two"])
    assert places(got, TWO) == pytest.approx([0], abs=0.08)


def test_an_mp3_file_without_a_length_in_its_header_is_no_shorter_than_it_seems(
    with_pyav: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its quiet beginning has frames of few bytes, from which an estimate would go wrong."""
    loud = np.concatenate([mp3_frames(np.zeros(4 * RATE, np.float32), 8), mp3_frames(np.tile(TWO, 6), 64)])
    opened: list[object] = []
    monkeypatch.setattr(containers, "Window", lambda *args, kind=containers.Window: opened.append(1) or kind(*args))
    with audio.open(loud.tobytes()) as reader:
        seconds = sum(map(len, reader.blocks())) / RATE
        assert reader.duration == pytest.approx(seconds, abs=0.1) == pytest.approx(4 + 6 * len(TWO) / RATE, abs=0.3)
        assert reader.warnings == []


def mp3_frames(sound: np.ndarray, kbps: int) -> np.ndarray:
    return np.frombuffer(mp3(sound, xing=False, kbps=kbps), np.uint8)


def test_an_mp3_file_that_is_shorter_than_its_header_says_is_told_of(
    mp3s: dict[str, bytes], with_pyav: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    _, warnings = read(mp3s["two"][: len(mp3s["two"]) * 2 // 3])
    assert len(warnings) == 1
    assert warnings[0].startswith("it is cut short: its header tells of 1.25 s")
    assert capfd.readouterr() == ("", "")


# ---- OGG, FLAC, AAC --------------------------------------------------------------------------------------------------


def ogg(sound: np.ndarray, codec: str, *, rate: int = RATE, channels: int = 1) -> bytes:
    if codec == "vorbis":
        resampled = soxr.resample(sound, RATE, rate)
        return sndfile(np.stack([resampled] * channels, axis=1), rate, format="OGG", subtype="VORBIS")
    file = io.BytesIO()
    with av.open(file, "w", format="ogg", options={"page_duration": "100000"}) as container:
        stream = container.add_stream(codec, rate=rate, layout={1: "mono", 2: "stereo"}[channels])
        frame = av.AudioFrame.from_ndarray(sound[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), 0
        context = stream.codec_context
        resampler = av.AudioResampler(context.format, context.layout, rate, frame_size=context.frame_size or 1024)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode())
    return file.getvalue()


CODECS = ["vorbis", *(codec for codec in ("libopus", "flac", "libspeex") if codec in av.codecs_available)]


@pytest.mark.parametrize("other", [{}, {"rate": 48000}, {"channels": 2}], ids=str)
@pytest.mark.parametrize("codec", CODECS)
def test_every_link_of_an_ogg_file_is_heard(codec: str, other: dict[str, int]) -> None:
    if codec == "libspeex":
        other = {"rate": 32000} if "rate" in other else other
    elif codec == "libopus" and "rate" not in other:
        other = {**other, "rate": 48000}
    first = ogg(ONE, codec, rate=48000 if codec == "libopus" else RATE)
    got, warnings = read(first + ogg(TWO, codec, **other) + first)
    about = 0.03 if codec == "libspeex" else 0.005  # its encoder's delay
    assert places(got, ONE) == pytest.approx([0, (len(ONE) + len(TWO)) / RATE], abs=2 * about)
    assert places(got, TWO) == pytest.approx([len(ONE) / RATE], abs=about)
    assert warnings == []


def pages(content: bytes) -> list[bytes]:
    starts = [match.start() for match in re.finditer(rb"OggS\0", content)] + [len(content)]
    return [content[begin:end] for begin, end in itertools.pairwise(starts)]


@pytest.mark.parametrize("codec", CODECS)
def test_pages_that_are_missing_in_an_ogg_file_become_silence(codec: str) -> None:
    between = (RNG.standard_normal(10 * RATE) / 20).astype(np.float32)  # digital silence would take too few pages
    sound = np.concatenate([ONE, between, TWO, np.zeros(RATE, np.float32)])
    whole = pages(ogg(sound, codec, rate=48000 if codec == "libopus" else RATE))
    middle = len(whole) // 2
    got, warnings = read(b"".join(whole[: middle - len(whole) // 8] + whole[middle + len(whole) // 8 :]))
    assert places(got, ONE) == pytest.approx([0], abs=0.03)
    assert places(got, TWO) == pytest.approx([len(ONE) / RATE + 10], abs=0.05)
    assert len(got) / RATE == pytest.approx(len(sound) / RATE, abs=0.1)
    assert len(warnings) == 1
    assert re.fullmatch(r"\d\.\d\d s of sound are missing at \d\.\d\d s: silence stands for them", warnings[0])


@pytest.mark.parametrize("kind", ["ogg", "matroska", "webm"])
def test_silence_that_was_not_sent_stands_in_its_place(kind: str) -> None:
    """As WebRTC's recorders keep a call: a packet now and then while nobody speaks."""
    sound = np.concatenate([ONE, np.zeros(5 * RATE, np.float32), TWO, np.zeros(3 * RATE, np.float32), ONE])
    file = io.BytesIO()
    with av.open(file, "w", format=kind, options={"live": "1"} if kind != "ogg" else {"page_duration": "20000"}) as out:
        stream = out.add_stream("libopus", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), 0
        resampler = av.AudioResampler(stream.codec_context.format, "mono", 48000, frame_size=960)
        number = 0
        for part in [*resampler.resample(frame), None]:
            for packet in stream.encode(part):
                begin = number * 320
                loud = np.abs(sound[max(0, begin - 800) : begin + 1120]).max(initial=0) > 0
                if loud or number % 20 == 0:
                    out.mux(packet)
                number += 1
    with audio.open(file.getvalue()) as reader:
        got = np.concatenate(list(reader.blocks()))
        assert (reader.duration is None) == (kind != "ogg")
    assert places(got, ONE) == pytest.approx([0, 8 + (len(ONE) + len(TWO)) / RATE], abs=0.05)
    assert places(got, TWO) == pytest.approx([5 + len(ONE) / RATE], abs=0.05)
    assert "sound are missing in" in reader.warnings[0]


@pytest.mark.parametrize("kind", ["matroska", "mpegts", "mp4"])
def test_sound_that_begins_late_is_late_without_a_duration_too(tmp_path: Path, kind: str) -> None:
    options = {"matroska": {"live": "1"}, "mp4": {"movflags": "frag_keyframe+empty_moov"}}.get(kind, {})
    path = tmp_path / "film"
    content = ffmpeg(path, [TWO[:, None]], RATE, format=kind, video=5, delay=3.25, options=options)
    got, warnings = read(content)
    assert places(got, TWO) == pytest.approx([3.25], abs=0.1)
    assert warnings == []


@pytest.mark.parametrize("other", [(RATE, 1), (44100, 2)])
def test_every_one_of_joined_flac_files_is_heard(other: tuple[int, int], with_pyav: bool) -> None:
    second = np.stack([soxr.resample(TWO, RATE, other[0])] * other[1], axis=1)
    first = sndfile(ONE, RATE, format="FLAC")
    got, warnings = read(first + sndfile(second, other[0], format="FLAC") + b"TAG" + bytes(125) + first)
    assert places(got, ONE) == pytest.approx([0, (len(ONE) + len(TWO)) / RATE], abs=0.001)
    assert places(got, TWO) == pytest.approx([len(ONE) / RATE], abs=0.001)
    assert warnings == []


def test_every_one_of_joined_aac_files_is_heard(tmp_path: Path) -> None:
    one, two = (ffmpeg(tmp_path / "a.aac", [sound[:, None]], RATE) for sound in (ONE, TWO))
    got, _ = read(one + two + one)
    assert len(places(got, ONE)) == 2
    assert len(places(got, TWO)) == 1


# ---- Clocks that jump ------------------------------------------------------------------------------------------------


def broadcast(path: Path, sound: np.ndarray, start: float) -> bytes:
    return ffmpeg(path, [sound[:, None]], RATE, format="mpegts", options={"output_ts_offset": str(start)})


@pytest.mark.parametrize("jump", [90_000.0, -50.0, 61.0])
def test_a_clock_that_jumps_far_is_closed_up_and_told_of(tmp_path: Path, jump: float) -> None:
    start = max(0.0, -jump) + 10
    one, two = broadcast(tmp_path / "a", ONE, start), broadcast(tmp_path / "b", TWO, start + jump)
    got, warnings = read(one + two)
    assert places(got, TWO) == pytest.approx([len(ONE) / RATE], abs=0.2)
    assert len(warnings) == 1
    assert "its clock jumps by " in warnings[0]


def test_a_short_hole_of_a_broadcast_is_silence(tmp_path: Path) -> None:
    one, two = broadcast(tmp_path / "a", ONE, 10), broadcast(tmp_path / "b", TWO, 30)
    got, warnings = read(one + two)
    assert places(got, TWO) == pytest.approx([20], abs=0.2)
    assert len(warnings) == 1
    assert "s of sound are missing at 0.8" in warnings[0]


# ---- Sizes in headers ------------------------------------------------------------------------------------------------


def with_size(content: bytes, field: bytes, size: int, order: str) -> bytes:
    place = content.index(field) + 4
    return content[:place] + size.to_bytes(4, order) + content[place + 4 :]  # type: ignore[arg-type]


FORMS: dict[str, Callable[[int], bytes]] = {
    "WAV": lambda size: with_size(sndfile(TWO, RATE), b"data", size, "little"),
    "WAV of 24 bits": lambda size: with_size(sndfile(TWO, RATE, subtype="PCM_24"), b"data", size, "little"),
    "WAV, extensible": lambda size: with_size(sndfile(TWO, RATE, format="WAVEX"), b"data", size, "little"),
    "AIFF": lambda size: with_size(sndfile(TWO, RATE, format="AIFF"), b"SSND", size, "big"),
    "AIFC": lambda size: with_size(sndfile(TWO, RATE, format="AIFF", subtype="FLOAT"), b"SSND", size, "big"),
    "AU": lambda size: (c := sndfile(TWO, RATE, format="AU"))[:8] + size.to_bytes(4, "big") + c[12:],
}


@pytest.mark.parametrize("form", FORMS)
def test_samples_that_go_on_behind_the_end_that_a_header_tells_are_read(form: str, with_pyav: bool) -> None:
    wanted = soundfile.read(io.BytesIO(sndfile(TWO, RATE)), dtype="float32")[0]
    got, warnings = read(FORMS[form](8000))
    assert len(got) == len(wanted)
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    assert len(warnings) == 1
    assert re.fullmatch(r"its header tells of 0\.\d\d s, but the samples go on: 1\.25 s are read", warnings[0])


def test_a_size_of_64_bits_that_is_too_small_is_corrected() -> None:
    content = sndfile(TWO, RATE, format="RF64")
    place = content.index(b"ds64") + 16
    whole = audio.load(content)
    content = content[:place] + (8000).to_bytes(8, "little") + content[place + 8 :]
    data = content.index(b"data") + 4
    content = content[:data] + b"\xff\xff\xff\xff" + content[data + 4 :]
    got, warnings = read(content)
    np.testing.assert_array_equal(got, whole)
    assert "but the samples go on" in warnings[0]


@pytest.mark.parametrize(
    "tail",
    [b"LIST\x04\0\0\0INFO", b"id3 \x04\0\0\0abcd", b"\0" * 600, b"xyz", id3v2(100), b"TAG" + bytes(125)],
    ids=repr,
)
@pytest.mark.parametrize("form", ["WAV", "AIFF"])
def test_what_stands_behind_the_samples_is_no_sound(form: str, tail: bytes) -> None:
    content = sndfile(TWO, RATE, format=form)
    if form == "AIFF" and tail[4:8] == b"\x04\0\0\0":
        tail = tail[:4] + tail[4:8][::-1] + tail[8:]
    got, warnings = read(content + tail)
    np.testing.assert_array_equal(got, audio.load(content))
    assert warnings == []


@pytest.mark.parametrize("forms", [("WAV", "WAV"), ("AIFF", "AIFF"), ("WAV", "AIFF"), ("AU", "AU"), ("WAVEX", "WAV")])
def test_every_one_of_joined_files_of_samples_is_heard(forms: tuple[str, str], with_pyav: bool) -> None:
    one = sndfile(ONE, RATE, format=forms[0])
    two = sndfile(np.stack([soxr.resample(TWO, RATE, 44100)] * 2, axis=1), 44100, format=forms[1])
    got, warnings = read(one + two + one)
    np.testing.assert_array_equal(got[: len(ONE)], audio.load(one))
    np.testing.assert_array_equal(got[-len(ONE) :], audio.load(one))
    assert len(got) == pytest.approx(2 * len(ONE) + len(TWO), abs=1)
    assert places(got, TWO) == pytest.approx([len(ONE) / RATE], abs=0.001)
    assert warnings == []


@pytest.mark.parametrize("tail", [b"", b"LIST\x04\0\0\0INFO"])
def test_a_size_that_has_overflowed_is_that_of_the_samples(tmp_path: Path, tail: bytes) -> None:
    """4 GiB and some seconds; nearly all of it is a hole in the file, which takes no room on the disk."""
    rate = 768_000
    content = sndfile(ONE, rate, subtype="FLOAT")
    begin = content.index(b"data") + 8
    more = 4 * 200_000
    path = tmp_path / "long.wav"
    with path.open("wb") as file:
        file.write(content[: begin - 4] + more.to_bytes(4, "little"))
        file.seek(begin + (1 << 32) + more)
        file.write(tail)
        file.truncate()
    with path.open("rb") as file:
        parts = containers.parts(file)
        frames = [soundfile.SoundFile(containers.Window(file, part)).frames for part in parts]
        assert sum(frames) == (1 << 30) + more // 4
        last = soundfile.SoundFile(containers.Window(file, parts[-1])).read(dtype="float32")
    assert len(last) == more // 4
    assert f"{((1 << 32) + more) / (4 * rate):.2f} s are read" in parts[0].warnings[0]


# ---- Tracks ----------------------------------------------------------------------------------------------------------


def test_a_track_is_picked(tmp_path: Path) -> None:
    film = ffmpeg(tmp_path / "film.mkv", [TWO[:, None], ONE[:, None]], RATE, codec="flac", video=1)
    assert places(read(film, track=0)[0], TWO) == pytest.approx([0], abs=0.01)
    got, warnings = read(film, track=1)
    assert places(got, ONE) == pytest.approx([0], abs=0.01)
    assert warnings == []
    with pytest.raises(AudioError, match=r"there is no track 2: the file has 2 tracks, 0 to 1"):
        audio.open(film, track=2)


def test_every_call_takes_the_track_that_is_asked_for(tmp_path: Path, tiny: Model) -> None:
    sounds = {name: audio.load(SAMPLES / f"{name}.wav") for name in ("digits", "hello")}
    film = ffmpeg(tmp_path / "film.mka", [sound[:, None] for sound in sounds.values()], RATE, codec="flac")
    wanted = (SAMPLES / "hello.txt").read_text(encoding="utf-8").strip()
    assert tiny.transcribe(film, track=1).text == wanted
    assert [segment.text for segment in tiny.segments(film, track=1)] == [wanted]
    assert "".join(token.text for token in tiny.stream(film, track=1)).strip() == wanted
    assert [one.text for one in tiny.transcribe_many([film], track=1)] == [wanted]
    assert pycrispasr.transcribe(film, model="tiny", track=1).text == wanted
    assert run("transcribe", "-m", "tiny", "--track", 1, tmp_path / "film.mka").stdout == wanted + "\n"
    assert run("transcribe", "-m", "tiny", "--track", 2, tmp_path / "film.mka").returncode == 1


def test_a_track_that_cannot_be_is_refused_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    wav = sndfile(ONE, RATE)
    np.testing.assert_array_equal(audio.load(wav, track=0), audio.load(wav))
    with pytest.raises(AudioError, match=r"there is no track 1: the file has one track, 0"):
        audio.open(wav, track=1)
    np.testing.assert_array_equal(audio.load(ONE, sample_rate=RATE, track=0), ONE)
    with pytest.raises(AudioError, match=r"there is no track 1: an array is one track, 0"):
        audio.open(ONE, sample_rate=RATE, track=1)
    for track in (-1, 0.5, "english", True):
        with pytest.raises(AudioError, match=f"track cannot be {track!r}"):
            audio.open(wav, track=track)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioError, match=r"for track 1 of a file PyAV is needed: pip install 'pycrispasr\[av\]'"):
        audio.open(wav, track=1)


def test_damage_of_any_kind_in_a_joined_file_gives_sound_or_an_error_of_ours(mp3s: dict[str, bytes]) -> None:
    sound = make_tones(1)
    files = [
        mp3s["one"],
        ogg(ONE, "vorbis"),
        sndfile(sound, RATE, format="FLAC"),
        sndfile(sound, RATE),
        sndfile(sound, RATE, format="AIFF"),
    ]
    rng = np.random.default_rng(1)
    for content in files:
        for _ in range(40):
            damaged = bytearray(content + content)
            for place in rng.integers(0, len(damaged), 3):
                damaged[place] = rng.integers(0, 256)
            try:
                got, _ = read(bytes(damaged[: rng.integers(len(damaged) // 3, len(damaged))]))
            except AudioError:
                continue
            assert np.isfinite(got).all()
