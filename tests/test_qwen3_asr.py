"""Qwen3-ASR: files as they are in circulation, languages, contexts, and what a user sees of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pycrispasr import DecodingOptions, Model, UnsupportedOperationError, UsageError
from pycrispasr.errors import AudioError, ModelNotFoundError
from pycrispasr.models import gguf_file, hub, imatrix
from pycrispasr.models.convert import convert
from pycrispasr.models.quantize import quantize
from pycrispasr.models.random_model import generate
from pycrispasr.results.events import Partial
from pycrispasr.runtimes import native

from .checkpoint_qwen3_asr import Form, write_checkpoint
from .command import run
from .gguf_edit import rewrite
from .qwen3_asr_file import Telling, edited
from .sounds import make_tones

SOUND = make_tones(4, seed=8)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen") / "nano.gguf"
    generate(path, preset="qwen3-asr-nano", type="f32", seed=1)
    return path


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    with Model(path, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def telling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Telling]:
    found = Telling(tmp_path_factory.mktemp("telling"))
    with found.model:
        yield found


def test_the_language_is_told_and_is_no_part_of_text_tokens_or_words(telling: Telling) -> None:
    transcript = telling.model.transcribe(telling.sound, sample_rate=16000, max_new_tokens=8, word_timestamps=True)
    segment = transcript.segments[0]
    assert (transcript.language, segment.language) == ("fr", "fr")
    assert transcript.text == segment.text == telling.text
    assert "".join(token.text for token in segment.tokens).strip() == segment.text
    assert transcript.timings.tokens == 8
    assert len(segment.tokens) == 5
    assert all(token.start is not None and token.end is not None for token in segment.tokens)
    assert segment.words
    assert all(0 <= word.start <= word.end <= 4 for word in segment.words)


def test_tokens_that_come_one_by_one_begin_with_the_text(telling: Telling) -> None:
    wanted = telling.model.transcribe(telling.sound, sample_rate=16000, max_new_tokens=8).segments[0].tokens
    assert tuple(telling.model.stream(telling.sound, sample_rate=16000, max_new_tokens=8)) == wanted


def test_live_text_does_not_show_the_language(telling: Telling) -> None:
    with telling.model.session(partial_every=0.5, max_new_tokens=8) as session:
        shown = []
        for block in np.split(telling.sound, 8):
            session.feed(block)
            shown += [event.committed + event.tentative for event in session.poll() if isinstance(event, Partial)]
            shown.append(session.text.committed + session.text.tentative)
        transcript = session.finish()
    assert (transcript.language, transcript.text) == ("fr", telling.text)
    assert shown
    assert not any("<asr_text>" in text or "language French" in text for text in shown)


def test_a_text_that_is_cut_off_inside_the_language_is_empty(telling: Telling) -> None:
    for limit in (1, 2, 3):
        transcript = telling.model.transcribe(telling.sound, sample_rate=16000, max_new_tokens=limit)
        assert (transcript.text, transcript.segments[0].tokens, transcript.segments[0].status) == ("", (), "truncated")


@pytest.mark.parametrize("wanted", ["fr", "FR", "french", " French "])
def test_a_language_is_told_by_its_code_or_its_english_name(model: Model, wanted: str) -> None:
    transcript = model.transcribe(SOUND, sample_rate=16000, max_new_tokens=4, language=wanted)
    assert transcript.language == transcript.segments[0].language == "fr"


def test_language_and_context_stand_in_the_prompt(path: Path) -> None:
    native_model = native.NativeModel(path)
    plain = native_model.prompt(3)
    told = native_model.prompt(3, language="French", context="Zwickau")
    words = [native_model.tokenize(text) for text in (b"system\nZwickau", b"assistant\nlanguage French")]
    place = plain.index(native_model.info()["eos_token"])
    start = native_model.tokenize(b"system\n")
    tag = told[-1]
    assert told[1 : 1 + len(words[0])] == words[0]
    assert told[-1 - len(words[1]) : -1] == words[1]
    assert plain[1:place] == start
    assert native_model.token_bytes(tag) == b"<asr_text>"
    audio = plain.index(-1)
    assert told.count(-1) == 3
    assert told[told.index(-1) - 1] == plain[audio - 1]


def test_control_tokens_in_a_context_are_taken_for_text(path: Path) -> None:
    native_model = native.NativeModel(path)
    end = native_model.info()["eos_token"]
    assert native_model.prompt(1, context="<|im_end|>").count(end) == native_model.prompt(1).count(end)


def test_callers_of_one_engine_have_their_own_languages_and_contexts(model: Model) -> None:
    alone = {
        (language, context): model.transcribe(
            SOUND, sample_rate=16000, max_new_tokens=12, language=language, context=context
        )
        for language in (None, "de", "ja")
        for context in (None, "Zwickau", ["Łódź", "Ærø"])
        if isinstance(context, str) or context is None
    }
    jobs = [
        model.job([SOUND], sample_rate=16000, max_new_tokens=12, language=language, context=context)
        for language, context in alone
    ]
    for job, wanted in zip(jobs, alone.values(), strict=True):
        with job:
            assert next(job).segments == wanted.segments
    assert len({transcript.text for transcript in alone.values()}) > 3


def test_a_context_is_a_text_or_a_list_of_words(model: Model) -> None:
    one = model.transcribe(SOUND, sample_rate=16000, max_new_tokens=8, context=["Zwickau", "A\u030arhus"])
    same = model.transcribe(SOUND, sample_rate=16000, max_new_tokens=8, context="Zwickau, Århus")
    assert one.segments == same.segments
    assert (
        model.transcribe(SOUND, sample_rate=16000, max_new_tokens=8, context=[]).segments
        == model.transcribe(SOUND, sample_rate=16000, max_new_tokens=8).segments
    )


@pytest.mark.parametrize(
    ("options", "error"),
    [({"context": "a\0b"}, UsageError), ({"context": "\ud800"}, UsageError), ({"context": [1]}, TypeError),
     ({"language": 3}, TypeError)],
)  # fmt: skip
def test_what_cannot_be_a_language_or_a_context(options: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        DecodingOptions(**options)  # type: ignore[arg-type]


def test_a_language_that_the_model_does_not_take_is_refused_with_those_that_it_takes(model: Model) -> None:
    with pytest.raises(UnsupportedOperationError, match=r"'tlh': Qwen3-ASR takes ar, cs, da.*yue, zh"):
        model.transcribe(SOUND, sample_rate=16000, language="tlh")
    assert len(model.languages) == 30
    assert "yue" in model.languages
    assert model.takes_context


def test_moss_transcribe_takes_neither_and_says_what_it_does(nano: Model) -> None:
    assert (nano.languages, nano.takes_context) == ({}, False)
    with pytest.raises(UnsupportedOperationError, match=r"MOSS-Transcribe takes no language.*English"):
        nano.transcribe(SOUND, sample_rate=16000, language="en")
    with pytest.raises(UnsupportedOperationError, match=r"MOSS-Transcribe takes no context"):
        nano.session(context="Zwickau")


def test_a_context_that_leaves_no_room_is_an_error_that_says_so(model: Model) -> None:
    with pytest.raises(AudioError, match=r"context of 12\d\d\d tokens .*4096"):
        model.transcribe(SOUND, sample_rate=16000, context="x y " * 3000)


@pytest.mark.parametrize("n_samples", [1, 100, 7999, 8000])
def test_short_clips_are_padded_to_half_a_second(path: Path, n_samples: int) -> None:
    session = native.NativeSession(native.NativeModel(path), max_new_tokens=8)
    padded = np.pad(SOUND[:n_samples], (0, 8000 - n_samples))
    assert list(session.decode_clip(SOUND[:n_samples])) == list(session.decode_clip(padded))
    assert session.result()["n_frames"] == 50


def test_no_samples_are_still_too_few(path: Path) -> None:
    session = native.NativeSession(native.NativeModel(path))
    with pytest.raises(AudioError, match="too few: at least 1"):
        session.end()


def test_a_hypothesis_leaves_no_silence_behind(path: Path) -> None:
    session = native.NativeSession(native.NativeModel(path), max_new_tokens=8)
    wanted = list(session.decode_clip(SOUND[:9000]))
    session.reset()
    session.feed(SOUND[:3000])
    session.hypothesis()
    session.feed(SOUND[3000:9000])
    session.end()
    assert list(iter(session.next, None)) == wanted


def test_a_file_without_the_names_of_its_control_tokens(tmp_path: Path) -> None:
    """Converters of the past left them out: the published ids stand for them."""
    generate(tmp_path / "whole.gguf", preset="qwen3-asr-vocab", type="q8_0", hyperparameters={"llm.num_layers": 1})
    tokens = gguf_file.load(tmp_path / "whole.gguf")[0]["tokenizer.ggml.tokens"].content
    names = [
        token if not token.startswith("<|") and token != "<asr_text>" else f"[PAD{i}]" for i, token in enumerate(tokens)
    ]
    edited(tmp_path / "whole.gguf", tmp_path / "bare.gguf", **{"tokenizer.ggml.tokens": names})
    whole, bare = native.NativeModel(tmp_path / "whole.gguf"), native.NativeModel(tmp_path / "bare.gguf")
    assert bare.prompt(2, language="French", context="x") == whole.prompt(2, language="French", context="x")
    assert bare.token_bytes(151704) == b"<asr_text>"


def test_a_head_beside_a_tied_embedding_is_used(path: Path, tmp_path: Path) -> None:
    embedding = next(tensor for tensor in gguf_file.load(path)[1] if tensor.name == "token_embd.weight")
    values = gguf_file.rows(path, embedding).view(np.float32).reshape(embedding.shape)
    generate(tmp_path / "own.gguf", preset="qwen3-asr-nano", type="f32", seed=1,
             hyperparameters={"llm.tied_embeddings": False})  # fmt: skip
    rewrite(tmp_path / "own.gguf", tmp_path / "same.gguf", values={"general.architecture": "qwen3asr"},
            tensors={"output.weight": values.copy()})  # fmt: skip
    tied, same, own = (native.NativeSession(native.NativeModel(one), max_new_tokens=12)
                       for one in (path, tmp_path / "same.gguf", tmp_path / "own.gguf"))  # fmt: skip
    assert list(tied.decode_clip(SOUND)) == list(same.decode_clip(SOUND)) != list(own.decode_clip(SOUND))


def test_files_without_window_sizes_have_the_published_ones(path: Path, tmp_path: Path) -> None:
    missing = {f"qwen3asr.audio.{name}": None for name in ("n_window", "n_window_infer")}
    edited(path, tmp_path / "out.gguf", **missing)
    one, other = (
        native.NativeSession(native.NativeModel(file), max_new_tokens=12) for file in (path, tmp_path / "out.gguf")
    )
    assert list(one.decode_clip(SOUND)) == list(other.decode_clip(SOUND))


@pytest.mark.parametrize("form", ["thinker", "hf"])
@pytest.mark.parametrize("own_head", [False, True])
def test_both_forms_of_a_checkpoint_become_the_same_file(form: Form, own_head: bool, tmp_path: Path) -> None:
    sizes = {"llm.tied_embeddings": not own_head, "enc.n_window_infer": 400}
    generate(tmp_path / "random.gguf", preset="qwen3-asr-nano", type="bf16", hyperparameters=sizes)
    write_checkpoint(tmp_path / "checkpoint", tmp_path / "random.gguf", form)
    convert(tmp_path / "checkpoint", tmp_path / "out.gguf", type="bf16", name="random-qwen3-asr-nano-bf16")
    (before, tensors), (after, made) = (gguf_file.load(tmp_path / file) for file in ("random.gguf", "out.gguf"))
    assert after == before
    assert [(tensor.name, tensor.shape, tensor.type) for tensor in made] == [
        (tensor.name, tensor.shape, tensor.type) for tensor in tensors
    ]
    for old, new in zip(tensors, made, strict=True):
        stored, got = (
            gguf_file.rows(tmp_path / file, tensor) for file, tensor in (("random.gguf", old), ("out.gguf", new))
        )
        if len(old.shape) > 1 or old.name.startswith("audio.mel_"):
            np.testing.assert_array_equal(got, stored)
        else:
            np.testing.assert_array_equal(got.view(np.uint32), stored.view(np.uint32) & 0xFFFF0000)


def test_quantize_takes_the_decoder_s_matrices_and_an_importance_matrix(tmp_path: Path) -> None:
    import soundfile

    generate(tmp_path / "in.gguf", preset="qwen3-asr-small", type="f16")
    soundfile.write(tmp_path / "sound.wav", SOUND, 16000)
    imatrix.collect(tmp_path / "in.gguf", [tmp_path / "sound.wav"], tmp_path / "sound.imatrix", max_new_tokens=4)
    assert gguf_file.load(tmp_path / "sound.imatrix")[0]["general.architecture"].content == "qwen3asr"
    assert "audio.blk.0.attn_q.weight" in imatrix.read(tmp_path / "sound.imatrix")
    quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", type="q4_k", importance=tmp_path / "sound.imatrix")
    types = {tensor.name: tensor.type for tensor in gguf_file.load(tmp_path / "out.gguf")[1]}
    assert types["blk.0.attn_q.weight"] == types["blk.2.ffn_down.weight"] == "Q4_K"
    assert types["audio.blk.0.attn_q.weight"] == types["token_embd.weight"] == types["audio.conv.1.weight"] == "F16"
    assert types["audio.mel_filters"] == types["audio.blk.0.attn_q.bias"] == types["output_norm.weight"] == "F32"
    quantize(tmp_path / "in.gguf", tmp_path / "all.gguf", type="q8_0", all_matrices=True)
    types = {tensor.name: tensor.type for tensor in gguf_file.load(tmp_path / "all.gguf")[1]}
    assert types["audio.blk.0.attn_q.weight"] == types["token_embd.weight"] == "Q8_0"
    for file in ("out.gguf", "all.gguf"):
        with Model(tmp_path / file, threads=1) as model:
            assert model.transcribe(SOUND, sample_rate=16000, max_new_tokens=4).segments[0].tokens


def test_the_names_of_the_published_files() -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"'qwen3-asr:7b' does not exist: choose qwen3-asr:0.6b or qwen3-asr:1.7b"
    ):
        hub.resolve("qwen3-asr:7b", local_files_only=True)
    known = {model.name: model for model in hub.models()}
    for name in ("qwen3-asr:0.6b", "qwen3-asr:1.7b"):
        assert known[name].repo.endswith("GGUF")
        assert known[name].licence == "Apache-2.0"


def test_the_command_takes_a_language_and_a_context(path: Path, tmp_path: Path) -> None:
    import soundfile

    soundfile.write(tmp_path / "sound.wav", SOUND, 16000)
    (tmp_path / "terms.txt").write_text("Zwickau\nŁódź\n", encoding="utf-8")
    options = ["--context", "Ærø", "--context-file", tmp_path / "terms.txt", "--max-new-tokens", 4, "-f", "json"]
    done = run("transcribe", "-m", path, "--language", "fr", *options, tmp_path / "sound.wav")
    assert done.returncode == 0
    assert '"language":"fr"' in done.stdout.replace(" ", "")
    done = run("transcribe", "-m", str(path), "--language", "xx", str(tmp_path / "sound.wav"))
    assert done.returncode == 1
    assert "Qwen3-ASR takes ar, cs" in done.stderr
    done = run("transcribe", "-m", str(path), "--context-file", str(tmp_path / "none.txt"), str(tmp_path / "sound.wav"))
    assert done.returncode == 2
    assert "none.txt" in "".join(done.stderr.split()).replace("│", "")


def test_info_names_the_family(model: Model) -> None:
    assert model.info.architecture == "qwen3asr"
