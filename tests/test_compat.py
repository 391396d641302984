"""Programs for faster-whisper and openai-whisper run after a change of their imports, and are told what differs."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import re
import shutil
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import soundfile

from pycrispasr import (
    AudioError,
    AudioNotFoundError,
    Model,
    ModelNotFoundError,
    Segment,
    Timings,
    Token,
    Transcript,
    UnsupportedOperationError,
    UsageError,
    Word,
    devices,
)
from pycrispasr.compat import common, faster_whisper, whisper
from pycrispasr.compat.faster_whisper import BatchedInferencePipeline, WhisperModel

CUDA = any(device.name == "cuda:0" for device in devices())
ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "samples"
DATE = (SAMPLES / "date.txt").read_text(encoding="utf-8").strip()
LONG = (SAMPLES / "long.txt").read_text(encoding="utf-8").strip()
DROP_IN = (ROOT / "docs" / "drop-in.md").read_text(encoding="utf-8")

# What the packages' own READMEs show: the same calls with the same arguments, but for the import.
FASTER_WHISPER = {
    "usage": """
        from pycrispasr.compat.faster_whisper import WhisperModel

        model_size = "large-v3"

        # Run on GPU with FP16
        model = WhisperModel(model_size, device="cuda", compute_type="float16")

        segments, info = model.transcribe("audio.mp3", beam_size=5)

        print("Detected language '%s' with probability %f" % (info.language, info.language_probability))

        for segment in segments:
            print("[%.2fs -> %.2fs] %s" % (segment.start, segment.end, segment.text))
        """,
    "a list": """
        from pycrispasr.compat.faster_whisper import WhisperModel

        model = WhisperModel("large-v3", device="cpu", compute_type="int8")
        segments, _ = model.transcribe("audio.mp3")
        segments = list(segments)  # The transcription will actually run here.
        print(segments[0].text)
        """,
    "batched": """
        from pycrispasr.compat.faster_whisper import WhisperModel, BatchedInferencePipeline

        model = WhisperModel("turbo", device="cuda", compute_type="float16")
        batched_model = BatchedInferencePipeline(model=model)
        segments, info = batched_model.transcribe("audio.mp3", batch_size=16)

        for segment in segments:
            print("[%.2fs -> %.2fs] %s" % (segment.start, segment.end, segment.text))
        """,
    "distil": """
        from pycrispasr.compat.faster_whisper import WhisperModel

        model_size = "distil-large-v3"

        model = WhisperModel(model_size, device="cuda", compute_type="float16")
        segments, info = model.transcribe("audio.mp3", beam_size=5, language="en", condition_on_previous_text=False)

        for segment in segments:
            print("[%.2fs -> %.2fs] %s" % (segment.start, segment.end, segment.text))
        """,
    "words": """
        from pycrispasr.compat.faster_whisper import WhisperModel

        model = WhisperModel("large-v3")
        segments, _ = model.transcribe("audio.mp3", word_timestamps=True)

        for segment in segments:
            for word in segment.words:
                print("[%.2fs -> %.2fs] %s" % (word.start, word.end, word.word))
        """,
    "vad": """
        from pycrispasr.compat.faster_whisper import WhisperModel

        model = WhisperModel("large-v3")
        segments, _ = model.transcribe("audio.mp3", vad_filter=True)
        print("".join(segment.text for segment in segments))
        segments, _ = model.transcribe(
            "audio.mp3",
            vad_filter=True,
            vad_parameters=dict(min_silence_duration_ms=500),
        )
        print("".join(segment.text for segment in segments))
        """,
}
WHISPER = {
    "usage": """
        from pycrispasr.compat import whisper

        model = whisper.load_model("turbo")
        result = model.transcribe("audio.mp3")
        print(result["text"])
        """,
    "lower level": """
        from pycrispasr.compat import whisper

        model = whisper.load_model("turbo")

        # load audio and pad/trim it to fit 30 seconds
        audio = whisper.load_audio("audio.mp3")
        audio = whisper.pad_or_trim(audio)

        # make log-Mel spectrogram and move to the same device as the model
        mel = whisper.log_mel_spectrogram(audio, n_mels=model.dims.n_mels).to(model.device)

        # detect the spoken language
        _, probs = model.detect_language(mel)
        print(f"Detected language: {max(probs, key=probs.get)}")

        # decode the audio
        options = whisper.DecodingOptions()
        result = whisper.decode(model, mel, options)

        # print the recognized text
        print(result.text)
        """,
}
EXAMPLES = [
    pytest.param(code, id=f"{package}: {name}")
    for package, examples in (("faster-whisper", FASTER_WHISPER), ("openai-whisper", WHISPER))
    for name, code in examples.items()
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_examples_of_others_run_but_for_the_import(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(SAMPLES / "date.mp3", tmp_path / "audio.mp3")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(common, "MODEL", "tiny")  # the published model is not here
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(textwrap.dedent(code), {})
    told = [str(one.message) for one in caught]
    assert "is a model for Whisper: 'tiny' is used" in told.pop()
    assert told == (["there is no device 'cuda:0': the CPU is used"] if "cuda" in code and not CUDA else [])
    said = "".join(re.findall(r"^(?:\[[^]]*\])?(.*)$", capsys.readouterr().out, re.MULTILINE))
    assert DATE in " ".join(said.split())


@pytest.fixture(scope="module")
def model() -> WhisperModel:
    return WhisperModel("pycrispasr/tiny")


@pytest.fixture(scope="module")
def original() -> whisper.Whisper:
    return whisper.load_model("pycrispasr/tiny")


def test_segments_are_what_the_model_gives(model: WhisperModel, tiny: Model) -> None:
    wanted = tiny.transcribe(SAMPLES / "long.wav").segments
    segments, info = model.transcribe(SAMPLES / "long.wav")
    found = list(segments)
    assert "".join(segment.text for segment in found) == LONG
    assert [(s.start, s.end, s.tokens) for s in found] == [(s.start, s.end, [t.id for t in s.tokens]) for s in wanted]
    assert [s.id for s in found] == list(range(1, len(found) + 1))
    assert [s.seek for s in found] == [round(s.start * 100) for s in wanted]
    assert found[0].avg_logprob == pytest.approx(np.mean([math.log(t.probability) for t in wanted[0].tokens]))
    assert info.duration == info.duration_after_vad == pytest.approx(soundfile.info(SAMPLES / "long.wav").duration)
    assert (info.language, info.all_language_probs) == ("en", None)
    json.dumps([dataclasses.asdict(one) for one in [*found, info]], allow_nan=False)


def test_whispers_result_has_its_shape(original: whisper.Whisper, capsys: pytest.CaptureFixture[str]) -> None:
    result = original.transcribe(str(SAMPLES / "long.wav"), verbose=True)
    assert set(result) == {"text", "segments", "language"}
    assert result["text"] == "".join(segment["text"] for segment in result["segments"]) == LONG
    assert result["language"] == "en"
    for number, segment in enumerate(result["segments"]):
        assert segment["id"] == number
        assert set(segment) == {
            "id", "seek", "start", "end", "text", "tokens", "temperature", "avg_logprob", "compression_ratio",
            "no_speech_prob",
        }  # fmt: skip
    shown = capsys.readouterr().out
    assert re.match(r"\[00:00\.000 --> 00:\d\d\.\d{3}\] hello", shown)
    assert whisper.transcribe(original, SAMPLES / "long.wav")["text"] == LONG
    assert capsys.readouterr().out == ""
    json.dumps(result, allow_nan=False)


def test_samples_and_files_give_the_same(model: WhisperModel, original: whisper.Whisper) -> None:
    samples = whisper.load_audio(SAMPLES / "date.mp3")
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, faster_whisper.decode_audio(str(SAMPLES / "date.mp3")))
    assert [s.text for s in model.transcribe(samples)[0]] == [DATE]
    with (SAMPLES / "date.mp3").open("rb") as file:
        assert [s.text for s in model.transcribe(file)[0]] == [DATE]
    assert original.transcribe(samples)["text"] == DATE


class Counting:
    """A model that tells when it is asked to work, and gives what it is told to."""

    runtime = "pycrispasr"
    languages = MappingProxyType({})
    takes_context = False

    def __init__(self, *segments: Segment) -> None:
        self.calls: list[dict[str, Any]] = []
        self.given = 0
        self.result = segments

    def segments(self, samples: object, **options: Any) -> Iterator[Segment]:
        self.calls.append(options)
        for segment in self.result:
            self.given += 1
            yield segment

    def transcribe(self, samples: object, **options: Any) -> Transcript:
        self.calls.append(options)
        return Transcript("", self.result, 60.0, "fr", True, Timings())


def said(text: str, start: float = 0.0, **more: Any) -> Segment:
    return Segment(start, start + 1, text, (Token(1, text, 0.5),), **({"status": "ok"} | more))


@pytest.fixture
def counting(model: WhisperModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    counting = Counting(said("one"), said("two", 1.0))
    monkeypatch.setattr(model, "model", counting)
    return counting


def test_no_work_is_done_before_segments_or_the_language_are_asked_for(model: WhisperModel, counting: Counting) -> None:
    segments, info = model.transcribe(SAMPLES / "hello.wav", max_new_tokens=7, batch_size=3)
    assert info.duration > 0
    assert counting.calls == []
    assert next(segments).text == "one"
    assert counting.given == 1
    assert [segment.text for segment in segments] == [" two"]
    (call,) = counting.calls
    assert (call["max_new_tokens"], call["batch"], call["vad"]) == (7, 3, "off")

    segments, info = model.transcribe(SAMPLES / "hello.wav")
    assert counting.given == 2
    assert (info.language, info.language_probability) == ("en", 1.0)
    assert counting.given == 3
    assert [segment.text for segment in segments] == ["one", " two"]
    assert (len(counting.calls), counting.given) == (2, 4)
    assert pickle.loads(pickle.dumps(info)) == info


def test_the_voice_detector_gets_its_options(model: WhisperModel, counting: Counting) -> None:
    hello, pause = SAMPLES / "hello.wav", {"min_silence_duration_ms": 500}
    for call in (
        lambda: model.transcribe(hello, vad_filter=True, vad_parameters=pause),
        lambda: BatchedInferencePipeline(model).transcribe(hello),
        lambda: BatchedInferencePipeline(model).transcribe(hello, vad_filter=False),
    ):
        list(call()[0])
    assert [(call["vad"], call["silence"]) for call in counting.calls] == [("on", 0.5), ("on", 2.0), ("off", None)]


def test_a_language_that_the_runtime_tells_is_passed_on(
    model: WhisperModel, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "runtime", "crispasr")
    segments, info = model.transcribe(SAMPLES / "hello.wav")
    assert (info.language, info.language_probability) == ("fr", 1.0)
    assert [segment.text for segment in segments] == ["one", " two"]


@pytest.mark.parametrize(
    ("text", "language"),
    [("你好，GPU 世界", ("zh", 0.8)), ("hello 你 world now", ("en", 0.75)), ("", (None, 0.0)), ("...", (None, 0.0))],
)
def test_the_language_is_told_by_the_script(text: str, language: tuple[str | None, float]) -> None:
    assert common.script(text) == language


def test_words_have_the_spaces_that_join_them(
    model: WhisperModel, original: whisper.Whisper, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (Word("two", 1.0, 1.2, 0.5), Word("three", 1.2, 2.0, 0.25))
    counting.result = said("one"), said("two three", 1.0, words=words), said("你好", 2.0)
    first, second, third = model.transcribe(SAMPLES / "hello.wav")[0]
    assert first.words is None
    assert second.words == [faster_whisper.Word(1.0, 1.2, " two", 0.5), faster_whisper.Word(1.2, 2.0, " three", 0.25)]
    assert second.text == " two three"
    assert third.text == "你好"
    monkeypatch.setattr(original, "model", counting)
    segment = original.transcribe(SAMPLES / "hello.wav")["segments"][1]
    assert segment["words"][1] == {"word": " three", "start": 1.2, "end": 2.0, "probability": 0.25}
    assert "".join(word["word"] for word in segment["words"]) == segment["text"] == " two three"


def test_words_of_the_model_join_to_its_text(model: WhisperModel, original: whisper.Whisper) -> None:
    for segment in model.transcribe(SAMPLES / "long.wav", word_timestamps=True)[0]:
        words = segment.words or []
        assert "".join(word.word for word in words) == segment.text
        assert [word.start for word in words] == sorted(word.start for word in words)
        assert segment.start <= words[0].start < words[-1].end <= segment.end
    result = original.transcribe(SAMPLES / "long.wav", word_timestamps=True)
    assert "".join(word["word"] for segment in result["segments"] for word in segment["words"]) == LONG


def test_what_did_not_end_well_is_warned_of(model: WhisperModel, counting: Counting) -> None:
    counting.result = said("", status="failed", error="no memory"), said("two", 1.0, status="truncated")
    segments, _ = model.transcribe(SAMPLES / "hello.wav")
    with pytest.warns(UserWarning, match="failed|truncated") as caught:
        assert [segment.text for segment in segments] == ["two"]
    assert [str(one.message) for one in caught] == ["0.00-1.00 s: failed no memory", "1.00-2.00 s: truncated"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "fr"}, "language='fr': this model is for English"),
        ({"task": "translate"}, "task='translate': this model writes down what is said"),
        ({"clip_timestamps": "0,5"}, "clip_timestamps='0,5': pass the part"),
        ({"clip_timestamps": [3.0]}, r"clip_timestamps=\(3.0,\)"),
        ({"prefix": "So"}, "prefix='So': this model cannot"),
    ],
)
def test_what_would_give_another_text_is_refused(
    model: WhisperModel, original: whisper.Whisper, options: dict[str, Any], message: str
) -> None:
    for call in (model.transcribe, BatchedInferencePipeline(model).transcribe, original.transcribe):
        with pytest.raises(UnsupportedOperationError, match=message):
            call(SAMPLES / "hello.wav", **options)


OTHER_VALUES: dict[str, object] = {
    "carry_initial_prompt": True, "suppress_blank": False, "log_progress": True, "initial_prompt": "names",
    "prompt": [1], "hotwords": "names", "temperature": (0.4, 0.8), "suppress_tokens": [1, 2],
    "prepend_punctuations": "x", "append_punctuations": "x", "multilingual": None, "without_timestamps": None,
    "fp16": None, "condition_on_previous_text": None,
}  # fmt: skip


@pytest.mark.parametrize("option", common._HARMLESS)
def test_other_options_warn_where_their_value_would_mean_something(model: WhisperModel, option: str) -> None:
    hello = SAMPLES / "hello.wav"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for value in common._HARMLESS[option][0]:
            model.transcribe(hello, **{option: value})  # type: ignore[arg-type]
        if option == "temperature":
            model.transcribe(hello, temperature=[0.0, 0.2, 0.4])
    with pytest.warns(UserWarning, match=rf"^{option}=.* has no effect: ") as caught:
        model.transcribe(hello, **{option: OTHER_VALUES.get(option, 0.75)})  # type: ignore[arg-type]
    assert [one.filename for one in caught] == [__file__]


@pytest.mark.parametrize("option", [*common._HARMLESS, *common._REFUSED, "language", "task", "word_timestamps"])
def test_the_page_tells_of_every_option(option: str) -> None:
    assert f"`{option}`" in DROP_IN


def test_options_that_nobody_has_are_errors(model: WhisperModel, original: whisper.Whisper) -> None:
    for call in (model.transcribe, BatchedInferencePipeline(model).transcribe, original.transcribe):
        with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
            call(SAMPLES / "hello.wav", colour="red")


def test_languages_that_the_model_knows_are_taken(model: WhisperModel, original: whisper.Whisper) -> None:
    with pytest.warns(UserWarning, match="language='zh': this model is for English, as its makers say"):
        _, info = model.transcribe(SAMPLES / "hello.wav", language="zh")
    assert (info.language, info.language_probability) == ("zh", 1.0)
    assert original.transcribe(SAMPLES / "hello.wav", language="English")["language"] == "en"


def test_silence_between_words_can_be_given_to_the_voice_detector(model: WhisperModel) -> None:
    _, info = model.transcribe(SAMPLES / "hello.wav", vad_filter=True, vad_parameters={"min_silence_duration_ms": 500})
    assert info.vad_options == {"min_silence_duration_ms": 500}
    with pytest.warns(UserWarning, match=r"vad_parameters: threshold=0\.3 has no effect"):
        model.transcribe(SAMPLES / "hello.wav", vad_filter=True, vad_parameters={"threshold": 0.3})
    assert model.transcribe(SAMPLES / "hello.wav")[1].vad_options is None
    assert BatchedInferencePipeline(model).transcribe(SAMPLES / "hello.wav")[1].vad_options is not None


def test_whispers_names_mean_the_default_model_and_say_so(monkeypatch: pytest.MonkeyPatch, nano_path: Path) -> None:
    monkeypatch.setattr(common, "MODEL", str(nano_path))
    for name in ("tiny", "large-v3", "turbo", "openai/whisper-large-v3", "Systran/faster-whisper-small"):
        with pytest.warns(UserWarning, match=f"'{name}' is a model for Whisper: .* is used, another model") as caught:
            WhisperModel(name)
        assert [one.filename for one in caught] == [__file__]
        with pytest.warns(UserWarning, match=f"'{name}' is a model for Whisper"):
            whisper.load_model(name)
    with pytest.warns(UserWarning, match="model for Whisper|revision='main' has no effect") as caught:
        WhisperModel("large-v3", revision="main")
    assert len(caught) == 2
    with pytest.raises(UsageError, match="no revision 'main'"):
        WhisperModel(nano_path, revision="main")
    assert WhisperModel(str(nano_path)).model.info == whisper.load_model(nano_path).model.info


def test_names_that_can_be_opened_are_listed() -> None:
    assert faster_whisper.available_models() == whisper.available_models()
    assert {"moss-transcribe", "pycrispasr/tiny", "large-v3"} <= set(whisper.available_models())
    with pytest.raises(ModelNotFoundError, match="there is no model 'gigantic'"):
        whisper.load_model("gigantic")


def test_options_for_opening_are_kept_or_told_of(nano_path: Path) -> None:
    for kept in ({"cpu_threads": 1}, {"num_workers": 4}, {"local_files_only": True}, {"compute_type": "float32"}):
        WhisperModel(nano_path, device="cpu", **kept)  # type: ignore[arg-type]
    for ignored in ({"download_root": "x"}, {"use_auth_token": "x"}, {"flash_attention": True}):
        with pytest.warns(UserWarning, match=f"{next(iter(ignored))}.* has no effect"):
            WhisperModel(nano_path, **ignored)
    with pytest.warns(UserWarning, match="download_root='x' has no effect"):
        whisper.load_model(nano_path, download_root="x")
    with pytest.warns(UserWarning, match="there is no device 'toaster:1': the CPU is used"):
        assert WhisperModel(nano_path, device="toaster", device_index=[1]).model.info.device == "cpu"
    for refused in ({"device_index": [0, 1]}, {"files": {}}):
        with pytest.raises(UnsupportedOperationError, match=next(iter(refused))):
            WhisperModel(nano_path, **refused)  # type: ignore[arg-type]


def test_audio_that_cannot_be_read_is_told_of_at_once(model: WhisperModel, original: whisper.Whisper) -> None:
    with pytest.raises(AudioNotFoundError, match=r"'gone\.wav': there is no such audio file"):
        model.transcribe("gone.wav")
    with pytest.raises(AudioError, match="libsndfile"):
        original.transcribe(SAMPLES / "long.txt")
    with pytest.raises(UnsupportedOperationError, match="sr=8000"):
        whisper.load_audio(SAMPLES / "hello.wav", sr=8000)
    with pytest.raises(UnsupportedOperationError, match="sampling_rate=8000"):
        faster_whisper.decode_audio(SAMPLES / "hello.wav", sampling_rate=8000)


def test_decoding_of_prepared_audio_takes_options(original: whisper.Whisper) -> None:
    mel = whisper.log_mel_spectrogram(SAMPLES / "date.mp3")
    result = original.decode(mel, whisper.DecodingOptions(language="en", fp16=False))
    assert (result.text, result.language, result.temperature) == (DATE, "en", 0.0)
    assert len(result.tokens) >= len(DATE.split())
    with pytest.warns(UserWarning, match="truncated"):
        assert len(whisper.decode(original, mel, sample_len=2).tokens) == 2
    with pytest.raises(UnsupportedOperationError, match="task='translate'"):
        whisper.decode(original, mel, task="translate")
    with pytest.warns(UserWarning, match="prompt='names' has no effect"):
        whisper.decode(original, mel, prompt="names")


def test_audio_is_padded_or_trimmed() -> None:
    assert whisper.pad_or_trim(np.ones(5)).shape == (480_000,)
    np.testing.assert_array_equal(whisper.pad_or_trim(np.ones(5), 7), [1, 1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(whisper.pad_or_trim([1, 2, 3], 2), [1, 2])


def test_silence_has_no_language(original: whisper.Whisper) -> None:
    silence = whisper.pad_or_trim(np.zeros(16000, np.float32), 32000)
    assert original.transcribe(silence)["language"] is None
    assert original.detect_language(whisper.log_mel_spectrogram(silence)) == (None, {"en": 0.0, "zh": 0.0})
