"""The drop-ins tell a model the language and a context where it takes them, and what it says the language is."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from pycrispasr import Model, Segment, UnsupportedOperationError, UsageError
from pycrispasr.compat import common, languages, whisper
from pycrispasr.compat.faster_whisper import BatchedInferencePipeline, WhisperModel
from pycrispasr.models.random_model import generate

from .qwen3_asr_file import Telling
from .sounds import make_tones

SOUND = make_tones(4, seed=8)
LIMIT = 8  # tokens of a random model's text, which does not end
UNFINISHED = r".*(truncated|looped)$"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen") / "nano.gguf"
    generate(path, preset="qwen3-asr-nano", type="f32", seed=1)
    return path


@pytest.fixture(scope="module")
def model(path: Path) -> WhisperModel:
    return WhisperModel(path, cpu_threads=1)


@pytest.fixture(scope="module")
def original(path: Path) -> whisper.Whisper:
    return whisper.load_model(path)


@pytest.fixture(scope="module")
def telling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Telling]:
    found = Telling(tmp_path_factory.mktemp("telling"))
    with found.model:
        yield found


Texts = Callable[..., list[int]]


@pytest.fixture(params=["faster-whisper", "batched", "openai-whisper", "decode"])
def tokens(request: pytest.FixtureRequest, model: WhisperModel, original: whisper.Whisper) -> Texts:
    """The tokens that one of the drop-ins makes of the sound."""

    def heard(**options: Any) -> list[int]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=UNFINISHED)
            if request.param == "faster-whisper":
                return [
                    token for one in model.transcribe(SOUND, max_new_tokens=LIMIT, **options)[0] for token in one.tokens
                ]
            if request.param == "batched":
                segments, _ = BatchedInferencePipeline(model).transcribe(
                    SOUND, vad_filter=False, max_new_tokens=LIMIT, **options
                )
                return [token for one in segments for token in one.tokens]
            if request.param == "openai-whisper":
                result = original.transcribe(SOUND, sample_len=LIMIT, **options)
                return [token for one in result["segments"] for token in one["tokens"]]
            options["prompt"] = options.pop("initial_prompt", None)
            return original.decode(whisper.log_mel_spectrogram(SOUND), sample_len=LIMIT, **options).tokens

    return heard


def wanted(model: WhisperModel, **options: Any) -> list[int]:
    transcript = model.model.transcribe(SOUND, sample_rate=16000, max_new_tokens=LIMIT, **options)
    return [token.id for token in transcript.segments[0].tokens]


def test_a_language_is_told_to_the_model(tokens: Texts, model: WhisperModel) -> None:
    french = wanted(model, language="fr")
    assert french != wanted(model)
    for name in ("fr", "FR", " French "):
        assert tokens(language=name) == french
    assert tokens() == wanted(model)


def test_a_prompt_is_told_to_the_model_as_a_context(tokens: Texts, model: WhisperModel) -> None:
    told = wanted(model, context="Zwickau, Łódź.")
    assert told != wanted(model)
    assert tokens(initial_prompt=" Zwickau, Łódź.") == tokens(initial_prompt=["Zwickau", "Łódź."]) == told
    assert tokens(initial_prompt=" ") == wanted(model)


def test_hotwords_follow_the_prompt(model: WhisperModel, original: whisper.Whisper) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given, context in (
            ({"initial_prompt": "On mines.", "hotwords": "Zwickau Ærø"}, "On mines.\nZwickau Ærø"),
            ({"hotwords": "Zwickau Ærø", "carry_initial_prompt": True}, "Zwickau Ærø"),
        ):
            assert common.check(model.model, given).context == context
            model.transcribe(SOUND, **given)  # type: ignore[arg-type]
        original.transcribe(SOUND[:0:-1], initial_prompt="On mines.", carry_initial_prompt=True, sample_len=None)


def test_tokens_of_whisper_are_no_context_and_are_warned_of(model: WhisperModel) -> None:
    for value in ([50257, 11], iter([50257, 11])):
        with pytest.warns(UserWarning, match=r"^initial_prompt=\(50257, 11\) has no effect: tokens are") as caught:
            model.transcribe(SOUND, initial_prompt=value)
        assert [one.filename for one in caught] == [__file__]
    with pytest.raises(TypeError, match="hotwords must be a str, not 5"):
        model.transcribe(SOUND, hotwords=5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="context cannot have NUL"):
        model.transcribe(SOUND, hotwords="a\0b")


def test_a_language_that_the_model_does_not_take_is_a_value_error_with_those_that_it_takes(
    tokens: Texts, model: WhisperModel
) -> None:
    for name in ("la", "klingon", "", "fr-FR"):
        with pytest.raises(
            ValueError, match=rf"language='{name}': this model takes ar, cs, da.*tl, tr, vi, yue, zh, or"
        ):
            tokens(language=name)
    with pytest.raises(UnsupportedOperationError, match="task='translate'"):
        model.transcribe(SOUND, task="translate")


def test_what_the_model_says_is_told_as_the_language(telling: Telling, monkeypatch: pytest.MonkeyPatch) -> None:
    faster, original = WhisperModel("pycrispasr/tiny"), whisper.load_model("pycrispasr/tiny")
    for one in (faster, original):
        monkeypatch.setattr(one, "model", telling.model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=UNFINISHED)
        segments, info = faster.transcribe(telling.sound, max_new_tokens=LIMIT)
        assert (info.language, info.language_probability) == ("fr", 1.0)
        assert "".join(segment.text for segment in segments) == telling.text
        result = original.transcribe(telling.sound, sample_len=LIMIT)
        assert (result["language"], result["text"]) == ("fr", telling.text)
        mel = whisper.log_mel_spectrogram(telling.sound)
        assert original.decode(mel, sample_len=LIMIT).language == "fr"
        _, probabilities = original.detect_language(mel)
    language, share, every = faster.detect_language(telling.sound)
    assert (language, share, every[0]) == ("fr", 1.0, ("fr", 1.0))
    assert dict(every) == probabilities
    assert len(every) == len(telling.model.languages)
    assert {share for _, share in every[1:]} == {0.0}


def test_no_language_is_made_up_where_the_model_names_none(model: WhisperModel, original: whisper.Whisper) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=UNFINISHED)
        segments, info = model.transcribe(SOUND, max_new_tokens=LIMIT)
        assert next(segments).text
        assert (info.language, info.language_probability) == (None, 0.0)
        assert original.transcribe(SOUND, sample_len=LIMIT)["language"] is None
        language, share, every = model.detect_language(SOUND)
    assert (language, share) == ("en", 0.0)
    assert {share for _, share in every} == {0.0}
    json.dumps(dataclasses.asdict(info))


class Fake:
    """A model that says what it is told to."""

    runtime = "pycrispasr"
    languages = MappingProxyType({"de": "German", "fil": "Filipino", "fr": "French"})
    takes_context = True

    def __init__(self, *segments: Segment) -> None:
        self.calls: list[dict[str, Any]] = []
        self.result = segments

    def segments(self, samples: object, **options: Any) -> Iterator[Segment]:
        self.calls.append(options)
        yield from self.result


@pytest.fixture
def fake(model: WhisperModel, original: whisper.Whisper, monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake(
        Segment(0.0, 3.0, "Ja", (), "ok", language="de"),
        Segment(3.0, 4.0, "", (), "ok"),
        Segment(4.0, 5.0, "Oo", (), "ok", language="Filipino"),
        Segment(5.0, 9.0, "Oo", (), "ok", language="fil"),
    )
    for one in (model, original):
        monkeypatch.setattr(one, "model", fake)
    return fake


def test_of_several_languages_the_one_with_most_of_the_audio_counts(
    fake: Fake, model: WhisperModel, original: whisper.Whisper
) -> None:
    mel = whisper.log_mel_spectrogram(SOUND)
    assert original.transcribe(SOUND)["language"] == original.decode(mel).language == "tl"
    assert original.detect_language(mel)[1] == {"tl": 0.625, "de": 0.375, "fr": 0.0}
    assert model.detect_language(SOUND) == ("tl", 0.625, [("tl", 0.625), ("de", 0.375), ("fr", 0.0)])
    _, info = model.transcribe(SOUND)
    assert (info.language, info.language_probability) == ("de", 1.0)  # of the first text, as it is made


def test_the_language_alone_is_found_without_the_whole_text(fake: Fake, model: WhisperModel) -> None:
    fake.result += (Segment(9.0, 10.0, "", (), "failed", error="no memory"), Segment(10.0, 11.0, "", (), "truncated"))
    with pytest.warns(UserWarning, match="failed") as caught:
        model.detect_language(SOUND, vad_filter=True, vad_parameters={"min_silence_duration_ms": 500})
    assert [str(one.message) for one in caught] == ["9.00-10.00 s: failed no memory"]
    (call,) = fake.calls
    assert (call["vad"], call["silence"]) == ("on", 0.5)
    assert call["max_new_tokens"] <= 32


@pytest.mark.parametrize("name", ["fil", "tl", "Filipino", "tagalog", "TL"])
def test_whispers_names_and_the_models_mean_the_same_language(fake: Fake, model: WhisperModel, name: str) -> None:
    segments, info = model.transcribe(SOUND, language=name)
    assert (info.language, info.language_probability) == ("tl", 1.0)
    assert next(segments).text == "Ja"
    assert fake.calls[0]["language"] == "fil"


def test_of_a_recording_in_many_languages_none_is_told(fake: Fake, model: WhisperModel) -> None:
    with pytest.warns(UserWarning, match=r"^language='fr' has no effect: with multilingual=True"):
        _, info = model.transcribe(SOUND, language="fr", multilingual=True)
    assert info.language == "de"
    assert fake.calls[0]["language"] is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.transcribe(SOUND, multilingual=True)


def test_every_language_of_the_model_has_one_code_of_whisper_s(model: WhisperModel, original: whisper.Whisper) -> None:
    known = model.supported_languages
    assert len(set(known)) == len(known) == len(model.model.languages)
    assert set(known) <= set(languages.LANGUAGES)
    assert (model.is_multilingual, original.is_multilingual) == (True, True)
    names = languages.by_any_name(model.model.languages)
    assert set(names.values()) == set(model.model.languages)
    for alias, code in {"mandarin": "zh", "castilian": "es", "flemish": "nl"}.items():
        assert names[alias] == code


def test_models_that_take_no_language_say_so_as_before(tiny: Model) -> None:
    assert common.languages(tiny) == ["en"]
    with pytest.warns(UserWarning, match="hotwords='x' has no effect: this model takes no text beside the audio"):
        hints = common.check(tiny, {"hotwords": "x"}, "English")
    assert (hints.language, hints.told, hints.context) == ("en", None, None)


def test_a_list_of_hotwords_is_one_text() -> None:
    assert common.check(Fake(), {"hotwords": ["Zwickau", "Ærø"]}).context == "Zwickau, Ærø"  # type: ignore[arg-type]
    assert np.all([common.check(Fake(), {"prompt": value}).context is None for value in (None, "", [], ())])  # type: ignore[arg-type]
