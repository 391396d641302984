"""A session while somebody speaks: text so far, events, utterances, threads; its final text is that of the whole."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pycrispasr import (
    AudioError,
    BusyError,
    CancelledError,
    ClosedError,
    Final,
    Model,
    Overrun,
    Partial,
    Session,
    Silence,
    SpeechStarted,
    Transcript,
    UsageError,
    audio,
)
from pycrispasr.segmentation.segmenter import plan

from .sounds import make_tones

SAMPLES = Path(__file__).parent.parent / "samples"
RATE = 16000


def blocks(sound: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Blocks of one size, or with 0 of random ones."""
    rng, start = np.random.default_rng(7), 0
    while start < len(sound):
        end = start + (size or int(rng.integers(1, 30000)))
        yield sound[start:end]
        start = end


def loud_at(seconds: float, place: float) -> np.ndarray:
    """The loudest second is there: it changes the log-mel of everything before it."""
    sound = make_tones(seconds, seed=round(100 * place))
    begin = int(place * max(0, len(sound) - RATE))
    sound[begin : begin + RATE] *= 15
    return sound


def press(session: Session) -> Session:
    """Hypotheses are made as often as they are asked for, whatever they cost."""
    session._driver._hypothesis_cost = -1e9
    return session


@pytest.fixture(scope="module", params=[(0.3, 0), (7.9, 1), (16.5, 0.5), (29.9, 0), (31, 1), (61, 0.5)])
def recording(request: pytest.FixtureRequest, nano: Model) -> tuple[np.ndarray, Transcript]:
    """A sound, and what is heard in the whole of it."""
    sound = loud_at(*request.param)
    return sound, nano.transcribe(sound, sample_rate=RATE, max_new_tokens=16)


@pytest.mark.parametrize("partial_every", [None, 0.4])
@pytest.mark.parametrize("size", [1000, 0])  # every size: test_incremental.py
def test_a_fed_recording_has_the_tokens_of_the_whole(
    nano: Model, recording: tuple[np.ndarray, Transcript], size: int, partial_every: float | None
) -> None:
    sound, wanted = recording
    with nano.session(max_new_tokens=16, partial_every=partial_every) as session:
        for block in blocks(sound, size):
            press(session).feed(block)
        got = session.finish()
    assert got.segments == wanted.segments
    assert (got.text, got.duration, got.complete) == (wanted.text, wanted.duration, wanted.complete)
    assert (got.timings.hypotheses > 0) == (partial_every is not None and len(sound) > 0.4 * RATE)


@pytest.mark.parametrize("name", ["digits", "spelling", "decimal", "long"])
@pytest.mark.parametrize("size", [1600, 0])
def test_real_speech_that_is_fed_has_the_transcript_of_the_whole(tiny: Model, name: str, size: int) -> None:
    sound = audio.load(SAMPLES / f"{name}.wav")
    wanted = tiny.transcribe(sound, sample_rate=RATE)
    with tiny.session(partial_every=0.5) as session:
        for block in blocks(sound, size):
            press(session).feed(block)
        got = session.finish()
        events = session.poll()
        assert session.text.committed == got.text
    assert got.segments == wanted.segments
    assert events[-1] == Final(wanted.segments[0])


def test_single_samples_can_be_fed(tiny: Model) -> None:
    sound = audio.load(SAMPLES / "hello.wav")
    with tiny.session(partial_every=0.1) as session:
        for sample in sound:
            press(session).feed(np.array([sample]))
        assert session.finish().segments == tiny.transcribe(sound, sample_rate=RATE).segments


def test_the_text_grows_while_audio_is_fed(tiny: Model) -> None:
    sound = audio.load(SAMPLES / "long.wav")
    final = tiny.transcribe(sound, sample_rate=RATE).text
    seen = [""]
    with tiny.session() as session:
        for block in blocks(sound, 1600):
            press(session).feed(block)
            if session.text.committed != seen[-1]:
                seen.append(session.text.committed)
        seen.append(session.finish().text)
    assert len(seen) > 8
    assert all(later.startswith(earlier) for earlier, later in pairwise(seen))
    assert seen[-1] == final


def test_without_partials_there_is_no_text_before_the_end(tiny: Model) -> None:
    with tiny.session(partial_every=None) as session:
        session.feed(audio.load(SAMPLES / "digits.wav"))
        assert str(session.text) == ""
        assert session.poll() == []
        assert session.finish().text == session.text.committed != ""


def speech(names: list[str], gap: float = 1.5) -> tuple[np.ndarray, list[str]]:
    """Recordings with silence around each, and what is said in them."""
    silence = np.zeros(round(gap * RATE), np.float32)
    parts, texts = [silence], []
    for name in names:
        parts += [audio.load(SAMPLES / f"{name}.wav"), silence]
        texts.append((SAMPLES / f"{name}.txt").read_text(encoding="utf-8").strip())
    return np.concatenate(parts), texts


def test_utterances_are_found_and_events_come_in_order(tiny: Model) -> None:
    sound, texts = speech(["hello", "digits", "thank-you-goodbye"])
    events = []
    with tiny.session(vad="on") as session:
        for block in blocks(sound, 800):
            session.feed(block)
            events += session.poll()
        transcript = session.finish()
        assert session.poll() == []
    kinds = [type(event) for event in events if not isinstance(event, Partial)]
    assert kinds == [SpeechStarted, Final, Silence] * 3
    finals = [event.segment for event in events if isinstance(event, Final)]
    assert tuple(finals) == transcript.segments
    assert [segment.text for segment in finals] == texts
    assert transcript.text == " ".join(texts)
    assert (transcript.complete, transcript.duration) == (True, len(sound) / RATE)
    assert session.text.committed == transcript.text
    times = [event.time for event in events if isinstance(event, (SpeechStarted, Silence))]
    assert times == sorted(times)
    for start, segment, silence in zip(times[::2], finals, times[1::2], strict=True):
        assert segment.start < start < silence < segment.end
    for partial in (event for event in events if isinstance(event, Partial)):
        assert any(s.start <= partial.start and partial.end <= s.end + 0.8 for s in finals)


def test_utterances_have_the_tokens_of_their_audio(tiny: Model) -> None:
    sound, _ = speech(["spelling", "long", "digits"], gap=1)
    with tiny.session(vad="on", silence=0.5) as session:
        for block in blocks(sound, 0):
            session.feed(block)
        got = session.finish()
    segments = plan(sound, vad="on", silence=0.5)
    assert [(round(s.start * RATE), round(s.end * RATE)) for s in got.segments] == segments
    assert len(segments) > 3
    for segment, (start, end) in zip(got.segments, segments, strict=True):
        alone = tiny.transcribe(sound[start:end], sample_rate=RATE).segments[0]
        assert [token.id for token in alone.tokens] == [token.id for token in segment.tokens]


def test_nobody_speaks_and_nothing_is_said(tiny: Model) -> None:
    with tiny.session(vad="on") as session:
        session.feed(np.zeros(5 * RATE, np.float32))
        transcript = session.finish()
    assert (transcript.text, transcript.segments, transcript.complete, transcript.duration) == ("", (), True, 5.0)


@pytest.mark.parametrize("batch", [1, 3])
def test_long_audio_gives_finals_before_its_end_in_order(nano: Model, batch: int) -> None:
    sound = make_tones(130, seed=2)
    wanted = nano.transcribe(sound, sample_rate=RATE, max_new_tokens=9).segments
    finals = []
    with nano.session(max_new_tokens=9, batch=batch) as session:
        for block in blocks(sound, 16000):
            session.feed(block)
            finals += [event.segment for event in session.poll() if isinstance(event, Final)]
        early = len(finals)
        session.finish()
        finals += [event.segment for event in session.poll() if isinstance(event, Final)]
    assert tuple(finals) == wanted
    assert early >= len(wanted) - 1 - batch


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.parametrize(("rate", "size"), [(8000, 77), (16000, 160), (44100, 441), (48000, 1111), (44100, 5003)])
def test_what_is_pushed_at_any_rate_has_the_text_of_the_whole(tiny: Model, rate: int, size: int) -> None:
    import soxr

    sound = soxr.resample(audio.load(SAMPLES / "digits.wav"), RATE, rate)
    wanted = tiny.transcribe(sound, sample_rate=rate)

    def produce() -> None:
        buffer = np.empty(size, np.float32)
        for block in blocks(sound, size):
            buffer[: len(block)] = block  # as a sound card does: the same memory again and again
            assert session.push(buffer[: len(block)], sample_rate=rate, wait=True)
            buffer[:] = 9
        session.end()

    with tiny.session(buffer=0.3) as session:
        thread = in_thread(produce)
        events = list(session.events())
        thread.join()
        assert session.finish().segments == wanted.segments
    assert events[-1] == Final(wanted.segments[0])


def test_a_producer_without_patience_loses_what_does_not_fit_and_it_is_told(nano: Model) -> None:
    sound = make_tones(10)
    with nano.session(max_new_tokens=4, buffer=2, partial_every=None) as session:
        pushed = [session.push(block) for block in blocks(sound, 8000)]
        assert pushed == [True] * 4 + [False] * 16
        assert session.lost == 0
        session.end()
        events = list(session.events())
        transcript = session.finish()
    assert events[0] == Overrun(2.0, 10.0)
    assert session.lost == 8
    assert (transcript.duration, transcript.complete) == (10.0, False)
    silenced = sound.copy()
    silenced[32000:] = 0
    assert transcript.segments == nano.transcribe(silenced, sample_rate=RATE, max_new_tokens=4).segments


def test_a_slow_consumer_gets_fewer_partials_and_the_same_text(tiny: Model) -> None:
    sound = audio.load(SAMPLES / "long.wav")
    wanted = tiny.transcribe(sound, sample_rate=RATE)

    def produce() -> None:
        for block in blocks(sound, 1600):
            session.push(block)
            time.sleep(0.002)
        session.end()

    with tiny.session(partial_every=0.1) as session:
        thread = in_thread(produce)
        partials = 0
        for event in session.events():
            partials += isinstance(event, Partial)
            time.sleep(0.05)
        thread.join()
        assert session.finish().segments == wanted.segments
    assert 0 < partials < 40


def test_events_can_be_left_and_asked_for_again(tiny: Model) -> None:
    sound, texts = speech(["hello", "digits"])
    with tiny.session(vad="on") as session:
        session.push(sound)
        session.end()
        first = next(session.events())
        rest = list(session.events())
    assert isinstance(first, SpeechStarted)
    assert [event.segment.text for event in rest if isinstance(event, Final)] == texts


def test_finish_works_on_what_was_pushed(tiny: Model) -> None:
    sound, texts = speech(["hello", "digits"])
    with tiny.session(vad="on") as session:
        for block in blocks(sound, 1000):
            session.push(block)
        assert session.finish().text == " ".join(texts)
        assert [event.segment.text for event in session.events() if isinstance(event, Final)] == texts


def test_a_session_can_be_used_again(tiny: Model) -> None:
    sound, texts = speech(["hello"])
    with tiny.session(vad="on") as session:
        for _ in range(3):
            session.push(sound)
            session.end()
            assert [event.segment.text for event in session.events() if isinstance(event, Final)] == texts
            session.reset()
            assert str(session.text) == ""


def test_feeding_and_pushing_cannot_be_mixed(nano: Model) -> None:
    with nano.session() as session:
        session.feed(make_tones(1))
        with pytest.raises(UsageError, match="fed"):
            session.push(make_tones(1))
        session.reset()
        session.push(make_tones(1))
        with pytest.raises(UsageError, match="pushed"):
            session.feed(make_tones(1))


def test_wrong_samples_are_refused_where_they_are_pushed(nano: Model) -> None:
    sound = make_tones(1)
    with nano.session(max_new_tokens=3) as session:
        for bad, rate in ((np.full(9, np.nan), RATE), (np.zeros(9, np.uint8), RATE), (sound, 0)):
            with pytest.raises(AudioError):
                session.push(bad, sample_rate=rate)
        session.push(sound)
        with pytest.raises(AudioError, match="cannot change"):
            session.push(sound, sample_rate=8000)
        assert session.finish().segments == nano.transcribe(sound, sample_rate=RATE, max_new_tokens=3).segments


def test_after_the_end_nothing_can_be_pushed(nano: Model) -> None:
    session = nano.session(max_new_tokens=2)
    session.push(make_tones(1))
    session.end()
    with pytest.raises(UsageError, match="ended"):
        session.push(make_tones(1))
    list(session.events())
    session.close()
    with pytest.raises(ClosedError):
        session.push(make_tones(1))
    with pytest.raises(ClosedError):
        list(session.events())


def test_an_end_without_audio_is_an_error(nano: Model) -> None:
    with nano.session() as session:
        session.end()
        with pytest.raises(AudioError, match="no audio"):
            list(session.events())


@pytest.mark.parametrize(
    ("option", "value"),
    [("silence", 0), ("silence", float("nan")), ("partial_every", -1), ("buffer", 0), ("vad", "maybe"), ("batch", 0)],
)
def test_options_that_cannot_be_are_refused(nano: Model, option: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"{option} cannot be {value!r}"):
        nano.session(**{option: value})  # type: ignore[arg-type]


def test_cancelling_keeps_what_was_heard_of_an_unfinished_segment(tiny: Model) -> None:
    with tiny.session() as session:
        session.feed(audio.load(SAMPLES / "long.wav")[: 10 * RATE])
        heard = str(session.text)
        session.cancel()
        with pytest.raises(CancelledError) as caught:
            session.finish()
    partial = caught.value.partial
    assert partial.text == heard != ""
    assert not partial.complete
    assert [segment.status for segment in partial.segments] == ["cancelled"]


def test_cancelling_wakes_whoever_waits(nano: Model) -> None:
    caught: list[BaseException] = []

    def consume() -> None:
        try:
            list(session.events())
        except CancelledError as error:
            caught.append(error)

    with nano.session() as session:
        session.push(make_tones(1))
        thread = in_thread(consume)
        time.sleep(0.2)
        session.cancel()
        thread.join(10)
        assert not thread.is_alive()
    assert len(caught) == 1

    with nano.session(buffer=1) as session:
        session.push(make_tones(1))
        pushed: list[bool] = []
        thread = in_thread(lambda: pushed.append(session.push(make_tones(1), wait=True)))
        time.sleep(0.1)
        session.cancel()
        thread.join(10)
        assert pushed == [False]


def test_a_second_consumer_is_told(nano: Model) -> None:
    with nano.session(max_new_tokens=3000, partial_every=None) as session:
        session.push(make_tones(25))
        session.end()
        inside = threading.Event()

        def consume() -> None:
            inside.set()
            list(session.events())

        thread = in_thread(consume)
        inside.wait(10)
        busy = 0
        while thread.is_alive():
            try:
                session.finish()
            except BusyError:
                busy += 1
        thread.join()
        assert busy
        assert session.finish().duration == 25


def looping(nano: Model) -> np.ndarray:
    """A sound at which the random model repeats itself."""
    for seed in range(40):
        sound = make_tones(20, seed)
        with nano.session(partial_every=None) as session:
            session.feed(sound)
            first = next(session.tokens())  # what somebody has seen is not decoded in another way
            segments = session.finish().segments
            if [segment.status for segment in segments] == ["looped"]:
                assert segments[0].tokens[0] == first
                return sound
    raise AssertionError("this model does not repeat itself")


def test_a_segment_that_loops_is_tried_again_in_two_parts(nano: Model) -> None:
    sound = looping(nano)
    transcript = nano.transcribe(sound, sample_rate=RATE)
    one, other = transcript.segments
    assert (one.start, one.end, other.end) == (0, other.start, 20)
    assert 5 <= one.end <= 15
    cut = round(one.end * RATE)
    for segment, part in ((one, sound[:cut]), (other, sound[cut:])):
        with nano.session(partial_every=None) as session:
            session.feed(part)
            alone = [token.id for token in session.tokens()]
        assert [token.id for token in segment.tokens] == alone
    assert transcript.complete == ({one.status, other.status} == {"ok"})
    assert len({token.id for token in other.tokens}) > 0
    assert next(iter(nano.transcribe_many([sound], sample_rate=RATE))).segments == transcript.segments
    with nano.session() as session:
        for block in blocks(sound, 4000):
            session.feed(block)
        assert session.finish().segments == transcript.segments


@pytest.mark.parametrize("how", ["feed", "push"])
@pytest.mark.parametrize(("channels", "size"), [(2, 1), (2, 1600), (6, 4), (64, 3)])
def test_blocks_may_have_fewer_frames_than_channels(tiny: Model, how: str, channels: int, size: int) -> None:
    sound = audio.load(SAMPLES / "hello.wav")
    frames = np.repeat(sound[: 16000 if size < 100 else 16001, None], channels, axis=1)
    with tiny.session(partial_every=None) as session:
        for start in range(0, len(frames), size):
            getattr(session, how)(frames[start : start + size])
        last = session.finish()
    assert last == dataclasses.replace(tiny.transcribe(frames, sample_rate=16000), timings=last.timings)


@pytest.mark.parametrize("how", ["feed", "push"])
def test_blocks_with_the_channels_first_are_refused(nano: Model, how: str) -> None:
    with nano.session() as session, pytest.raises(AudioError, match=r"\(2, 1600\).*pass audio\.T"):
        getattr(session, how)(np.zeros((2, 1600), np.float32))


def test_what_was_pushed_has_tokens_too(tiny: Model) -> None:
    sound = audio.load(SAMPLES / "digits.wav")
    with tiny.session() as session:
        session.push(sound)
        tokens = list(session.tokens())
        last = session.finish()
    assert (
        "".join(token.text for token in tokens).strip() == last.text == tiny.transcribe(sound, sample_rate=16000).text
    )
