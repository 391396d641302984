"""Forced alignment: words of a known text, their times, and what a user sees of them."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import importlib
import json
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycrispasr import DecodingOptions, Model, Transcript, UnsupportedOperationError, UsageError
from pycrispasr.decoding.forced_alignment import Span, Unit, mended, split, timed
from pycrispasr.errors import AudioError, ModelFormatError
from pycrispasr.models import gguf_file
from pycrispasr.models.convert import convert
from pycrispasr.models.quantize import quantize
from pycrispasr.models.random_model import generate
from pycrispasr.results.segment import Token
from pycrispasr.runtimes import native

from .checkpoint_qwen3_asr import Form, write_checkpoint
from .command import run
from .gguf_edit import rewrite
from .reference import alignment, gguf_model
from .sounds import make_tones

SAMPLES = Path(__file__).parent.parent / "samples"
SOUND = make_tones(6, seed=8)
TEXT = "Hello, world! It's\nhalf-past two — 你好，世界。"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("aligner") / "nano.gguf"
    generate(path, preset="qwen3-aligner-nano", type="f32", seed=1)
    return path


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    with Model(path, threads=1) as opened:
        yield opened


def edited(path: Path, out: Path, **values: object) -> Path:
    return rewrite(path, out, values={"general.architecture": "qwen3asr", **values})


# Words


@settings(deadline=None)
@given(st.text(), st.sampled_from([None, "en", "ko"]))
def test_words_are_all_of_the_text_but_spaces(text: str, language: str | None) -> None:
    units = split(text, language)
    assert "".join("".join(unit.text.split()) for unit in units) == "".join(text.split())
    assert all(unit.text == unit.text.strip() != "" for unit in units)
    assert all(unit.spoken for unit in units) or len(units) == 1
    assert [unit.spoken for unit in units if unit.spoken] == alignment.words(text) or language == "ko"


@pytest.mark.parametrize(
    ("text", "language", "words"),
    [
        ("Hello, world! It's half-past two.", None, ["Hello,", "world!", "It's", "half-past", "two."]),
        ('“Yes” — (he said) "no"…', None, ["“Yes” —", "(he", "said)", '"no"…']),
        ("Bonjour ! « Ça va ? »", "fr", ["Bonjour !", "« Ça", "va ? »"]),
        ("你好，《世界》abc好", "zh", ["你", "好，", "《世", "界》", "abc", "好"]),
        ("안녕하세요 世界여러분.", "ko", ["안녕하세요", "世界여러분."]),
        ("안녕하세요 世界여러분.", None, ["안녕하세요", "世", "界", "여러분."]),
        ("... ?", None, ["... ?"]),
        ("  ", None, []),
    ],
)
def test_punctuation_stays_with_its_word(text: str, language: str | None, words: list[str]) -> None:
    assert [unit.text for unit in split(text, language)] == words


def test_japanese_words_are_found_by_nagisa(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    # nagisa's own answers, of 0.3.0
    answers = {
        "今日は「良い」天気ｶﾞ。": ["今日", "は", "「", "良い", "」", "天気", "ガ", "。"],
        "½ A": ["1", "\N{FRACTION SLASH}", "2", "\u3000", "A"],
    }
    fake = types.SimpleNamespace(tagging=lambda text: types.SimpleNamespace(words=answers[text]))
    monkeypatch.setitem(importlib.import_module("sys").modules, "nagisa", fake)
    first, second = (split(text, "ja") for text in answers)
    assert first == [
        Unit("今日", "今日"), Unit("は", "は"), Unit("「良い」", "良い"), Unit("天気", "天気"), Unit("ｶﾞ。", "ガ")
    ]  # fmt: skip
    assert second == [Unit("½", "12"), Unit("A", "A")]
    aligned = model.align(SOUND, "今日は「良い」天気ｶﾞ。", sample_rate=16000, language="Japanese")
    assert [word.text for word in aligned.words] == [unit.text for unit in first]


def test_japanese_without_nagisa_is_an_error_that_names_it_and_a_list_of_words_needs_none(
    monkeypatch: pytest.MonkeyPatch, model: Model
) -> None:
    monkeypatch.setitem(importlib.import_module("sys").modules, "nagisa", None)
    with pytest.raises(UnsupportedOperationError, match=r"language='ja'.*pip install nagisa.*list of words"):
        model.align(SOUND, "今日は良い", sample_rate=16000, language="ja")
    aligned = model.align(SOUND, ["今日", "は", "良い。"], sample_rate=16000, language="ja")
    assert (aligned.text, aligned.language) == ("今日は良い。", "ja")
    assert [word.text for word in aligned.words] == ["今日", "は", "良い。"]


def test_a_transcription_that_will_need_nagisa_says_so_before_any_work(
    monkeypatch: pytest.MonkeyPatch, model: Model, tmp_path: Path
) -> None:
    monkeypatch.setitem(importlib.import_module("sys").modules, "nagisa", None)
    generate(tmp_path / "qwen.gguf", preset="qwen3-asr-nano", type="f32")
    with Model(tmp_path / "qwen.gguf", threads=1) as qwen:
        for language in ("ja", "ko"):
            options = {"word_timestamps": "aligner", "aligner": model, "language": language, "max_new_tokens": 4}
            if language == "ja":
                with pytest.raises(UnsupportedOperationError, match="pip install nagisa"):
                    qwen.job([], **options)
            else:
                assert qwen.transcribe(SOUND, sample_rate=16000, **options).words


# Times


TIMES = st.lists(st.integers(0, 10**6), max_size=80) | st.lists(st.integers(0, 6), max_size=30)


@given(TIMES)
def test_mended_times_never_go_back_and_stay_between_the_lowest_and_the_highest(times: list[int]) -> None:
    found = mended(times)
    assert len(found) == len(times)
    assert found == sorted(found)
    assert all(min(times) <= time <= max(times) for time in found)
    assert mended(found) == found


@given(TIMES)
def test_times_in_order_are_left_alone(times: list[int]) -> None:
    assert mended(sorted(times)) == sorted(times)


@given(TIMES)
def test_times_are_mended_as_the_reference_does(times: list[int]) -> None:
    assert mended(times) == alignment.mended(times)


def test_a_hundred_thousand_times_are_mended_at_once() -> None:
    times = np.random.default_rng(0).integers(0, 5000, 100_000).tolist()
    assert mended(times) == sorted(mended(times))


@settings(deadline=None)
@given(
    st.text(st.sampled_from("ab,. 你。é\u0301 — ")),
    st.lists(st.integers(0, 400), min_size=200, max_size=200),
    st.lists(st.integers(1, 4), min_size=100),
)
def test_tokens_have_times_in_order_inside_their_words(text: str, times: list[int], cuts: list[int]) -> None:
    units = split(text)
    times.sort()
    spans = [Span(times[2 * i] / 10, times[2 * i + 1] / 10, 0.5) for i in range(len(units))]
    tokens, at = [], 0
    for length in cuts:
        tokens.append(Token(0, text[at : at + length], 0.25 + len(tokens) / 1000))
        at += length
    tokens.append(Token(0, text[at:], 0.2))
    found, words = timed(tokens, units, spans, 0.0)
    edges = [edge for token in found for edge in (token.start, token.end)]
    assert edges == sorted(edges)  # type: ignore[type-var]
    assert [(word.start, word.end) for word in words] == [span[:2] for span in spans]
    assert all(0.2 <= word.probability < 1 for word in words)
    if units:
        assert edges[-1] == spans[-1].end
        assert timed((), units, spans, 0.0)[1][0].probability == 0.5


# The model


@pytest.mark.parametrize(
    ("seconds", "kernels"), [(0.2, "auto"), (3, "ggml"), (3, "operations"), (8.01, "auto"), (31, "auto")]
)
def test_the_runtime_s_bins_are_the_reference_s(path: Path, seconds: float, kernels: str) -> None:
    reference = gguf_model.load(path)
    opened = native.NativeModel(path, "cpu", "f32" if kernels == "auto" else "auto", kernels)
    session = native.NativeSession(opened, threads=1)
    samples = make_tones(seconds, seed=int(seconds))
    for text in ("one", TEXT, TEXT * 12):  # of less and of more tokens than are worked on at once
        tokens = [opened.tokenize(word.encode()) for word in alignment.words(text)]
        scores = alignment.scores(reference, samples, tokens)
        places = session.align(samples, [token for word in tokens for token in [*word, -1, -1]])
        assert [place for place, _ in places] == scores.argmax(axis=1).tolist()
        shares = np.exp(scores - scores.max(axis=1, keepdims=True)).sum(axis=1)
        # ggml's products round to F16.
        np.testing.assert_allclose([sure for _, sure in places], 1 / shares, rtol=1e-3 if kernels == "auto" else 0.03)


def test_places_can_stand_anywhere_and_what_follows_does_not_matter(path: Path) -> None:
    session = native.NativeSession(native.NativeModel(path, "cpu", "f32"))
    every = session.align(SOUND, [-1, 40, 41, -1, 42, -1, -1])
    assert len(every) == 4
    assert session.align(SOUND, [-1, 40, 41, -1])[0] == pytest.approx(every[0], rel=1e-4)
    assert session.align(SOUND, []) == []
    assert session.result()["n_prompt_tokens"] == session.result()["n_rows"] + 2


def test_a_classifier_with_a_bias_and_bins_of_another_length(path: Path, tmp_path: Path) -> None:
    generate(tmp_path / "biased.gguf", preset="qwen3-aligner-nano", type="f32", seed=1,
             hyperparameters={"align.bias": 1, "align.bin_ms": 40, "align.bins": 50})  # fmt: skip
    bias = np.zeros(50, np.float32)
    bias[17] = 1e6
    rewrite(tmp_path / "biased.gguf", tmp_path / "sure.gguf", values={"general.architecture": "qwen3asr"},
            tensors={"output.bias": bias})  # fmt: skip
    with Model(tmp_path / "sure.gguf", threads=1) as model:
        assert (model.info.align_bins, model.info.align_bin_ms) == (50, 40)
        words = model.align(SOUND[:32000], "one two", sample_rate=16000).words
        assert [(word.start, word.end, word.probability) for word in words] == [(0.68, 0.68, 1.0)] * 2


def test_a_file_of_another_converter_is_told_by_its_head(path: Path, tmp_path: Path) -> None:
    """CrispASR's says nothing of bins, and leaves out what the token of a place is called."""
    missing = {f"qwen3asr.{name}": None for name in ("classify_num", "timestamp_segment_time")}
    edited(path, tmp_path / "bare.gguf", **missing)
    with Model(path, threads=1) as whole, Model(tmp_path / "bare.gguf", threads=1) as bare:
        assert (bare.info.align_bins, bare.info.align_bin_ms) == (400, 80)
        one, other = (model.align(SOUND, TEXT, sample_rate=16000) for model in (whole, bare))
        assert one.segments == other.segments


def test_a_file_that_contradicts_itself_is_refused(path: Path, tmp_path: Path) -> None:
    edited(path, tmp_path / "wrong.gguf", **{"qwen3asr.classify_num": 401})
    with pytest.raises(ModelFormatError, match="400 rows"):
        Model(tmp_path / "wrong.gguf")


@pytest.mark.parametrize("form", ["thinker", "hf"])
def test_both_forms_of_a_checkpoint_become_the_same_file(form: Form, tmp_path: Path) -> None:
    generate(tmp_path / "random.gguf", preset="qwen3-aligner-nano", type="bf16")
    write_checkpoint(tmp_path / "checkpoint", tmp_path / "random.gguf", form)
    convert(tmp_path / "checkpoint", tmp_path / "out.gguf", type="bf16", name="random-qwen3-aligner-nano-bf16")
    (before, tensors), (after, made) = (gguf_file.load(tmp_path / file) for file in ("random.gguf", "out.gguf"))
    assert after == before
    assert [(tensor.name, tensor.shape, tensor.type) for tensor in made] == [
        (tensor.name, tensor.shape, tensor.type) for tensor in tensors
    ]
    for old, new in zip(tensors, made, strict=True):
        if len(old.shape) > 1:
            stored, got = (
                gguf_file.rows(tmp_path / file, tensor) for file, tensor in (("random.gguf", old), ("out.gguf", new))
            )
            np.testing.assert_array_equal(got, stored)


def test_quantize_leaves_the_classifier_f16_and_info_reads_it(tmp_path: Path) -> None:
    generate(tmp_path / "in.gguf", preset="qwen3-aligner-small", type="f16")
    quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", type="q4_k")
    types = {tensor.name: tensor.type for tensor in gguf_file.load(tmp_path / "out.gguf")[1]}
    assert (types["blk.0.attn_q.weight"], types["output.weight"]) == ("Q4_K", "F16")
    with Model(tmp_path / "out.gguf", threads=1) as model:
        assert len(model.align(SOUND, TEXT, sample_rate=16000).words) == 9
    done = run("info", tmp_path / "out.gguf", "--json")
    assert json.loads(done.stdout)["sizes"]["align_bins"] == 400


# What a user sees


def test_each_line_becomes_a_segment_with_its_words(model: Model) -> None:
    aligned = model.align(SOUND, TEXT, sample_rate=16000)
    assert [segment.text for segment in aligned.segments] == TEXT.split("\n")
    assert [word.text for word in aligned.words] == [
        "Hello,", "world!", "It's", "half-past", "two —", "你", "好，", "世", "界。"
    ]  # fmt: skip
    times = [time for word in aligned.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= 6
    for segment in aligned.segments:
        assert segment.words
        assert (segment.start, segment.end) == (segment.words[0].start, segment.words[-1].end)
    assert (aligned.duration, aligned.language, aligned.complete, aligned.word_times) == (6, None, True, "aligner")
    assert aligned.timings.prompt_tokens > aligned.timings.tokens == 0
    assert len(aligned.to_vtt()) > len(aligned.to_txt()) > 0


def test_a_line_without_words_is_said_where_the_one_before_ends(model: Model) -> None:
    first, second = model.align(SOUND, "one\n...\n", sample_rate=16000).segments
    assert (second.start, second.end, second.text) == (first.end, first.end, "...")


def test_a_transcript_is_aligned_segment_by_segment(model: Model) -> None:
    with Model("tiny", threads=1) as tiny:
        plain = tiny.transcribe(SAMPLES / "long.wav", vad="on")
        timed_ = tiny.transcribe(SAMPLES / "long.wav", vad="on", word_timestamps="aligner", aligner=model)
    aligned = model.align(SAMPLES / "long.wav", plain)
    assert len(plain.segments) > 1
    assert aligned.segments == timed_.segments
    assert (aligned.word_times, timed_.word_times, plain.word_times) == ("aligner", "aligner", None)
    for before, segment in zip(plain.segments, aligned.segments, strict=True):
        assert (segment.text, segment.start, segment.end) == (before.text, before.start, before.end)
        assert segment.words
        assert " ".join(word.text for word in segment.words) == segment.text
        edges = [edge for token in segment.tokens for edge in (token.start, token.end)]
        assert edges == sorted(edges)  # type: ignore[type-var]
        assert segment.start <= edges[0] <= edges[-1] <= segment.end  # type: ignore[operator]


def test_every_way_to_transcribe_takes_an_aligner(model: Model, path: Path) -> None:
    with Model("tiny", threads=1) as tiny:
        wanted = tiny.transcribe(SAMPLES / "digits.wav", word_timestamps=True, aligner=path)
        assert wanted.words
        assert list(tiny.segments(SAMPLES / "digits.wav", word_timestamps="aligner", aligner=str(path))) == list(
            wanted.segments
        )
        many = tiny.transcribe_many([SAMPLES / "digits.wav"] * 2, word_timestamps="aligner", aligner=model)
        assert [transcript.segments for transcript in many] == [wanted.segments] * 2
        with tiny.session(word_timestamps="aligner", aligner=model) as session:
            session.feed(SOUND)
            assert session.finish().word_times in ("aligner", None)
        opened = tiny._aligners
        assert list(opened) == [str(path)]
        inner = opened[str(path)]
    assert inner.closed
    assert not model.closed


def test_an_aligner_without_a_name_is_the_known_one(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    from pycrispasr.models import hub

    asked: list[object] = []

    def resolve(name: object, **_: object) -> Path:
        asked.append(name)
        return path

    with Model("tiny", threads=1) as tiny:
        monkeypatch.setattr(hub, "resolve", resolve)
        assert tiny.transcribe(SAMPLES / "digits.wav", word_timestamps="aligner").words
    assert asked == ["qwen3-aligner"]
    assert "qwen3-aligner" in {known.name for known in hub.models()}


def test_a_segment_that_cannot_be_aligned_keeps_its_text_and_says_why(tmp_path: Path) -> None:
    generate(tmp_path / "short.gguf", preset="qwen3-aligner-nano", type="f32", hyperparameters={"align.bins": 10})
    with Model("tiny", threads=1) as tiny:
        transcript = tiny.transcribe(SAMPLES / "digits.wav", word_timestamps="aligner", aligner=tmp_path / "short.gguf")
        assert transcript.segments == tiny.transcribe(SAMPLES / "digits.wav").segments
    assert transcript.words == ()
    assert "the segment at 0.0 s has no word times: 3.0 s of audio are too long" in transcript.warnings[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"word_timestamps": "heads"}, "word_timestamps cannot be 'heads': choose True, False or 'aligner'"),
        ({"aligner": "file.gguf"}, "aligner='file.gguf' is for word times: pass word_timestamps='aligner' too"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DecodingOptions(**options)  # type: ignore[arg-type]


def test_errors_name_the_way_out(model: Model) -> None:
    with pytest.raises(UsageError, match=r"the text '\.\.\.' has no words"):
        model.align(SOUND, "...", sample_rate=16000)
    with pytest.raises(UnsupportedOperationError, match=r"language='nl'.*takes de, en, .*leave it out"):
        model.align(SOUND, "een", sample_rate=16000, language="nl")
    with pytest.raises(AudioError, match=r"33\.0 s of audio are too long.*times end at 32\.0 s; align it in parts"):
        model.align(make_tones(33), "one", sample_rate=16000)
    with pytest.raises(
        AudioError, match=r"text of \d+ tokens and places is too long.*room for 40\d\d; align it in parts"
    ):
        model.align(SOUND, "word " * 2000, sample_rate=16000)
    with pytest.raises(UnsupportedOperationError, match=r"writes no text.*Model\.align.*qwen3-asr"):
        model.transcribe(SOUND, sample_rate=16000)
    with pytest.raises(UnsupportedOperationError, match="writes no text"):
        model.session()
    with pytest.raises(TypeError, match="text must be a str, a list of str or a Transcript"):
        model.align(SOUND, ["one", 2], sample_rate=16000)  # type: ignore[list-item]
    with pytest.raises(TypeError, match="unexpected keyword argument 'vad'"):
        model.align(SOUND, "one", vad="on")  # type: ignore[call-arg]
    with (
        Model("tiny", threads=1) as tiny,
        pytest.raises(UnsupportedOperationError, match="'tiny' writes what it hears"),
    ):
        tiny.align(SOUND, "one", sample_rate=16000)


def test_threads_that_share_an_aligner_get_what_one_gets(model: Model) -> None:
    texts = [f"{TEXT} {'one two ' * i}" for i in range(6)]
    wanted = [model.align(SOUND, text, sample_rate=16000).segments for text in texts]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        found = pool.map(lambda text: model.align(SOUND, text, sample_rate=16000).segments, texts)
        assert list(found) == wanted
    assert model.stats().audio_seconds >= 12 * 6
    assert model.stats().memory_bytes > model.info.weight_bytes


def test_segments_of_a_transcript_that_cannot_be_aligned_are_told_of(tmp_path: Path) -> None:
    generate(tmp_path / "short.gguf", preset="qwen3-aligner-nano", type="f32", hyperparameters={"align.bins": 50})
    with Model("tiny", threads=1) as tiny, Model(tmp_path / "short.gguf", threads=1) as short:
        plain = tiny.transcribe(SAMPLES / "long.wav", vad="on")
        lengths = [segment.end - segment.start for segment in plain.segments]
        assert min(lengths) <= 4 < max(lengths)
        aligned = short.align(SAMPLES / "long.wav", plain)
        assert [segment.words is not None for segment in aligned.segments] == [length <= 4 for length in lengths]
        assert aligned.text == plain.text
        assert len(aligned.warnings) == sum(length > 4 for length in lengths)
        longest = dataclasses.replace(plain, segments=(plain.segments[lengths.index(max(lengths))],))
        with pytest.raises(AudioError, match="align it in parts"):
            short.align(SAMPLES / "long.wav", longest)


def test_a_transcript_of_another_recording_is_refused(model: Model) -> None:
    with Model("tiny", threads=1) as tiny:
        transcript: Transcript = tiny.transcribe(SAMPLES / "long.wav")
    with pytest.raises(AudioError, match=r"a segment ends at .* and the recording at 6\.00 s"):
        model.align(SOUND, transcript, sample_rate=16000)


def test_the_c_api_refuses_what_it_cannot_do_and_goes_on(path: Path, nano_path: Path) -> None:
    ffi, lib = native.library()
    session = native.NativeSession(native.NativeModel(path))
    wanted = session.align(SOUND, [40, -1, -1])
    with pytest.raises(UnsupportedOperationError, match="writes no text"):
        session.end()
    with pytest.raises(UnsupportedOperationError, match="writes no text"):
        session.begin_hypothesis()
    with pytest.raises(UnsupportedOperationError, match="takes no language"):
        session.begin(0, language="French")
    for tokens in ([384], [-2]):
        with pytest.raises(UsageError, match="outside the vocabulary"):
            session.align(SOUND, tokens)
    with pytest.raises(AudioError, match="too few"):
        session.align(SOUND[:0], [-1])
    with pytest.raises(AudioError, match="sample 3 is nan"):
        session.align(np.array([0, 0, 0, np.nan], np.float32), [-1])
    places, count = ffi.new("pcr_place[1]"), ffi.new("size_t *")
    status = lib.pcr_session_align(
        session._pointer, 0, session._input(SOUND), len(SOUND), [-1, -1], 2, places, 1, count
    )
    assert (status, count[0]) == (lib.PCR_ERROR_ARGUMENT, 2)
    session.cancel()
    with pytest.raises(native.Cancelled):
        session.align(SOUND, [-1])
    session.reset()
    assert session.align(SOUND, [40, -1, -1]) == wanted
    with pytest.raises(UnsupportedOperationError, match="tells no times of another text"):
        native.NativeSession(native.NativeModel(nano_path)).align(SOUND, [-1])


def test_the_command_writes_subtitles_of_a_known_text(path: Path, tmp_path: Path) -> None:
    (tmp_path / "said.txt").write_text("\ufeffseven four\nnine, two.\n", encoding="utf-8")
    done = run("align", SAMPLES / "digits.wav", tmp_path / "said.txt", "-m", path, "--language", "English")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1\n00:00:0")
    assert done.stdout.count("-->") == 2
    assert "nine, two.\n" in done.stdout
    out = ["-o", tmp_path / "out", "-f", "json", "-f", "vtt"]
    done = run("align", SAMPLES / "digits.wav", tmp_path / "said.txt", "-m", path, *out)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out" / "digits.json").read_text(encoding="utf-8"))
    assert [word["text"] for segment in content["segments"] for word in segment["words"]] == [
        "seven", "four", "nine,", "two."
    ]  # fmt: skip
    assert content["word_times"] == "aligner"
    again = run("align", SAMPLES / "digits.wav", tmp_path / "said.txt", "-m", path, *out)
    assert (again.returncode, "already there" in again.stderr) == (1, True)


def test_the_command_takes_a_transcript_whose_texts_were_corrected(path: Path, tmp_path: Path) -> None:
    done = run("transcribe", "-m", "tiny", "-f", "json", SAMPLES / "digits.wav")
    content = json.loads(done.stdout)
    content["segments"][0]["text"] = "four, oh seven"
    (tmp_path / "known.json").write_text(json.dumps(content), encoding="utf-8")
    done = run("align", SAMPLES / "digits.wav", tmp_path / "known.json", "-m", path, "-f", "json")
    assert done.returncode == 0, done.stderr
    aligned = Transcript.from_json(done.stdout)
    assert aligned.text == aligned.segments[0].text == "four, oh seven"
    assert [word.text for word in aligned.words] == ["four,", "oh", "seven"]
    assert aligned.segments[0].end == content["segments"][0]["end"]
    assert [token.start for token in aligned.segments[0].tokens] == [None] * 8  # they say something else
    (tmp_path / "known.json").write_text("{}", encoding="utf-8")
    done = run("align", SAMPLES / "digits.wav", tmp_path / "known.json", "-m", path)
    assert (done.returncode, "is not the JSON of a transcript" in done.stderr) == (2, True)


def test_the_command_says_what_is_wrong(path: Path, tmp_path: Path) -> None:
    (tmp_path / "said.txt").write_text("seven", encoding="utf-8")
    for arguments, status, message in (
        ((SAMPLES / "digits.wav", tmp_path / "none.txt"), 2, "none.txt"),
        (("-", "-"), 2, "standard input"),
        ((SAMPLES / "digits.wav", tmp_path / "said.txt", "-f", "srt", "-f", "vtt"), 2, "-o DIR"),
        ((SAMPLES / "digits.wav", tmp_path / "said.txt", "--language", "nl"), 1, "language='nl'"),
        ((SAMPLES / "digits.wav", tmp_path / "said.txt", "-m", "tiny"), 1, "'tiny' writes what it hears"),
    ):
        done = run("align", "-m", path, *arguments)
        assert done.returncode == status, done.stderr
        # A box may break lines anywhere.
        assert "".join(message.split()) in "".join(done.stderr.replace("│", "").split())


def test_transcribe_takes_an_aligner_on_the_command_line(path: Path) -> None:
    done = run("transcribe", "-m", "tiny", "--aligner", path, "-f", "json", SAMPLES / "digits.wav")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["word_times"] == "aligner"
    assert [word["text"] for word in content["segments"][0]["words"]] == content["text"].split()
