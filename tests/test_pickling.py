"""Errors, results and models go from process to process, and can be copied."""

from __future__ import annotations

import concurrent.futures
import copy
import dataclasses
import multiprocessing
import operator
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pycrispasr
from pycrispasr import ClosedError, LiveText, Model, Segment, Timings, Token, Transcript, Word, errors

SAMPLES = Path(__file__).parent.parent / "samples"
PARTIAL = Transcript(
    "one", (Segment(0.0, 1.0, "one", (Token(3, "one", 0.5),), "cancelled"),), 1.0, None, False, Timings()
)

WAYS: dict[str, Callable[[Any], Any]] = {
    **{
        f"protocol {number}": lambda value, number=number: pickle.loads(pickle.dumps(value, number))
        for number in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_keeps_its_type_message_and_attributes(name: str, way: str) -> None:
    kind = getattr(errors, name)
    error = kind("a message", PARTIAL) if kind is errors.CancelledError else kind("a message")
    error.more = "added by a program"
    again = WAYS[way](error)
    assert type(again) is kind
    assert str(again) == str(error) == "a message"
    assert vars(again) == vars(error)


RESULTS = (
    PARTIAL,
    *PARTIAL.segments,
    *PARTIAL.segments[0].tokens,
    Word("one", 0.0, 0.5, 0.9),
    Timings(total=1.0),
    LiveText("one", " two"),
    pycrispasr.SpeechStarted(0.5),
    pycrispasr.Partial(0.0, 1.0, "one", " two"),
    pycrispasr.Final(PARTIAL.segments[0]),
    pycrispasr.Silence(2.0),
    pycrispasr.Overrun(1.0, 2.0),
    pycrispasr.Device("cpu", "a processor", "AVX2", 1, 2),
    pycrispasr.Backend("cuda", False, "it is not compiled in"),
    pycrispasr.LoadingOptions(threads=1),
    pycrispasr.ReadingOptions(vad="on"),
    pycrispasr.DecodingOptions(batch=2),
    pycrispasr.Progress(1, 1, 2.0, 3.0, None, PARTIAL.segments, "two"),
)


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_every_result_is_equal_afterwards(result: object) -> None:
    for way in WAYS.values():
        assert way(result) == result


def test_every_public_dataclass_is_tried_here(nano: Model) -> None:
    public = (getattr(pycrispasr, name) for name in pycrispasr.__all__)
    kinds = {one for one in public if isinstance(one, type) and dataclasses.is_dataclass(one)}
    assert kinds == {type(result) for result in (*RESULTS, nano.info)}
    assert all(way(nano.info) == nano.info for way in WAYS.values())


def test_a_model_is_pickled_as_its_arguments(nano_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(nano_path.parent)
    with Model(nano_path.name, threads=1, precision="f32") as model:
        content = pickle.dumps(model)
    monkeypatch.chdir("/")  # a worker may run elsewhere
    with pickle.loads(content) as again:
        assert again._options == model._options
        assert again.info == model.info
    with Model("tiny") as model, copy.copy(model) as again:
        assert repr(again) == repr(model)
        assert b"bundled" not in pickle.dumps(model)  # it may lie elsewhere in the other process


def test_what_cannot_be_pickled_says_why(nano: Model, nano_path: Path) -> None:
    with nano.session() as session, pytest.raises(TypeError, match=r"a session cannot be pickled.*pass the model"):
        pickle.dumps(session)
    model = Model(nano_path)
    model.close()
    with pytest.raises(ClosedError, match="is closed"):
        pickle.dumps(model)


def test_workers_get_a_model_and_send_back_transcripts_and_errors(tiny: Model) -> None:
    sample = SAMPLES / "hello.wav"
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        heard = pool.submit(operator.methodcaller("transcribe", sample, word_timestamps=True), tiny)
        missing = pool.submit(operator.methodcaller("transcribe", "nowhere.wav"), tiny)
        code = "import pycrispasr; raise pycrispasr.CancelledError('stopped', None)"
        cancelled = pool.submit(exec, code)
        again = pool.submit(operator.methodcaller("transcribe", sample, word_timestamps=True), tiny)
        assert heard.result(60).segments == tiny.transcribe(sample, word_timestamps=True).segments
        with pytest.raises(errors.AudioNotFoundError, match=r"nowhere\.wav"):
            missing.result(60)
        with pytest.raises(errors.CancelledError, match="stopped"):
            cancelled.result(60)
        assert again.result(60).segments == heard.result(60).segments
