"""MOSS-Transcribe-Diarize: every stage is the reference's, audio in parts, time markers, prompts, and its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from pycrispasr import AudioError, Model, UsageError
from pycrispasr.errors import ModelFormatError, UnsupportedModelError
from pycrispasr.models import gguf_file, imatrix
from pycrispasr.models.convert import convert
from pycrispasr.models.quantize import quantize
from pycrispasr.models.random_model import generate
from pycrispasr.runtimes import native

from .checkpoint_moss_diarize import Form, write_checkpoint
from .command import run
from .gguf_edit import rewrite
from .reference import gguf_model
from .reference import model as ref
from .sounds import cosines, make_tones
from .test_incremental import hear, loud_at

# Windows of two seconds instead of thirty: more of them in less time. 25 rows each, 24 or 62 between two markers.
SHORT = {"enc.max_source_positions": 100}
OTHERS = ("bf16", "q8_0", "q2_k", "q5_k", "q4_0", "q5_1")
MODELS = {
    "windows of 30 s": {},
    "short windows": {**SHORT, "enc.marker_seconds": 2, "llm.vocab_size": 400},
    "odd sizes": {
        "enc.encoder_attention_heads": 5,
        "enc.d_model": 80,
        "enc.max_source_positions": 150,
        "enc.merge": 3,
        "enc.num_mel_bins": 128,
        "enc.rows_per_second": 50 / 3,
        "enc.marker_seconds": 1,
        "llm.num_heads": 3,
        "llm.num_kv_heads": 3,
    },
    "own head, no markers": {**SHORT, "enc.marker_seconds": 0, "llm.tied_embeddings": False, "llm.hidden_size": 96},
}


class Pair:
    """One file in the runtime and in NumPy."""

    def __init__(self, path: Path, precision: str = "f32", kernels: str = "auto", **options: object) -> None:
        self.reference = gguf_model.load(path)
        self.native = native.NativeModel(path, "cpu", precision, kernels)
        self.session = native.NativeSession(self.native, threads=1, max_new_tokens=64, **options)  # type: ignore[arg-type]


def diarize(path: Path, sizes: dict[str, int | float | bool] | None = None, type: str = "f32", **options: int) -> Path:  # noqa: A002
    generate(path, preset="moss-diarize-nano", hyperparameters=SHORT if sizes is None else sizes, type=type, **options)
    return path


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    path = tmp_path_factory.mktemp("diarize") / "model.gguf"
    return Pair(diarize(path, MODELS[request.param], seed=len(request.param)))


@pytest.fixture(scope="module", params=[name for name in MODELS if name != "windows of 30 s"])
def short(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    path = tmp_path_factory.mktemp("diarize") / "model.gguf"
    return Pair(diarize(path, MODELS[request.param], seed=len(request.param)))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return diarize(tmp_path_factory.mktemp("diarize") / "short.gguf", seed=1)


@pytest.mark.parametrize("number", range(4))
def test_every_stage_agrees_with_the_reference(pair: Pair, number: int) -> None:
    lengths = (0.0001, 1.99, 6, 13.3)
    if pair.reference.hparams.enc_max_source_positions == 1500:
        lengths = (0.3, 30.01)
    if number < len(lengths):
        check_stages(pair, lengths[number], 0.99999)


@pytest.mark.parametrize("kernels", [*native.kernels()[:-1], "ggml", "operations"])
def test_every_processor_s_kernels_agree_with_the_reference(kernels: str, path: Path) -> None:
    others = kernels in ("ggml", "operations")
    # ggml keeps the cache in F16 too.
    check_stages(Pair(path, "auto" if others else "f32", kernels), 4.5, 0.999 if others else 0.99999)


@pytest.mark.parametrize(
    "kind",
    ["f16", "q3_k", "q4_k", "q6_k", *(pytest.param(kind, marks=pytest.mark.slow) for kind in OTHERS)],
)
def test_every_matrix_type_computes(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    generate(file, preset="moss-diarize-small", hyperparameters=SHORT, type=kind, all_matrices=True, seed=1)
    # ggml rounds the other factor too, to 16 or 8 bits, which the reference does not.
    check_stages(Pair(file), 2.5, 1 - (1e-4 if kind in ("f16", "bf16") else 3e-3))


def check_stages(pair: Pair, seconds: float, least: float) -> None:
    """No row's cosine with the reference's is below least."""
    reference, session = pair.reference, pair.session
    samples = make_tones(seconds, seed=int(seconds * 100))
    mel = ref.listen(reference, samples)
    got = session.log_mel(samples)
    np.testing.assert_allclose(got, mel.T, atol=1e-5)

    # Each stage on the reference's input, so that no error is counted twice.
    frames = mel.T.astype(np.float32)
    states: list[np.ndarray] = []
    rows = ref.encode(reference, mel, states=states)
    for n_layers, wanted in ((0, states[0]), (1, states[1]), (-1, rows)):
        got = session.encode(frames, n_layers)
        assert got.shape == wanted.shape
        assert cosines(got, wanted).min() >= least
    audio = ref.adapt(reference, rows)
    assert cosines(session.adapt(rows.astype(np.float32)), audio).min() >= least

    n_rows = ref.whisper_rows(reference, len(samples))
    ids = ref.prompt_ids(reference, n_rows)
    assert pair.native.prompt(n_rows) == ids
    prompt = ref.embed(reference, ids, audio[:n_rows])
    states = []
    last = ref.decode(reference, prompt, states=states)[-1:]
    for n_layers in (0, 1, reference.hparams.llm_num_layers):
        assert cosines(session.decode(prompt.astype(np.float32), n_layers=n_layers), states[n_layers][-1]) >= least
    logits = ref.logits(reference, last)[0]
    got = session.decode(prompt.astype(np.float32))
    assert cosines(got, logits) >= least
    # The first token, and with it everything in front of it, is computed from samples.
    session.reset()
    session.feed(samples)
    session.end()
    first = session.next()
    chosen = logits[reference.end_tokens].max() if first is None else logits[first[0]]
    assert chosen >= logits.max() - (1e-3 if least > 0.9999 else 0.05) * np.ptp(logits)
    assert session.result()["n_rows"] == n_rows
    assert session.result()["n_prompt_tokens"] == len(ids)


@pytest.mark.parametrize("seconds", [0.3, 5.2])
def test_greedy_tokens_are_the_reference_s_over_64_steps(short: Pair, seconds: float) -> None:
    samples = make_tones(seconds, seed=7)
    wanted = ref.greedy(short.reference, samples, max_new_tokens=64)
    short.session.reset()
    assert [token for token, _ in short.session.decode_clip(samples)] == wanted


# ---- Audio in parts --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["auto", "ggml"])
def model(request: pytest.FixtureRequest, path: Path) -> native.NativeModel:
    return native.NativeModel(path, "cpu", kernels=request.param)


@pytest.mark.parametrize("seed", range(3))
def test_pieces_of_any_length_and_hypotheses_between_give_the_tokens_of_the_whole(
    model: native.NativeModel, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    sound = loud_at(float(rng.uniform(20, 45)), 0.7, seed)
    session = native.NativeSession(model, threads=2, max_new_tokens=20)
    at = 0
    while at < len(sound):
        piece = int(16000 * rng.choice([0.1, 0.5, 2, 3.3, 40], p=[0.1, 0.2, 0.3, 0.35, 0.05]))
        session.feed(sound[at : at + piece])
        at = min(at + piece, len(sound))
        if rng.random() < 0.25:
            assert session.hypothesis() == hear(model, sound[:at], 20)
        elif rng.random() < 0.2:
            session.begin_hypothesis()
            session.next()
            session.end_hypothesis()
    session.end()
    assert list(iter(session.next, None)) == hear(model, sound, 20)


@pytest.mark.parametrize("seconds", [1.99, 2, 2.01, 4.96, 5.04, 9.99, 10])
def test_audio_can_end_before_what_was_fed(model: native.NativeModel, seconds: float) -> None:
    """On both sides of a window, and of a time marker, which is there or not by how long the audio is."""
    sound, cut = make_tones(13, seed=3), round(seconds * 16000)
    session = native.NativeSession(model, threads=1, max_new_tokens=20)
    session.feed(sound)
    session.hypothesis()
    session.end(n_samples=cut)
    assert list(iter(session.next, None)) == hear(model, sound[:cut], 20)


def test_windows_of_thirty_seconds_in_parts(tmp_path: Path) -> None:
    model, sound = native.NativeModel(diarize(tmp_path / "long.gguf", {})), make_tones(61, seed=4)
    session = native.NativeSession(model, threads=2, max_new_tokens=20)
    for start in range(0, len(sound), 500_000):
        session.feed(sound[start : start + 500_000])
    assert session.hypothesis() == hear(model, sound, 20)
    session.end()
    assert list(iter(session.next, None)) == hear(model, sound, 20)


def check_length(path: Path, seconds: int) -> None:
    """Tokens and the size of the prompt are those of the whole, however late it is."""
    model = native.NativeModel(path)
    rng = np.random.default_rng(seconds)
    sound = rng.uniform(-0.1, 0.1, seconds * 16000).astype(np.float32)
    session = native.NativeSession(model, threads=2, max_new_tokens=20)
    at = 0
    while at < len(sound):
        piece = int(16000 * rng.uniform(0.1, 40))
        session.feed(sound[at : at + piece])
        at += piece
    session.end()
    got = list(iter(session.next, None))
    whole = native.NativeSession(model, threads=2, max_new_tokens=20)
    assert got == list(whole.decode_clip(sound))
    for result in (session.result(), whole.result()):
        assert result["n_prompt_tokens"] == len(model.prompt(result["n_rows"]))
    assert session.result()["n_rows"] == model.row_count(100 * seconds)


# An hour has 720 markers, of up to four tokens; the last one stands 360 rows in front of the time that it tells.
LONG = {**SHORT, "enc.encoder_layers": 1, "llm.num_layers": 1, "llm.max_position_embeddings": 65536}


def test_time_markers_drift_in_minutes_as_they_do_in_the_whole(tmp_path: Path) -> None:
    check_length(diarize(tmp_path / "long.gguf", LONG), 150)


@pytest.mark.slow
def test_time_markers_drift_in_an_hour_as_they_do_in_the_whole(tmp_path: Path) -> None:
    check_length(diarize(tmp_path / "long.gguf", LONG), 3600)


def test_the_longest_clip_is_told_and_is_taken(tmp_path: Path) -> None:
    model = native.NativeModel(diarize(tmp_path / "model.gguf", {**SHORT, "llm.max_position_embeddings": 512}))
    session = native.NativeSession(model, threads=1, max_new_tokens=1)
    session.feed(make_tones(40))
    with pytest.raises(
        AudioError, match=r"40\.0 s of audio are too long for one pass: this model takes \d\d s"
    ) as told:
        session.end()
    longest = int(str(told.value).split("takes ")[1].split(" s")[0])
    assert longest > 10
    for seconds in (longest, longest + 1):
        session.reset()
        session.feed(make_tones(seconds))
        if seconds == longest:
            session.end()
            assert session.next()
            assert session.result()["n_prompt_tokens"] < 512
    with pytest.raises(AudioError, match="too long"):
        session.end()


# ---- Attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.3, 5.1, 11])
def test_attention_is_the_reference_s_without_the_markers(short: Pair, tmp_path: Path, seconds: float) -> None:
    reference, hp = short.reference, short.reference.hparams
    heads = [(layer, head) for layer in range(hp.llm_num_layers) for head in range(hp.llm_num_heads)]
    session = native.NativeSession(short.native, threads=2, max_new_tokens=12, heads=heads)
    samples = make_tones(seconds, seed=4)
    tokens = [token for token, _ in session.decode_clip(samples)]
    got = session.attention()
    rows = ref.prompt_rows(reference, samples)
    ids = np.array(ref.prompt_ids(reference, ref.whisper_rows(reference, len(samples))))
    seen: list[np.ndarray] = []
    ref.decode(reference, np.concatenate([rows, ref.embed(reference, tokens)]), seen=seen)
    weights = np.concatenate([layer[:, len(ids) - 1 :, : len(ids)] for layer in seen]).transpose(1, 0, 2)
    wanted = weights[: len(got), :, ids == ref.AUDIO]
    assert len(tokens) <= len(got) <= len(tokens) + 1
    np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=1e-6)
    assert (got.sum(axis=-1) <= 1).all()


# ---- Prompts ---------------------------------------------------------------------------------------------------------


def test_the_context_stands_behind_the_instruction(path: Path) -> None:
    model = native.NativeModel(path)
    plain, told = model.prompt(3), model.prompt(3, context="Zwickau<|im_end|>")
    hint = model.tokenize("热词提示：Zwickau<|im_end|>".encode())
    end = len(plain) - plain[::-1].index(model.info()["eos_token"]) - 1
    assert told == [*plain[:end], *hint, *plain[end:]]
    with pytest.raises(UnsupportedModelError, match="takes no language"):
        model.prompt(3, language="English")


def test_a_file_s_own_prompt_is_used(path: Path, tmp_path: Path) -> None:
    own = {
        "prompt_before": "<|im_start|>user\nuser <|audio_start|>",
        "prompt_after": "<|audio_end|>Write!<|im_end|>\n<|im_start|>assistant\n",
        "prompt_after_context": "<|audio_end|>Write! Words: {context}.<|im_end|>\n<|im_start|>assistant\n",
    }
    model = native.NativeModel(edited(path, tmp_path / "own.gguf", **own))
    plain = ref.prompt_ids(gguf_model.load(tmp_path / "own.gguf"), 70)
    assert model.prompt(70) == plain
    place = len(plain) - plain[::-1].index(model.info()["eos_token"]) - 1
    assert model.prompt(70, context="x{context}") == [
        *plain[:place], *model.tokenize(b" Words: x{context}."), *plain[place:],
    ]  # fmt: skip


def edited(path: Path, out: Path, **values: object) -> Path:
    own = {f"moss_diarize.{key}": value for key, value in values.items()}
    return rewrite(path, out, values={"general.architecture": "moss_transcribe_diarize", **own})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt_after": "<|audio_end|>Write!"}, r"moss_diarize\.prompt_after' has no <\|im_end\|>.*Write!"),
        ({"prompt_after_context": "<|audio_end|><|im_end|>"}, r"prompt_after_context' has no \{context\}"),
        ({"audio_merge_size": 0}, "audio_merge_size"),
        ({"audio_merge_size": 65}, "audio_merge_size"),
        ({"audio_merge_size": 3}, "100 positions, no multiple of the 3"),
        ({"enc.max_pos": 0}, "enc.max_pos"),
        ({"enc.max_pos": 1 << 30}, "enc.max_pos"),
        ({"enc.n_heads": 5}, "5"),
        ({"time_marker_every_seconds": 3601}, "time_marker_every_seconds"),
        ({"audio_tokens_per_second": 0.0}, "audio_tokens_per_second"),
        ({"audio_tokens_per_second": 1e30}, "audio_tokens_per_second"),
        ({"llm.max_pos": 1 << 31}, "llm.max_pos"),
    ],
)
def test_what_no_model_has_is_refused_by_name(
    path: Path, tmp_path: Path, values: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelFormatError, match=message):
        native.NativeModel(edited(path, tmp_path / "bad.gguf", **values))


def test_frames_must_be_whole_windows(path: Path) -> None:
    session = native.NativeSession(native.NativeModel(path))
    with pytest.raises(UsageError, match="199 frames are no whole windows of 200"):
        session.encode(np.zeros((199, 80), np.float32))
    with pytest.raises(AudioError, match="too few: at least 1"):
        session.end()


# ---- Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [{}, {"llm.tied_embeddings": False, "enc.merge": 2, "enc.marker_seconds": 2}])
def test_both_forms_of_a_checkpoint_become_the_same_file(tmp_path: Path, sizes: dict[str, int]) -> None:
    diarize(tmp_path / "random.gguf", sizes, "bf16")
    forms: tuple[Form, Form] = ("makers", "hf")
    for form in forms:
        write_checkpoint(tmp_path / form, tmp_path / "random.gguf", form)
        convert(tmp_path / form, tmp_path / f"{form}.gguf", type="bf16", name="random-moss-diarize-nano-bf16")
    assert (tmp_path / "makers.gguf").read_bytes() == (tmp_path / "hf.gguf").read_bytes()
    (before, tensors), (after, made) = (gguf_file.load(tmp_path / file) for file in ("random.gguf", "hf.gguf"))
    assert after == before
    assert [(tensor.name, tensor.shape, tensor.type) for tensor in made] == [
        (tensor.name, tensor.shape, tensor.type) for tensor in tensors
    ]
    for old, new in zip(tensors, made, strict=True):
        stored, got = (
            gguf_file.rows(tmp_path / file, tensor) for file, tensor in (("random.gguf", old), ("hf.gguf", new))
        )
        if len(old.shape) > 1 or old.name.startswith("audio.mel_"):
            np.testing.assert_array_equal(got, stored)
        else:
            np.testing.assert_array_equal(got.view(np.uint32), stored.view(np.uint32) & 0xFFFF0000)


def test_files_without_what_converters_leave_out_have_the_published_values(path: Path, tmp_path: Path) -> None:
    missing = ("audio_merge_size", "time_marker_every_seconds", "audio_tokens_per_second", "llm.max_pos")
    other = native.NativeModel(edited(path, tmp_path / "out.gguf", **dict.fromkeys(missing)))
    sound = make_tones(6, seed=8)
    assert hear(other, sound, 12) == hear(native.NativeModel(path), sound, 12)
    assert other.info()["llm_max_positions"] == 131072


def test_quantize_takes_the_decoder_s_matrices_and_an_importance_matrix(tmp_path: Path) -> None:
    generate(
        tmp_path / "in.gguf", preset="moss-diarize-small", hyperparameters={**SHORT, "llm.num_layers": 2}, type="f16"
    )
    sound = make_tones(5.5, seed=8)
    soundfile.write(tmp_path / "sound.wav", sound, 16000)
    imatrix.collect(tmp_path / "in.gguf", [tmp_path / "sound.wav"], tmp_path / "sound.imatrix", max_new_tokens=4)
    collected = imatrix.read(tmp_path / "sound.imatrix")
    assert {"enc.blk.0.attn_q.weight", "adaptor.fc1.weight", "blk.0.attn_o.weight"} <= set(collected)
    assert len(collected["adaptor.fc1.weight"]) == 4 * 256
    quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", type="q4_k", importance=tmp_path / "sound.imatrix")
    types = {tensor.name: tensor.type for tensor in gguf_file.load(tmp_path / "out.gguf")[1]}
    assert types["blk.0.attn_q.weight"] == types["blk.1.ffn_down.weight"] == "Q4_K"
    assert types["enc.blk.0.attn_q.weight"] == types["token_embd.weight"] == types["enc.conv1.weight"] == "F16"
    quantize(tmp_path / "in.gguf", tmp_path / "all.gguf", type="q8_0", all_matrices=True)
    types = {tensor.name: tensor.type for tensor in gguf_file.load(tmp_path / "all.gguf")[1]}
    assert types["enc.blk.0.attn_q.weight"] == types["adaptor.fc1.weight"] == types["token_embd.weight"] == "Q8_0"
    assert types["enc.conv1.weight"] == types["enc.pos_embed.weight"] == "F16"
    for file in ("out.gguf", "all.gguf"):
        with Model(tmp_path / file, threads=1) as model:
            assert model.transcribe(sound, sample_rate=16000, max_new_tokens=4).timings.tokens


def test_info_and_bench_take_such_a_file(path: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "sound.wav", make_tones(2), 16000)
    told = run("info", path)
    assert told.returncode == 0
    assert "moss_transcribe_diarize" in told.stdout
    timed = run("bench", path, tmp_path / "sound.wav", "--runs", 1)
    assert (timed.returncode, timed.stderr) == (0, "")
    assert "2 s of audio: 25 audio rows" in timed.stdout
