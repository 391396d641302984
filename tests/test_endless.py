"""A session that goes on for hours: every word comes out, at the right time, in flat memory."""

from __future__ import annotations

import time

import numpy as np
import psutil
import pytest

from pycrispasr import Final, Model, Partial, Segment

from .sounds import Composition

pytestmark = pytest.mark.serial

RATE = 16000
MIB = 1 << 20


def listen(model: Model, seconds: float) -> None:
    composition = Composition(seconds)
    process = psutil.Process()
    memory: list[int] = []
    segments: list[Segment] = []
    partials = 0
    with model.session(vad="on") as session:
        for start in range(0, composition.length, 1600):
            session.feed(composition.samples(start, min(start + 1600, composition.length)))
            for event in session.poll():
                partials += isinstance(event, Partial)
                if isinstance(event, Final):
                    segments.append(event.segment)
            if start % (60 * RATE) == 0:
                memory.append(process.memory_info().rss)
        transcript = session.finish()
    assert transcript.complete
    assert transcript.duration == composition.length / RATE
    assert transcript.text.split() == composition.words
    assert tuple(segments) == transcript.segments
    assert session.text.committed == transcript.text
    assert partials > len(segments)
    # The transcript itself grows, by less than 2 kB a segment; samples would take 220 MiB an hour.
    settled = memory[max(1, len(memory) // 10)]
    assert memory[-1] - settled < 8 * MIB + 2000 * len(segments)
    # The times are exact: what lies between them has the same tokens with the same probabilities.
    chosen = {0, len(segments) - 1, *np.random.default_rng(1).integers(len(segments), size=30).tolist()}
    for index in chosen:
        start, end = round(segments[index].start * RATE), round(segments[index].end * RATE)
        alone = model.transcribe(composition.samples(start, end), sample_rate=RATE).segments[0]
        assert [(t.id, t.probability) for t in alone.tokens] == [(t.id, t.probability) for t in segments[index].tokens]


def test_five_minutes(tiny: Model) -> None:
    listen(tiny, 300)


@pytest.mark.slow
def test_four_hours(tiny: Model) -> None:
    begun = time.perf_counter()
    listen(tiny, 4 * 3600)
    print(f"four hours of audio in {time.perf_counter() - begun:.0f} s")
