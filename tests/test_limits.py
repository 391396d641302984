"""No recording takes more than its limits: sound, silence in gaps, bytes; what was heard before one is kept."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import pycrispasr
from pycrispasr import AudioError, Model, UsageError, audio

from .command import run
from .sound_files import matroska, sndfile
from .sounds import make_tones

SOUND = make_tones(2)
PCM = (SOUND * 20000).astype("<i2").tobytes()


def blocks(content: audio.Audio, limits: audio.Limits) -> tuple[list[np.ndarray], list[str], str]:
    """What is read, the warnings, and the error at its end."""
    found, error = [], ""
    with audio.open(content, limits=limits) as reader:
        try:
            found += reader.blocks()
        except AudioError as failure:
            error = str(failure)
        return found, reader.warnings, error


# ---- Seconds of sound ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III")])
def test_what_is_too_long_by_its_header_is_refused_before_it_is_read(form: str, subtype: str) -> None:
    content = sndfile(SOUND, 16000, format=form, subtype=subtype)
    with pytest.raises(AudioError, match=r"tells of 2 s, more than the limit of 1\.5 seconds.*Limits\(seconds=.*--max"):
        audio.open(content, limits=audio.Limits(seconds=1.5))
    assert len(audio.load(content, limits=audio.Limits(seconds=3))) >= 32000


def test_what_turns_out_to_be_too_long_is_heard_up_to_the_limit() -> None:
    content = matroska([0, 100_000], PCM, rate=16000)
    whole = audio.load(content)
    assert len(whole) == 102 * 16000
    found, _, error = blocks(content, audio.Limits(seconds=101.5))
    np.testing.assert_array_equal(np.concatenate(found), whole[: 203 * 8000])
    assert "it goes on for more than the limit of 101.5 seconds" in error


def test_hours_of_silence_out_of_a_small_file_end_at_the_limit() -> None:
    content = matroska([3_000_000 * i for i in range(1000)])
    assert len(content) < 400_000  # and 3 million seconds of sound
    found, _, error = blocks(content, audio.Limits(seconds=4000))
    assert sum(map(len, found)) == 4000 * 16000
    assert max(map(len, found)) <= 5 * 16000
    assert "limit of 4000 seconds" in error


def test_without_being_told_a_day_is_no_limit_and_more_is() -> None:
    assert 25 * 3600 < audio.Limits().seconds < 29 * 3600
    assert audio.Limits().download_bytes > 24 * 3600 * 44100 * 4


def test_an_array_has_no_limit() -> None:
    limits = audio.Limits(seconds=1)
    np.testing.assert_array_equal(audio.load(SOUND, sample_rate=16000, limits=limits), SOUND)


def test_the_text_before_a_limit_is_kept(nano: Model) -> None:
    content = matroska([0, 2000, 100_000], PCM, rate=16000)
    limits = audio.Limits(seconds=50)
    transcript = nano.transcribe(content, limits=limits, max_new_tokens=5)
    assert [segment.status for segment in transcript.segments[:-1]] != []
    assert transcript.segments[0].text
    assert transcript.segments[-1].status == "failed"
    assert "limit of 50 seconds" in (transcript.segments[-1].error or "")
    assert not transcript.complete
    assert transcript.duration == 50


def test_every_call_passes_limits_on(nano: Model, nano_path: Path) -> None:
    content, limits = sndfile(SOUND, 16000), audio.Limits(seconds=1)
    for call in (nano.transcribe, nano.segments, nano.stream):
        with pytest.raises(AudioError, match="limit of 1 seconds"):
            call(content, limits=limits)
    with pytest.raises(AudioError, match="limit of 1 seconds"):
        pycrispasr.transcribe(content, model=nano_path, threads=1, limits=limits)
    bad, good = nano.transcribe_many([content, SOUND[:16000]], limits=limits, sample_rate=16000, max_new_tokens=2)
    assert [bad.segments[0].status, good.segments[0].status] == ["failed", "truncated"]


def test_the_command_has_the_limits(nano_path: Path, tmp_path: Path) -> None:
    long, short = tmp_path / "long.wav", tmp_path / "short.wav"
    long.write_bytes(sndfile(SOUND, 16000))
    short.write_bytes(sndfile(SOUND[:16000], 16000))
    done = run("transcribe", "-m", nano_path, "--max-new-tokens", 2, "--max-seconds", 1.5, long, short)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 1
    assert "long.wav': its header tells of 2 s, more than the limit of 1.5 seconds" in done.stderr
    done = run("transcribe", "-m", nano_path, "--max-seconds", 0, short)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Limits.seconds cannot be 0" in done.stderr


# ---- Silence that stands for what is missing -------------------------------------------------------------------------


@given(st.lists(st.integers(0, 90_000), min_size=1, max_size=6))
@example([3_600_000])
@example([10**12])
def test_a_gap_is_filled_up_to_its_limit_and_in_small_blocks(gaps: list[int]) -> None:
    times = [0]
    for gap in gaps:
        times.append(times[-1] + 20 + gap)  # milliseconds
    found, warnings, error = blocks(matroska(times), audio.Limits(gap_seconds=60))
    filled = [gap for gap in gaps if 50 < gap <= 60_000]
    # Times that differ by less than a hole add up to one.
    assert abs(sum(map(len, found)) / 16 - 20 * len(times) - sum(filled)) <= 50 * len(gaps)
    assert max(map(len, found)) <= 5 * 16000
    assert error == ""
    jumps = any(gap > 61_000 for gap in gaps)
    assert jumps <= any("its clock jumps" in warning for warning in warnings)


# ---- Bytes of what is kept -------------------------------------------------------------------------------------------


class Endless(io.RawIOBase):
    """A stream that never ends."""

    def __init__(self) -> None:
        self.given = 0

    def read(self, size: int = -1) -> bytes:
        self.given += size
        return bytes(size)


def test_a_stream_without_an_end_is_refused() -> None:
    stream = Endless()
    with pytest.raises(AudioError, match=r"more than the limit of 1000000 bytes.*download_bytes.*--max-download"):
        audio.open(stream, limits=audio.Limits(download_bytes=1_000_000))  # type: ignore[arg-type]
    assert stream.given < 2_000_000


# ---- The limits themselves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, math.nan, "1", None, True])
def test_a_limit_is_a_positive_number(value: object) -> None:
    with pytest.raises(UsageError, match=r"Limits\.gap_seconds cannot be"):
        audio.Limits(gap_seconds=value)  # type: ignore[arg-type]
    assert audio.Limits(gap_seconds=math.inf).gap_seconds == math.inf


def test_limits_are_nothing_else(nano: Model) -> None:
    for call in (audio.open, nano.transcribe, nano.job):
        with pytest.raises(TypeError, match=r"limits must be audio\.Limits"):
            call(SOUND, sample_rate=16000, limits=100)  # type: ignore[operator]
