"""Options are declared once: signatures, docstrings and checks of all that take them follow."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import pycrispasr
from pycrispasr import Model, UsageError, options
from pycrispasr.options import DecodingOptions, LoadingOptions, ReadingOptions
from pycrispasr.ray import Transcriber

KINDS = [
    (LoadingOptions, options.LoadingKeywords),
    (ReadingOptions, options.ReadingKeywords),
    (DecodingOptions, options.DecodingKeywords),
]
TAKERS = [
    Model, Model.transcribe, Model.segments, Model.stream, Model.transcribe_many, Model.job, Model.session,
    pycrispasr.transcribe, Transcriber,
]  # fmt: skip
DECLARED = {field.name: field for kind, _ in KINDS for field in dataclasses.fields(kind)}


@pytest.mark.parametrize(("kind", "keywords"), KINDS, ids=lambda one: one.__name__)
def test_keywords_are_the_fields_and_of_their_types(kind: type, keywords: type) -> None:
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    taken = {name: getattr(one, "__forward_arg__", one) for name, one in keywords.__annotations__.items()}
    assert taken == fields


@pytest.mark.parametrize(("kind", "_"), KINDS, ids=lambda one: one.__name__)
def test_options_are_frozen_and_by_keyword_only(kind: type, _: type) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(kind(), dataclasses.fields(kind)[0].name, None)
    with pytest.raises(TypeError):
        kind("on")


@pytest.mark.parametrize("function", TAKERS, ids=lambda one: one.__qualname__)
def test_signature_and_docstring_have_each_option_with_its_default(function: typing.Any) -> None:
    documented = function.__doc__
    parameters = inspect.signature(function).parameters
    taken = [name for name in parameters if name in DECLARED]
    assert "options" not in parameters
    assert taken
    for name in taken:
        default = 1 if (name, function) == ("batch", Model.session) else DECLARED[name].default
        assert parameters[name].default == default
        assert f"\n            {name}: " in documented or f"\n        {name}: " in documented


@pytest.mark.parametrize("call", ["transcribe", "segments", "stream", "transcribe_many", "job", "session"])
def test_an_unknown_option_is_a_type_error_that_names_it(call: str, nano: Model) -> None:
    arguments = () if call == "session" else ([],)
    with pytest.raises(TypeError, match=rf"{call}\(\) got an unexpected keyword argument 'nonesuch'"):
        getattr(nano, call)(*arguments, nonesuch=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"vad": "maybe"}, "vad cannot be 'maybe': choose 'auto', 'on' or 'off'"),
        ({"silence": 0}, "silence cannot be 0: it must be a positive number of seconds"),
        ({"silence": float("nan")}, "silence cannot be nan"),
        ({"max_new_tokens": 0}, "max_new_tokens cannot be 0: it must be at least 1"),
    ],
)
def test_every_call_checks_options_before_any_work(wrong: dict[str, typing.Any], message: str, nano: Model) -> None:
    for call in (nano.transcribe, nano.segments, nano.transcribe_many, nano.job, nano.stream):
        with pytest.raises(UsageError, match=message):
            call("nowhere.wav", **wrong)
    with pytest.raises(UsageError, match=message):
        nano.session(**wrong)


def test_none_stands_for_the_default(nano: Model) -> None:
    assert ReadingOptions.of(dict.fromkeys(DECLARED)) == ReadingOptions()
    assert DecodingOptions.of(dict.fromkeys(DECLARED)) == DecodingOptions()
    assert DecodingOptions().token_limit == options.MAX_NEW_TOKENS
    assert [ReadingOptions(vad=vad).silence_seconds for vad in ("auto", "on")] == [1.0, 0.8]


def test_without_docstrings_everything_works(nano_path: Path) -> None:
    code = f"import pycrispasr; print(pycrispasr.Model({str(nano_path)!r}, threads=1).info.llm_layers)"
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) > 0
