"""The drop-ins have the modules, names and signatures of the packages themselves, read from their files on PyPI."""

from __future__ import annotations

import ast
import copy
import dataclasses
import gc
import importlib
import inspect
import pickle
import subprocess
import sys
import tarfile
import threading
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from pycrispasr import ModelNotFoundError, Segment, Token, audio
from pycrispasr.compat import common, faster_whisper, whisper
from pycrispasr.compat.faster_whisper import BatchedInferencePipeline, WhisperModel, vad
from pycrispasr.compat.whisper import utils

from .sounds import SAMPLES

LONG = (SAMPLES / "long.txt").read_text(encoding="utf-8").strip()

# What of the packages has no meaning for another model, or is no part of what their pages describe.
LEFT_OUT = {
    "faster_whisper.audio": set(),
    "faster_whisper.utils": {"get_assets_path", "disabled_tqdm"},
    "faster_whisper.vad": {"get_vad_model", "SileroVADModel"},
    "faster_whisper.transcribe": {
        "restore_speech_timestamps", "get_ctranslate2_storage", "get_compression_ratio", "get_suppressed_tokens",
        "merge_punctuations",
    },
    "whisper": set(),
    "whisper.audio": {"mel_filters"},
    "whisper.utils": {"make_safe"},
    "whisper.decoding": {
        "Inference", "PyTorchInference", "SequenceRanker", "MaximumLikelihoodRanker", "TokenDecoder", "GreedyDecoder",
        "BeamSearchDecoder", "LogitFilter", "SuppressBlank", "SuppressTokens", "ApplyTimestampRules", "DecodingTask",
    },
    "whisper.transcribe": {"cli"},
}  # fmt: skip
METHODS = {
    "WhisperModel": {"__init__", "transcribe", "detect_language"},
    "BatchedInferencePipeline": {"__init__", "transcribe"},
}
PACKAGES = {"faster_whisper": "faster-whisper", "whisper": "openai-whisper"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ast.Module]:
    """The modules of the newest releases, parsed. Nothing of them is run."""
    folder = tmp_path_factory.mktemp("packages")
    found = {}
    for package, name in PACKAGES.items():
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--retries",
            "0",
            "--timeout",
            "10",
            "--no-deps",
            "-d",
            str(folder),
            name,
        ]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            pytest.skip("the package index cannot be reached")
        (path,) = folder.glob(f"{name.replace('-', '_')}-*")
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                files = {member: wheel.read(member) for member in wheel.namelist() if member.endswith(".py")}
        else:
            with tarfile.open(path) as archive:
                members = [member for member in archive.getmembers() if member.name.endswith(".py")]
                files = {member.name.partition("/")[2]: archive.extractfile(member).read() for member in members}  # type: ignore[union-attr]
        for file, content in files.items():
            if file.startswith(f"{package}/") and file.count("/") == 1:
                module = file[:-3].replace("/", ".").removesuffix(".__init__")
                found[module] = ast.parse(content)
    return found


def names(function: ast.FunctionDef) -> tuple[list[str], set[str]]:
    """The names of the parameters that may be positional, in order, and of the others."""
    arguments = function.args
    return [one.arg for one in arguments.posonlyargs + arguments.args], {one.arg for one in arguments.kwonlyargs}


def accepts(ours: Callable[..., Any], theirs: ast.FunctionDef) -> list[str]:
    """What ours does not take of theirs."""
    positional, keywords = names(theirs)
    parameters = inspect.signature(ours).parameters
    mine = [name for name, one in parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD]
    wrong = [f"{place}: {name}" for place, name in enumerate(positional) if mine[place : place + 1] != [name]]
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    wrong += [name for name in keywords if name not in parameters and not takes_any]
    required = len(positional) - len(theirs.args.defaults)
    wrong += [
        f"{name} is required" for name in positional[required:] if parameters[name].default is inspect.Parameter.empty
    ]
    return wrong


@pytest.mark.parametrize("module", LEFT_OUT)
def test_every_public_function_and_class_is_there_with_its_parameters(
    module: str, sources: dict[str, ast.Module]
) -> None:
    ours = importlib.import_module(f"pycrispasr.compat.{module}")
    missing = {}
    for node in sources[module].body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        if node.name in LEFT_OUT[module]:
            continue
        mine = getattr(ours, node.name, None)
        if mine is None:
            missing[node.name] = ["is missing"]
        elif isinstance(node, ast.FunctionDef):
            missing[node.name] = accepts(mine, node)
        else:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name in METHODS.get(node.name, ()):
                    missing[f"{node.name}.{method.name}"] = accepts(getattr(mine, method.name), method)
            fields = [
                one.target.id
                for one in node.body
                if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
            ]
            if dataclasses.is_dataclass(mine) and node.name not in ("TranscriptionOptions", "DecodingResult"):
                own = [field.name for field in dataclasses.fields(mine)]
                missing[node.name] = [field for field in fields if field not in own]
    assert {name: wrong for name, wrong in missing.items() if wrong} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_that_the_package_itself_offers_is_there(package: str, sources: dict[str, ast.Module]) -> None:
    offered = {
        alias.asname or alias.name
        for node in sources[package].body
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith(package))
        for alias in node.names
    }
    ours = importlib.import_module(f"pycrispasr.compat.{package}")
    assert {name for name in offered if not hasattr(ours, name)} == {"__version__"}


def test_the_languages_are_whisper_s(sources: dict[str, ast.Module]) -> None:
    from pycrispasr.compat.whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE

    theirs = {
        node.targets[0].id: node.value
        for node in sources["whisper.tokenizer"].body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert ast.literal_eval(theirs["LANGUAGES"]) == LANGUAGES
    more = {
        key.value: value.value
        for key, value in zip(theirs["TO_LANGUAGE_CODE"].keys, theirs["TO_LANGUAGE_CODE"].values, strict=True)
        if key
    }  # type: ignore[attr-defined]
    assert more.items() <= TO_LANGUAGE_CODE.items()
    assert set(TO_LANGUAGE_CODE) == set(more) | set(LANGUAGES.values())


# ---- What they do ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> WhisperModel:
    return WhisperModel("pycrispasr/tiny")


def test_options_may_be_positional(model: WhisperModel) -> None:
    with pytest.warns(UserWarning, match=r"beam_size=7 has no effect"):
        segments, info = model.transcribe(SAMPLES / "long.wav", "en", "transcribe", False, 7)
    assert info.transcription_options.beam_size == 7
    assert info.transcription_options.best_of == 5
    assert "".join(segment.text for segment in segments) == LONG
    with pytest.warns(UserWarning, match=r"beam_size=7 has no effect"):
        BatchedInferencePipeline(model).transcribe(SAMPLES / "long.wav", "en", "transcribe", False, 7)


def test_a_call_makes_no_reference_cycle(model: WhisperModel) -> None:
    """Memory comes back at once, without the garbage collector: a session holds much of it."""
    for use in ("language", "first", "all", "nothing", "dropped"):
        gc.collect()
        gc.disable()
        try:
            segments, info = model.transcribe(SAMPLES / "long.wav")
            run = segments.gi_frame.f_locals["run"]
            alive = [weakref.ref(run), weakref.ref(run._rest), weakref.ref(segments)]
            if use == "language":
                assert info.language == "en"
            elif use == "first":
                next(segments)
            elif use == "all":
                list(segments)
            elif use == "dropped":
                assert info.language == "en"
                next(segments)
            del run, segments, info
            assert [one() for one in alive] == [None] * 3, use
        finally:
            gc.enable()


def test_the_language_may_be_read_while_another_thread_takes_segments(model: WhisperModel) -> None:
    for _ in range(5):
        segments, info = model.transcribe(SAMPLES / "long.wav")
        found: list[Any] = []
        threads = [
            threading.Thread(target=lambda info=info, found=found: found.append(info.language)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        text = "".join(segment.text for segment in segments)
        for thread in threads:
            thread.join(60)
        assert (text, found) == (LONG, ["en"] * 4)


def test_info_and_segments_can_be_pickled_and_copied_at_any_time(model: WhisperModel) -> None:
    segments, info = model.transcribe(SAMPLES / "long.wav", vad_filter=True)
    for one in (pickle.loads(pickle.dumps(info)), copy.copy(info), copy.deepcopy(info)):
        assert one == info
        assert one.language == "en"
        assert one.vad_options.min_silence_duration_ms == 2000
        assert one.transcription_options.word_timestamps is False
    found = list(segments)
    assert pickle.loads(pickle.dumps(found)) == copy.deepcopy(found) == found
    assert found[0]._asdict() == dataclasses.asdict(found[0])


def test_left_and_right_are_given_apart(tmp_path: Path) -> None:
    left, right = audio.load(SAMPLES / "digits.wav"), audio.load(SAMPLES / "date.mp3")
    size = min(len(left), len(right))
    soundfile.write(tmp_path / "both.wav", np.stack([left[:size], right[:size]], axis=1), 16000, subtype="FLOAT")
    for source in (tmp_path / "both.wav", (tmp_path / "both.wav").open("rb")):
        one, other = faster_whisper.decode_audio(source, split_stereo=True)
        np.testing.assert_allclose(one, left[:size], atol=1e-6)
        np.testing.assert_allclose(other, right[:size], atol=1e-6)
        if hasattr(source, "close"):
            source.close()
    one, other = faster_whisper.decode_audio(SAMPLES / "digits.wav", split_stereo=True)
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(one, left)


def test_silence_of_no_length_may_end_speech(model: WhisperModel) -> None:
    segments, _ = model.transcribe(SAMPLES / "long.wav", vad_filter=True, vad_parameters={"min_silence_duration_ms": 0})
    assert len(list(segments)) > 3
    options = vad.VadOptions(min_silence_duration_ms=0)
    segments, info = model.transcribe(SAMPLES / "long.wav", vad_filter=True, vad_parameters=options)
    assert info.vad_options == {"min_silence_duration_ms": 0}
    with pytest.raises(TypeError, match="no option 'treshold' of the voice activity detector"):
        model.transcribe(SAMPLES / "long.wav", vad_filter=True, vad_parameters={"treshold": 0.5})


def test_arrays_are_padded_or_cut_along_one_axis() -> None:
    for function in (whisper.pad_or_trim, faster_whisper.audio.pad_or_trim):
        array = np.arange(6.0).reshape(2, 3)
        np.testing.assert_array_equal(function(array, 5), np.pad(array, ((0, 0), (0, 2))))
        np.testing.assert_array_equal(function(array, 2), array[:, :2])
        np.testing.assert_array_equal(function(array, 4, axis=0), np.pad(array, ((0, 2), (0, 0))))


def test_the_language_is_told_of_samples(model: WhisperModel) -> None:
    samples = faster_whisper.decode_audio(SAMPLES / "long.wav")
    assert model.detect_language(samples) == ("en", 1.0, [("en", 1.0), ("zh", 0.0)])
    assert model.detect_language(samples, vad_filter=True, language_detection_segments=2)[0] == "en"
    assert model.detect_language(np.zeros(32000, np.float32)) == ("en", 0.0, [("en", 0.0), ("zh", 0.0)])


def test_a_model_is_fetched_to_a_path_that_can_be_opened(tmp_path: Path) -> None:
    path = faster_whisper.download_model("pycrispasr/tiny", output_dir=str(tmp_path / "models"))
    assert Path(path).parent == tmp_path / "models"
    assert WhisperModel(path).model.info == WhisperModel("pycrispasr/tiny").model.info
    with pytest.raises(ModelNotFoundError):
        faster_whisper.download_model("gigantic")


def test_speech_is_found_where_somebody_speaks() -> None:
    spoken = audio.load(SAMPLES / "digits.wav")
    sound = np.concatenate([np.zeros(32000, np.float32), spoken, np.zeros(64000, np.float32), spoken])
    found = vad.get_speech_timestamps(sound)
    assert len(found) == 2
    for one, start in zip(found, (32000, 96000 + len(spoken)), strict=True):
        assert start - 6400 - 2000 <= one["start"] <= start + 4000
        assert abs(one["end"] - (start + len(spoken))) < 8000
    pieces, told = vad.collect_chunks(sound, found)
    assert len(pieces) == 1
    assert told[0]["segments"] == found
    assert len(pieces[0]) == sum(one["end"] - one["start"] for one in found)
    pieces, told = vad.collect_chunks(sound, found, max_duration=4)
    assert [len(piece) for piece in pieces] == [one["end"] - one["start"] for one in found]
    assert told[1]["offset"] == len(pieces[0]) / 16000
    times = vad.SpeechTimestampsMap(found, 16000)
    assert times.get_original_time(0) == round(found[0]["start"] / 16000, 2)
    second = len(pieces[0]) / 16000
    assert times.get_original_time(second) == round(found[1]["start"] / 16000, 2)
    assert times.get_original_time(second, is_end=True) == round(found[0]["end"] / 16000, 2)
    assert vad.get_speech_timestamps(np.zeros(0, np.float32)) == []
    assert vad.collect_chunks(np.zeros(0, np.float32), [])[1] == [{"offset": 0, "duration": 0, "segments": []}]


def test_long_speech_is_split_in_its_last_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities = [0.9] * 40 + [0.1] * 5 + [0.9] * 60

    class Detector:
        def push(self, samples: np.ndarray) -> list[float]:
            return probabilities[: len(samples) // 512]

    monkeypatch.setattr(vad, "VoiceDetector", Detector)
    samples = np.zeros(len(probabilities) * 512, np.float32)
    found = vad.get_speech_timestamps(samples, max_speech_duration_s=2.0, speech_pad_ms=0)
    assert found[0] == {"start": 0, "end": 40 * 512}
    assert found[1]["start"] == 45 * 512
    assert all(one["end"] - one["start"] <= 2.0 * 16000 for one in found)
    assert vad.get_speech_timestamps(samples, speech_pad_ms=0) == [{"start": 0, "end": len(samples)}]
    assert vad.get_speech_timestamps(samples, min_speech_duration_ms=5000) == []


RESULT = {
    "text": "one two three",
    "segments": [
        {"start": 0.0, "end": 3.5, "text": " one two", "words": [
            {"word": " one", "start": 0.0, "end": 1.0}, {"word": " two", "start": 1.5, "end": 3.5}]},
        {"start": 3661.5, "end": 3662.0, "text": " three -->\t4", "words": [
            {"word": " three", "start": 3661.5, "end": 3662.0}]},
    ],
}  # fmt: skip


def written(kind: str, folder: Path, result: dict[str, Any] = RESULT, **options: Any) -> str:
    utils.get_writer(kind, str(folder))(result, "recordings/talk.mp3", options)
    return (folder / f"talk.{kind}").read_text(encoding="utf-8")


def test_results_are_written_as_whisper_writes_them(tmp_path: Path) -> None:
    bare = {"segments": [{k: v for k, v in one.items() if k != "words"} for one in RESULT["segments"]]}  # type: ignore[attr-defined]
    assert written("txt", tmp_path) == "one two\nthree -->\t4\n"
    assert written("tsv", tmp_path) == "start\tend\ttext\n0\t3500\tone two\n3661500\t3662000\tthree --> 4\n"
    assert written("vtt", tmp_path, bare) == (
        "WEBVTT\n\n00:00.000 --> 00:03.500\none two\n\n01:01:01.500 --> 01:01:02.000\nthree ->\t4\n\n"
    )
    assert written("srt", tmp_path) == (
        "1\n00:00:00,000 --> 00:00:03,500\none two\n\n2\n01:01:01,500 --> 01:01:02,000\nthree\n\n"
    )
    assert written("srt", tmp_path, max_words_per_line=1).count("-->") == 3
    assert "one\ntwo\n" in written("srt", tmp_path, max_line_width=4)
    assert "one\n\n2\n" in written("srt", tmp_path, max_line_width=4, max_line_count=1)
    assert "<u>one</u> two\n" in written("vtt", tmp_path, highlight_words=True)
    assert '"text": "one two three"' in written("json", tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    utils.get_writer("all", str(tmp_path))(RESULT, "talk.mp3")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".srt", ".tsv", ".txt", ".vtt"]
    with pytest.raises(KeyError):
        utils.get_writer("docx", str(tmp_path))


@pytest.mark.parametrize("function", [faster_whisper.format_timestamp, utils.format_timestamp])
def test_times_are_written(function: Callable[..., str]) -> None:
    assert function(0) == "00:00.000"
    assert function(3599.9996) == "01:00:00.000"
    assert function(61.25, True, ",") == "00:01:01,250"
    with pytest.raises(AssertionError):
        function(-1)


def test_small_helpers_do_what_theirs_do() -> None:
    assert (utils.exact_div(6, 3), utils.str2bool("True"), utils.optional_int("None"), utils.optional_float("0.5")) == (
        2, True, None, 0.5,
    )  # fmt: skip
    with pytest.raises(ValueError, match="got yes"):
        utils.str2bool("yes")
    assert (utils.get_start(RESULT["segments"]), utils.get_end(RESULT["segments"])) == (0.0, 3662.0)  # type: ignore[arg-type]
    assert (utils.get_start([]), utils.get_end([])) == (None, None)
    assert common.numbers(Segment(0, 1, "aaaa" * 50, (Token(1, "a", 0.5),), "ok"))["compression_ratio"] > 5
