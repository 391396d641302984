"""Small trained models of other families: what comes out of real speech is what was said."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pycrispasr import Model, UnsupportedOperationError
from pycrispasr.models.random_model import generate
from pycrispasr.runtimes import native

from .command import run

DATA = Path(__file__).parent / "data"
QWEN3_ASR = DATA / "qwen3-asr-tiny.gguf"
MOSS_DIARIZE = DATA / "moss-diarize-tiny.gguf"
SAMPLES = Path(__file__).parent.parent / "samples"
RECORDINGS = sorted(path for path in SAMPLES.glob("*") if path.suffix in (".wav", ".mp3"))


def said(recording: Path) -> str:
    return recording.with_suffix(".txt").read_text(encoding="utf-8").strip()


@pytest.fixture(scope="module")
def qwen3_asr() -> Iterator[Model]:
    with Model(QWEN3_ASR) as model:
        yield model


@pytest.mark.parametrize("language", [None, "en"])
def test_qwen3_asr_writes_every_sample_as_it_was_spoken(qwen3_asr: Model, language: str | None) -> None:
    for recording in RECORDINGS:
        transcript = qwen3_asr.transcribe(recording, language=language)
        assert (transcript.text, transcript.language) == (said(recording), "en"), recording.name
        assert transcript.complete


def test_qwen3_asr_finds_the_language_in_few_tokens_and_writes_none_where_it_is_given(qwen3_asr: Model) -> None:
    """language, English, <asr_text>, the word and the end; the last two alone."""
    found, told = (qwen3_asr.transcribe(SAMPLES / "hello.wav", language=language) for language in (None, "en"))
    assert found.timings.tokens - told.timings.tokens == 3
    assert found.segments[0].tokens[-1].text == told.segments[0].tokens[-1].text == " hello"


@pytest.mark.parametrize("seconds", [0.3, 3, 10])
@pytest.mark.parametrize("loudness", [0.0, 0.01])
def test_qwen3_asr_finds_no_language_and_no_text_where_nobody_speaks(
    qwen3_asr: Model, seconds: float, loudness: float
) -> None:
    noise = loudness * np.random.default_rng(0).standard_normal(int(seconds * 16000))
    found = qwen3_asr.transcribe(noise, sample_rate=16000)
    assert (found.text, found.language) == ("", None)
    assert qwen3_asr.transcribe(noise, sample_rate=16000, language="en").text == ""


def test_qwen3_asr_spells_as_its_context_does(qwen3_asr: Model) -> None:
    recording, spellings = SAMPLES / "spelling.wav", ["whisky", "juliett", "alfa", "x-ray"]
    assert "whiskey" in said(recording)
    assert qwen3_asr.transcribe(recording, context="hello").text == said(recording)
    assert qwen3_asr.transcribe(recording, context=spellings).text == said(recording).replace("whiskey", "whisky")


def test_the_command_transcribes_with_qwen3_asr() -> None:
    recordings = [SAMPLES / "digits.wav", SAMPLES / "date.mp3"]
    for recording in recordings:
        done = run("transcribe", "-m", QWEN3_ASR, recording, "-f", "json")
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert (result["text"], result["language"]) == (said(recording), "en")


# What is said in each, and when: start, end, speaker and text of its segments.
DIALOGUES = sorted(DATA.glob("dialogue-*.json"))
SEGMENT = re.compile(r"\[(\d+\.\d\d)\]\[S(\d\d)\]([^\[]*)\[(\d+\.\d\d)\]")


@pytest.fixture(scope="module")
def moss_diarize() -> native.NativeModel:
    return native.NativeModel(MOSS_DIARIZE)


def written(model: native.NativeModel, recording: Path) -> str:
    """The model's own text, with its times and speakers."""
    samples, rate = soundfile.read(recording, dtype="float32")
    assert rate == 16000
    session = native.NativeSession(model, max_new_tokens=400)
    return b"".join(model.token_bytes(token) for token, _ in session.decode_clip(samples)).decode()


@pytest.mark.parametrize("dialogue", DIALOGUES, ids=lambda path: path.stem)
def test_moss_diarize_writes_who_said_what_and_when(moss_diarize: native.NativeModel, dialogue: Path) -> None:
    said = json.loads(dialogue.read_text(encoding="utf-8"))
    assert {segment["speaker"] for segment in said} == {1, 2}
    text = written(moss_diarize, dialogue.with_suffix(".opus"))
    assert SEGMENT.sub("", text) == ""
    found = SEGMENT.findall(text)
    assert [(int(speaker), words.strip()) for _, speaker, words, _ in found] == [
        (segment["speaker"], segment["text"]) for segment in said
    ]
    for (start, _, _, end), segment in zip(found, said, strict=True):
        assert float(start) == pytest.approx(segment["start"], abs=0.2)
        assert float(end) == pytest.approx(segment["end"], abs=0.2)


@pytest.mark.parametrize("dialogue", DIALOGUES, ids=lambda path: path.stem)
def test_a_transcript_of_moss_diarize_names_the_speakers(dialogue: Path) -> None:
    said = json.loads(dialogue.read_text(encoding="utf-8"))
    with Model(MOSS_DIARIZE) as model:
        transcript = model.transcribe(dialogue.with_suffix(".opus"), speakers=["Ann"])
        one_by_one = list(model.segments(dialogue.with_suffix(".opus"), speakers=["Ann"]))
    names = {1: "Ann", 2: "Speaker 2"}
    assert [(segment.speaker, segment.text) for segment in transcript.segments] == [
        (names[segment["speaker"]], segment["text"]) for segment in said
    ]
    assert transcript.text == " ".join(segment["text"] for segment in said)
    assert (transcript.complete, transcript.warnings) == (True, ())
    for segment, wanted in zip(transcript.segments, said, strict=True):
        assert (segment.start, segment.end) == pytest.approx((wanted["start"], wanted["end"]), abs=0.2)
    assert one_by_one == list(transcript.segments)


def test_tokens_of_moss_diarize_are_those_of_its_segments_without_marks() -> None:
    with Model(MOSS_DIARIZE) as model:
        recording = DATA / "dialogue-1.opus"
        transcript = model.transcribe(recording)
        tokens = list(model.stream(recording))
    assert tokens == [token for segment in transcript.segments for token in segment.tokens]
    assert "".join(token.text for token in tokens).strip() == transcript.text


def test_a_session_of_moss_diarize_has_the_text_and_names_nobody() -> None:
    said = json.loads((DATA / "dialogue-1.json").read_text(encoding="utf-8"))
    samples, _ = soundfile.read(DATA / "dialogue-1.opus", dtype="float32")
    with Model(MOSS_DIARIZE) as model:
        with model.session(vad="off") as session:
            for part in np.array_split(samples, 9):
                session.feed(part)
            transcript = session.finish()
        with pytest.raises(UnsupportedOperationError, match="a session numbers speakers anew"):
            model.session(speakers=["Ann"])
    assert transcript.text == " ".join(segment["text"] for segment in said)
    assert {segment.speaker for segment in transcript.segments} == {None}


def test_a_model_that_tells_no_speakers_refuses_their_names(qwen3_asr: Model) -> None:
    assert not qwen3_asr.tells_speakers
    with pytest.raises(UnsupportedOperationError, match="does not tell speakers apart"):
        qwen3_asr.transcribe(SAMPLES / "hello.wav", speakers=["Ann"])
    with pytest.raises(TypeError, match="speakers must be a list"):
        qwen3_asr.transcribe(SAMPLES / "hello.wav", speakers="Ann")


def test_the_aligner_gives_times_to_the_words_of_each_speaker(tmp_path: Path) -> None:
    generate(tmp_path / "aligner.gguf", preset="qwen3-aligner-nano", type="f32")
    with Model(MOSS_DIARIZE) as model:
        recording = DATA / "dialogue-2.opus"
        plain = model.transcribe(recording)
        timed = model.transcribe(recording, word_timestamps="aligner", aligner=tmp_path / "aligner.gguf")
        with pytest.raises(UnsupportedOperationError, match="'aligner' takes those of words"):
            model.transcribe(recording, word_timestamps=True)
    assert timed.word_times == "aligner"
    for one, other in zip(plain.segments, timed.segments, strict=True):
        assert (one.speaker, one.start, one.end, one.text) == (other.speaker, other.start, other.end, other.text)
        assert [word.text for word in other.words or ()] == other.text.split()
        assert all(one.start - 0.31 <= word.start <= word.end <= one.end + 0.31 for word in other.words or ())


def test_the_command_writes_who_said_what() -> None:
    said = json.loads((DATA / "dialogue-1.json").read_text(encoding="utf-8"))
    done = run("transcribe", "-m", MOSS_DIARIZE, "--speaker", "Ann", DATA / "dialogue-1.opus")
    assert done.returncode == 0, done.stderr
    names = {1: "Ann", 2: "Speaker 2"}
    assert done.stdout == "".join(f"{names[one['speaker']]}: {one['text']}\n" for one in said)


def test_the_dialogues_are_several_and_small() -> None:
    recordings = [dialogue.with_suffix(".opus") for dialogue in DIALOGUES]
    assert len(recordings) >= 2
    assert sum(recording.stat().st_size for recording in recordings) < 200_000
