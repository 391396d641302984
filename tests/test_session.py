"""A session: feeding in parts, cancelling, threads, and its end."""

from __future__ import annotations

import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable

import numpy as np
import pytest

from pycrispasr import AudioError, BusyError, CancelledError, ClosedError, Model, Session, UsageError
from pycrispasr.runtimes.native import NativeSession

from .sounds import make_tones


@pytest.mark.parametrize("rate", [16000, 44100, 8000])
@pytest.mark.parametrize("block", [160, 1000, 16001])
def test_feeding_in_parts_gives_what_feeding_at_once_gives(nano: Model, rate: int, block: int) -> None:
    sound = make_tones(2)
    wanted = nano.transcribe(sound, sample_rate=rate, max_new_tokens=8)
    with nano.session(max_new_tokens=8) as session:
        for start in range(0, len(sound), block):
            session.feed(sound[start : start + block], sample_rate=rate)
        got = session.finish()
    assert got.duration == wanted.duration
    assert [token.id for token in got.segments[0].tokens] == [token.id for token in wanted.segments[0].tokens]


@pytest.mark.parametrize("seconds", [7.9, 20, 30, 30.5, 61])
@pytest.mark.parametrize("block", [4096, 250000])
def test_long_audio_in_parts_has_the_tokens_of_the_whole(nano: Model, seconds: float, block: int) -> None:
    sound = make_tones(seconds)
    with nano.session(max_new_tokens=12) as session:
        for start in range(0, len(sound), block):
            session.feed(sound[start : start + block])
        got = session.finish()
    assert got.segments == nano.transcribe(sound, sample_rate=16000, max_new_tokens=12).segments


def test_audio_is_encoded_while_it_is_fed(nano: Model) -> None:
    with nano.session(max_new_tokens=2, partial_every=None) as session:
        for _ in range(9):
            session.feed(make_tones(1))
        assert session._driver.decoder is not None
        request = session._driver.decoder._listening
        assert request is not None
        end = time.monotonic() + 60
        while (
            nano._engine(nano._opened()).ask(lambda engine: engine.opened().result(request._sequence))["encoder"] == 0
        ):
            assert time.monotonic() < end


def test_after_a_failed_end_nothing_can_be_fed_until_reset(nano: Model) -> None:
    with nano.session(max_new_tokens=2) as session:
        session.feed(np.zeros(400, np.float32), sample_rate=48000)
        with pytest.raises(AudioError, match="too few"):
            session.finish()
        with pytest.raises(UsageError, match="reset"):
            session.feed(make_tones(1), sample_rate=48000)
        session.reset()
        session.feed(make_tones(1), sample_rate=48000)
        session.finish()


def test_the_caller_may_fill_one_array_again_and_again(nano: Model) -> None:
    sound = make_tones(1)
    buffer = np.empty(1600, np.float32)
    with nano.session(max_new_tokens=5) as session:
        for start in range(0, len(sound), 1600):
            buffer[:] = sound[start : start + 1600]
            session.feed(buffer)
        buffer[:] = 1
        assert session.finish().segments == nano.transcribe(sound, sample_rate=16000, max_new_tokens=5).segments


def test_any_type_and_stereo_can_be_fed(nano: Model) -> None:
    sound = make_tones(1)
    integers = (sound * 32768).astype(np.int16)
    wanted = nano.transcribe(integers, sample_rate=16000, max_new_tokens=5).segments
    for form in (integers, np.stack([integers, integers], axis=1), integers / 32768):
        with nano.session(max_new_tokens=5) as session:
            session.feed(form)
            assert session.finish().segments == wanted


def test_feeding_no_samples_changes_nothing(nano: Model) -> None:
    sound = make_tones(1)
    with nano.session(max_new_tokens=5) as session:
        session.feed(np.zeros(0, np.float32))
        session.feed(sound)
        session.feed(np.zeros((0, 2), np.int16))
        assert session.finish().segments == nano.transcribe(sound, sample_rate=16000, max_new_tokens=5).segments


def test_a_bad_block_is_refused_and_the_others_stand(nano: Model) -> None:
    sound = make_tones(1)
    with nano.session(max_new_tokens=5) as session:
        session.feed(sound[:8000])
        for bad, rate in ((np.full(100, np.nan), 16000), (np.zeros(100, np.uint8), 16000), (sound, 8000), (sound, 0)):
            with pytest.raises(AudioError):
                session.feed(bad, sample_rate=rate)
        session.feed(sound[8000:])
        assert session.finish().segments == nano.transcribe(sound, sample_rate=16000, max_new_tokens=5).segments


def test_a_refused_first_block_does_not_fix_the_rate(nano: Model) -> None:
    with nano.session(max_new_tokens=2) as session:
        with pytest.raises(AudioError):
            session.feed(np.full(100, np.nan), sample_rate=8000)
        session.feed(make_tones(1), sample_rate=48000)
        session.finish()


def test_without_audio_there_is_nothing_to_finish(nano: Model) -> None:
    with nano.session() as session:
        with pytest.raises(AudioError, match="no audio"):
            session.finish()
        session.feed(np.zeros(0, np.float32))
        for _ in range(2):
            with pytest.raises(AudioError, match="empty"):
                session.finish()


def test_too_little_audio_is_refused_every_time(nano: Model) -> None:
    with nano.session() as session:
        session.feed(np.zeros(150, np.float32))
        for _ in range(2):
            with pytest.raises(AudioError, match="150 samples"):
                session.finish()
        session.reset()
        session.feed(make_tones(0.2))
        session.finish()


def test_tokens_can_be_left_and_finish_goes_on(nano: Model) -> None:
    sound = make_tones(1)
    wanted = nano.transcribe(sound, sample_rate=16000, max_new_tokens=12)
    with nano.session(max_new_tokens=12) as session:
        session.feed(sound)
        first = [token for _, token in zip(range(4), session, strict=False)]
        transcript = session.finish()
        assert session.finish().segments == transcript.segments
        assert list(session.tokens()) == list(transcript.segments[0].tokens[len(first) :])
        assert list(session.tokens()) == []
    assert transcript.segments == wanted.segments
    assert tuple(first) == wanted.segments[0].tokens[: len(first)]


def test_after_the_end_nothing_can_be_fed_until_reset(nano: Model) -> None:
    sound = make_tones(1)
    with nano.session(max_new_tokens=5) as session:
        session.feed(sound)
        first = session.finish()
        with pytest.raises(UsageError, match="reset"):
            session.feed(sound)
        session.reset()
        session.feed(sound, sample_rate=32000)  # another rate is another recording
        session.finish()
        session.reset()
        session.feed(sound)
        assert session.finish().segments == first.segments


def test_a_cancelled_transcription_gives_what_was_done(nano: Model) -> None:
    sound = make_tones(20)
    with nano.session(max_new_tokens=100, partial_every=None) as session:
        session.feed(sound)
        tokens = session.tokens()
        taken = [next(tokens) for _ in range(3)]
        session.cancel()
        with pytest.raises(CancelledError) as caught:
            next(tokens)
        partial = caught.value.partial
        assert not partial.complete
        assert partial.duration == 20
        assert [segment.status for segment in partial.segments] == ["cancelled"]
        assert partial.segments[0].tokens[:3] == tuple(taken)
        assert partial.timings.tokens == len(partial.segments[0].tokens) < 100
        for again in (session.finish, lambda: session.feed(sound)):
            with pytest.raises((CancelledError, UsageError)):
                again()
        session.reset()
        session.feed(sound[:16000])
        assert len(session.finish().segments) == 1


def test_cancelling_from_another_thread_stops_a_running_call_soon(nano_path: object) -> None:
    with Model(nano_path, threads=1) as model, model.session(max_new_tokens=4000) as session:  # type: ignore[arg-type]
        timer = threading.Timer(0.3, session.cancel)
        timer.start()
        with pytest.raises(CancelledError):
            session.feed(make_tones(600))
        timer.join()
        started = time.perf_counter()
        session.reset()
        assert time.perf_counter() - started < 1


def test_a_cancellation_between_two_segments_is_not_lost(nano: Model) -> None:
    with nano.session(max_new_tokens=1) as session:
        session.feed(make_tones(61))
        with pytest.raises(CancelledError) as caught:
            session.finish(progress=lambda done, total: session.cancel() if done else None)
        assert [part.status for part in caught.value.partial.segments] == ["truncated", "truncated", "cancelled"]


def test_cancelling_before_anything_was_fed_holds_until_reset(nano: Model) -> None:
    with nano.session(max_new_tokens=2) as session:
        session.cancel()
        with pytest.raises(CancelledError) as caught:
            session.feed(make_tones(1))
        assert caught.value.partial.text == ""
        session.reset()
        session.feed(make_tones(1))
        session.finish()


def test_a_second_thread_is_told_and_changes_nothing(nano: Model) -> None:
    sound = make_tones(20)
    wanted = nano.transcribe(sound, sample_rate=16000, max_new_tokens=300)
    inside = threading.Event()
    results: list[object] = []
    with nano.session(max_new_tokens=300) as session:
        session.feed(sound)
        thread = threading.Thread(
            target=lambda: results.append(session.finish(progress=lambda done, total: inside.set()))
        )
        thread.start()
        assert inside.wait(10)
        for use in (
            session.finish,
            session.reset,
            lambda: session.feed(sound),
            lambda: next(session.tokens()),
        ):
            with pytest.raises(BusyError, match="thread"):
                use()
        thread.join()
    assert results[0].segments == wanted.segments  # type: ignore[attr-defined]


def test_the_library_itself_refuses_a_second_thread(nano: Model) -> None:
    """Two threads use one session until they met: one of them is told so, whichever came second."""
    native = NativeSession(nano._opened(), max_new_tokens=4000)
    native.feed(make_tones(30))
    native.end()
    told: list[str] = []
    end = time.monotonic() + 60

    def use(call: Callable[[], object]) -> None:
        while not told and time.monotonic() < end:
            try:
                call()
            except BusyError as error:
                told.append(str(error))

    thread = threading.Thread(target=use, args=(native.result,))
    thread.start()
    use(native.next)
    thread.join()
    assert "thread" in told[0]


def test_a_closed_session_says_so(nano: Model) -> None:
    session = nano.session()
    assert "closed" not in repr(session)
    session.close()
    session.close()
    session.cancel()
    for use in (session.finish, session.reset, lambda: session.feed(make_tones(1)), lambda: next(iter(session))):
        with pytest.raises(ClosedError, match="closed"):
            use()
    assert session.closed
    assert "closed" in repr(session)


def test_closing_stops_the_call_of_another_thread(nano: Model) -> None:
    session = nano.session()
    sound = make_tones(600)
    caught: list[BaseException] = []

    def work() -> None:
        try:
            session.feed(sound)  # takes seconds
        except CancelledError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    end = time.monotonic() + 10
    while not session._driver._exclusive._lock.locked() and time.monotonic() < end:
        time.sleep(0.001)
    session.close()
    thread.join(20)
    assert not thread.is_alive()
    assert len(caught) == 1


def test_sessions_of_one_model_do_not_disturb_each_other(nano: Model) -> None:
    sounds = [make_tones(2, seed) for seed in range(4)]
    wanted = [nano.transcribe(sound, sample_rate=16000, max_new_tokens=30).segments for sound in sounds]
    got: dict[int, object] = {}

    def work(index: int) -> None:
        for _ in range(3):
            got[index] = nano.transcribe(sounds[index], sample_rate=16000, max_new_tokens=30).segments

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[index] for index in range(4)] == wanted


def test_a_forgotten_session_is_freed(nano: Model) -> None:
    session = nano.session()
    assert session._driver.decoder is not None
    decoder = weakref.ref(session._driver.decoder)
    cycle: list[object] = [session]
    cycle.append(cycle)
    del session, cycle
    gc.collect()
    assert decoder() is None


@pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="there is no lock to give up")
def test_python_runs_while_the_library_works(nano: Model) -> None:
    ticks = 0
    done = threading.Event()

    sound = make_tones(60)

    def work(session: Session) -> None:
        session.feed(sound)  # does nearly all of the work
        session.finish()
        done.set()

    with nano.session(max_new_tokens=200) as session:
        thread = threading.Thread(target=work, args=(session,))
        thread.start()
        while not done.wait(0.001):
            ticks += 1
        thread.join()
    assert ticks > 10
