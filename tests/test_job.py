"""A job: transcripts in order, progress that can be looked at, and a cancellation that loses nothing."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pycrispasr import AudioError, BusyError, CancelledError, ClosedError, Job, Model, Progress, UsageError, audio

from .sounds import make_tones

SAMPLES = Path(__file__).parent.parent / "samples"
RECORDINGS = [SAMPLES / f"{name}.wav" for name in ("hello", "long", "digits")]
TEXTS = [path.with_suffix(".txt").read_text(encoding="utf-8").strip() for path in RECORDINGS]


def test_transcripts_come_in_order_and_the_job_can_be_left_and_goes_on(tiny: Model) -> None:
    with tiny.job(RECORDINGS) as job:
        first = next(job)
        rest = list(job)
        assert [transcript.text for transcript in (first, *rest)] == TEXTS
        assert list(job) == []


def test_segments_and_tokens_are_those_of_the_transcripts(tiny: Model) -> None:
    segments = [segment for path in RECORDINGS for segment in tiny.transcribe(path).segments]
    with tiny.job(RECORDINGS) as job:
        assert list(job.segments()) == segments
    with tiny.job(RECORDINGS, batch=1) as job:
        assert list(job.tokens()) == [token for segment in segments for token in segment.tokens]


def test_progress_grows_up_to_all_of_it(tiny: Model) -> None:
    seen: list[Progress] = []
    with tiny.job(RECORDINGS, batch=2, progress=seen.append) as job:
        transcripts = list(job)
        last = job.progress
    total = sum(transcript.duration for transcript in transcripts)
    assert (seen[0].seconds, seen[0].recordings, seen[0].text) == (0, 0, "")
    assert [one.seconds for one in seen] == sorted(one.seconds for one in seen)
    assert [one.recordings for one in seen] == sorted(one.recordings for one in seen)
    assert (last.recordings, last.begun) == (3, 0)
    assert last.seconds == last.read == last.expected == pytest.approx(total)
    assert {one.recordings for one in seen} == {0, 1, 2}
    for number, transcript in enumerate(transcripts):  # what is final is told before the transcript comes
        assert [one.segments for one in seen if one.recordings == number][-1] == transcript.segments
    assert any(one.text and one.text in transcripts[one.recordings].text for one in seen)


def test_what_cannot_be_heard_is_kept_or_raised_in_its_place(tiny: Model) -> None:
    recordings = [RECORDINGS[0], b"no audio", RECORDINGS[2]]
    with tiny.job(recordings) as job:
        statuses = [{segment.status for segment in transcript.segments} for transcript in job]
    assert statuses == [{"ok"}, {"failed"}, {"ok"}]
    job = tiny.job(recordings, errors="raise")
    assert next(job).text == TEXTS[0]
    with pytest.raises(AudioError):
        next(job)
    assert job.closed
    with pytest.raises(UsageError, match="errors cannot be 'ignore'"):
        tiny.job([], errors="ignore")  # type: ignore[arg-type]


def test_a_cancelled_job_keeps_what_there_is_of_each_recording(tiny: Model) -> None:
    sound = audio.load(RECORDINGS[1])

    def stop(progress: Progress) -> None:
        if progress.segments and progress.text:  # at the second segment, unless that is written in no time
            job.cancel()

    job = tiny.job([sound, sound], sample_rate=16000, vad="on", batch=1, progress=stop)
    with job, pytest.raises(CancelledError) as caught:
        list(job)
    with pytest.raises(ClosedError):
        job.partial()
    partial = caught.value.partial
    *before, last = partial.segments
    assert {segment.status for segment in before} == {"ok"}
    assert last.status in ("ok", "cancelled")  # it may be complete when it is stopped
    assert TEXTS[1].startswith(partial.text)
    assert not partial.complete


def test_partial_tells_of_all_recordings_that_were_begun(tiny: Model) -> None:
    with tiny.job(RECORDINGS[1:], batch=4, progress=lambda progress: progress.text and job.cancel()) as job:
        with pytest.raises(CancelledError):
            next(job)
        begun = job.partial()
        assert [TEXTS[1:][place].startswith(one.text) for place, one in enumerate(begun)] == [True] * len(begun)
        assert begun[0].text
        assert {one.complete for one in begun} == {False}
        with pytest.raises(CancelledError):  # it stays cancelled
            next(job)


def test_a_second_thread_is_refused_and_changes_nothing(tiny: Model) -> None:
    refused: list[BaseException] = []

    def look(progress: Progress) -> None:
        if not refused:
            thread = threading.Thread(target=attempt)
            thread.start()
            thread.join()

    def attempt() -> None:
        try:
            next(job)
        except BusyError as error:
            refused.append(error)

    with tiny.job(RECORDINGS, progress=look) as job:
        assert [transcript.text for transcript in job] == TEXTS
    assert len(refused) == 1


def test_recordings_are_taken_one_by_one_as_there_is_room(nano: Model) -> None:
    taken: list[int] = []

    def recordings() -> Iterator[np.ndarray]:
        for number in range(100):
            taken.append(number)
            yield make_tones(1, seed=number)

    with nano.job(recordings(), sample_rate=16000, batch=2) as job:
        next(job)
        assert len(taken) <= 4
    assert len(taken) <= 4


def test_a_job_cannot_be_pickled_and_says_what_to_do(nano: Model) -> None:
    with nano.job([]) as job, pytest.raises(TypeError, match="pass the model on"):
        pickle.dumps(job)
    assert repr(job) == "<pycrispasr.Job closed>"
    assert isinstance(job, Job)
