"""A calibration finds the heads that look at the words which they write, and the model finds the calibration."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pycrispasr import AudioError, Model, PycrispasrError, UsageError
from pycrispasr.decoding.word_times import side_file
from pycrispasr.models import hub
from pycrispasr.models.align_heads import calibrate
from pycrispasr.runtimes import native

from .command import run, unboxed

SAMPLES = Path(__file__).parent.parent / "samples"
NAMES = ("digits", "long", "spelling")
RECORDINGS = [(SAMPLES / f"{name}.wav", (SAMPLES / f"{name}.txt").read_text(encoding="utf-8")) for name in NAMES]
TRAINED = {(3, 0), (3, 1), (4, 0), (4, 1)}  # training/train.py: the first heads of GUIDED_LAYERS


def test_the_heads_that_were_trained_for_it_are_found_and_written(tmp_path: Path) -> None:
    steps: list[tuple[float, float]] = []
    found = calibrate("tiny", RECORDINGS, tmp_path / "heads.json", progress=lambda *step: steps.append(step))
    assert set(found.heads[:4]) == TRAINED
    assert (found.words, found.of) == (39, 39)
    assert list(found.scores) == sorted(found.scores, reverse=True)
    assert min(found.scores) > 0.5
    content = json.loads((tmp_path / "heads.json").read_text(encoding="utf-8"))
    assert [tuple(head) for head in content["heads"]] == list(found.heads)
    assert [step for step, _ in steps] == sorted(step for step, _ in steps)
    assert steps[-1][0] == pytest.approx(steps[-1][1])
    assert [path.name for path in tmp_path.iterdir()] == ["heads.json"]


def test_attention_is_read_on_the_cpu_whatever_auto_would_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    class OnGpu(native.NativeModel):
        """A machine where "auto" is a GPU: one that computes what a GPU computes."""

        def __init__(self, path: Path, device: str = "auto") -> None:
            opened.append(device)
            super().__init__(path, "cpu", kernels="operations" if device == "auto" else "auto")

    monkeypatch.setattr(native, "NativeModel", OnGpu)
    assert calibrate("tiny", RECORDINGS, tmp_path / "heads.json").words == 39
    assert opened == ["cpu"]


def test_a_model_finds_what_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    shutil.copy(hub.resolve("tiny"), path)
    with Model(path) as model:
        assert model.transcribe(RECORDINGS[0][0], word_timestamps=True).word_times == "approximate"
        calibrate(path, RECORDINGS)
        assert side_file(path) == tmp_path / "mine.gguf.heads.json"
        assert model.transcribe(RECORDINGS[0][0], word_timestamps=True).word_times == "calibrated"


def test_words_that_were_not_understood_do_not_count(tmp_path: Path) -> None:
    said = "Four, ZERO! eleven one nine two six eight. (and more)"  # "seven" was said, not "eleven"
    found = calibrate("tiny", [(RECORDINGS[0][0], said), *RECORDINGS[1:]], tmp_path / "heads.json")
    assert (found.words, found.of) == (38, 41)
    assert set(found.heads[:4]) == TRAINED


def test_what_cannot_be_a_calibration_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    broken, short = tmp_path / "broken.wav", tmp_path / "short.wav"
    broken.write_text("no sound")
    soundfile.write(short, np.zeros(10), 16000)
    for recordings, error, message in (
        ([], UsageError, "understood 0 of 0 words"),
        ([(RECORDINGS[0][0], "quite another text")], UsageError, "understood 0 of 3 words, and 10 are needed"),
        ([(broken, "x")], AudioError, r"broken\.wav"),
        ([(short, "x")], AudioError, r"short\.wav: 10 samples"),
    ):
        with pytest.raises(error, match=message):
            calibrate("tiny", recordings, tmp_path / "heads.json")
    with pytest.raises(PycrispasrError, match=r"missing.*cannot be written.*-o"):
        calibrate("tiny", RECORDINGS[:2], tmp_path / "missing" / "heads.json")
    assert {path.name for path in tmp_path.iterdir()} == {"broken.wav", "short.wav"}


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "heads.json"
    pairs = [SAMPLES / f"{name}{suffix}" for name in NAMES for suffix in (".wav", ".txt")]
    done = run("align-heads", "tiny", *pairs, "-o", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("39 of 39 words were understood\nlayer  head  score\n    4     0 ")
    assert done.stderr.startswith(f"{out}: ")
    assert json.loads(out.read_text(encoding="utf-8"))["words"] == 39
    for arguments, message in (
        (pairs[:3], "has no text"),
        ([pairs[0], tmp_path / "missing.txt"], "cannot be read as text"),
    ):
        wrong = run("align-heads", "tiny", *arguments, "-o", tmp_path / "other.json")
        assert wrong.returncode == 2
        assert message in unboxed(wrong.stderr)


def test_transcribe_shows_words_in_json() -> None:
    for flags, words in ((["--word-timestamps"], 8), ([], None)):
        done = run("transcribe", "-m", "tiny", SAMPLES / "digits.wav", "-f", "json", *flags)
        content = json.loads(done.stdout)
        (segment,) = content["segments"]
        assert content["word_times"] == ("calibrated" if words else None)
        if words is None:
            assert segment["words"] is None
        else:
            assert [word["text"] for word in segment["words"]] == content["text"].split()
            assert all(word["start"] < word["end"] <= segment["end"] for word in segment["words"])
            assert all(token["start"] is not None for token in segment["tokens"])
