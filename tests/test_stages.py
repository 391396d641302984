"""Every stage of the runtime gives the numbers of the model in NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pycrispasr.models.random_model import generate
from pycrispasr.runtimes import native

from .reference import gguf_model, model
from .sounds import cosines, make_tones

SECONDS = (0.05, 0.3, 0.99, 1, 1.01, 7.99, 8, 8.01, 30, 61)

# Sizes on top of the "nano" preset, and a seed: an encoder with an odd number of heads, a decoder without grouped
# queries, 80 mel bins, attention inside one second, a head of its own, files without mel tables.
MODELS = {
    "plain": ({}, 0, {}),
    "odd heads": ({"enc.encoder_attention_heads": 5, "enc.d_model": 80, "enc.downsample_hidden_size": 6}, 1, {}),
    "no grouped queries": ({"llm.num_heads": 3, "llm.num_kv_heads": 3, "llm.head_dim": 16}, 2, {}),
    "80 mel bins": ({"enc.num_mel_bins": 80, "enc.n_window_infer": 100}, 3, {"mel_tables": False}),
    "own head": ({"llm.tied_embeddings": False, "llm.num_layers": 3, "llm.hidden_size": 96}, 4, {}),
    "qwen3-asr": ({}, 5, {"preset": "qwen3-asr-nano"}),
    "qwen3-asr of odd sizes": (
        {
            "enc.encoder_attention_heads": 5,
            "enc.d_model": 80,
            "enc.n_window_infer": 200,
            "enc.output_dim": 96,
            "llm.hidden_size": 96,
            "llm.num_heads": 3,
            "llm.num_kv_heads": 1,
            "llm.tied_embeddings": False,
        },
        6,
        {"preset": "qwen3-asr-nano", "mel_tables": False},
    ),
}


class Pair:
    """One file in the runtime and in NumPy."""

    def __init__(self, path: Path, precision: str = "f32", kernels: str = "auto") -> None:
        self.reference = gguf_model.load(path)
        self.native = native.NativeModel(path, "cpu", precision, kernels)
        self.session = native.NativeSession(self.native, threads=1)


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    hyperparameters, seed, options = MODELS[request.param]
    path = tmp_path_factory.mktemp("stages") / "model.gguf"
    generate(path, hyperparameters=hyperparameters, type="f32", seed=seed, **options)
    return Pair(path)


@pytest.mark.parametrize("seconds", SECONDS)
def test_every_stage_agrees_with_the_reference(pair: Pair, seconds: float) -> None:
    check_stages(pair, seconds, 0.99999)


@pytest.mark.parametrize("name", ["plain", "odd heads", "qwen3-asr"])
@pytest.mark.parametrize("kernels", [*native.kernels()[:-1], "ggml"])
def test_every_processor_s_kernels_agree_with_the_reference(name: str, kernels: str, tmp_path: Path) -> None:
    hyperparameters, seed, options = MODELS[name]
    generate(tmp_path / "model.gguf", hyperparameters=hyperparameters, type="f32", seed=seed, **options)
    pair = Pair(tmp_path / "model.gguf", "auto" if kernels == "ggml" else "f32", kernels)
    for seconds in (0.3, 8.01):
        # ggml keeps the cache in F16 too.
        check_stages(pair, seconds, 0.999 if kernels == "ggml" else 0.99999)


@pytest.mark.parametrize("kernels", [name for name in native.kernels() if name in ("avx512_bf16", "amx")])
def test_bf16_rounds_every_stage_a_little(kernels: str, tmp_path: Path) -> None:
    generate(tmp_path / "model.gguf", type="bf16")
    pair = Pair(tmp_path / "model.gguf", "bf16", kernels)
    for seconds in (0.3, 8.01):
        check_stages(pair, seconds, 0.9995)


def check_stages(pair: Pair, seconds: float, least: float) -> None:
    """No row's cosine with the reference's is below least."""
    reference, session = pair.reference, pair.session
    samples = make_tones(seconds, seed=int(seconds * 100))

    heard = model.heard(reference, samples)
    mel = model.log_mel(heard, reference.hparams.enc_num_mel_bins, reference.weights.get("audio.mel_filters"))
    got = session.log_mel(samples)
    assert got.shape == mel.T.shape
    assert cosines(got, mel.T).min() >= 0.99999
    np.testing.assert_allclose(got, mel.T, atol=1e-5)

    # Each stage on the reference's input, so that no error is counted twice.
    frames = mel.T.astype(np.float32)
    encoder_states: list[np.ndarray] = []
    rows = model.encode(reference, mel, states=encoder_states)
    for n_layers, wanted in ((0, encoder_states[0]), (1, encoder_states[1]), (-1, rows)):
        got = session.encode(frames, n_layers)
        assert got.shape == wanted.shape
        assert cosines(got, wanted).min() >= least

    audio = model.adapt(reference, rows)
    assert cosines(session.adapt(rows.astype(np.float32)), audio).min() >= least

    ids = model.prompt_ids(reference, len(audio))
    assert pair.native.prompt(len(audio)) == ids
    prompt = model.embed(reference, ids, audio)
    text = [token for token in ids if token != model.AUDIO]
    np.testing.assert_allclose(session.embed(text), model.embed(reference, text), rtol=1e-6)

    decoder_states: list[np.ndarray] = []
    last = model.decode(reference, prompt, states=decoder_states)[-1:]
    for n_layers in (0, 1, reference.hparams.llm_num_layers):
        got = session.decode(prompt.astype(np.float32), n_layers=n_layers)
        assert cosines(got, decoder_states[n_layers][-1]) >= least
    logits = model.logits(reference, last)[0]
    got = session.decode(prompt.astype(np.float32))
    assert np.abs(got - logits).max() <= (1e-3 if least > 0.9999 else 0.03) * (logits.max() - logits.min())


@pytest.mark.parametrize("seconds", [0.3, 1, 8.01, 30])
def test_greedy_tokens_are_the_reference_s_over_64_steps(pair: Pair, seconds: float) -> None:
    samples = make_tones(seconds, seed=7)
    wanted = model.greedy(pair.reference, samples, max_new_tokens=64)
    session = native.NativeSession(pair.native, threads=1, max_new_tokens=64)
    session.feed(samples)
    session.end()
    assert [token for token, _ in iter(session.next, None)] == wanted
    result = session.result()
    assert result["looped"] == model.loops(wanted)
    assert result["truncated"] == (len(wanted) == 64 and not result["looped"])


def test_probabilities_are_the_softmax_of_the_reference_s_logits(pair: Pair) -> None:
    samples = make_tones(2, seed=3)
    rows = model.prompt_rows(pair.reference, samples)
    logits = model.logits(pair.reference, model.decode(pair.reference, rows)[-1:])[0]
    weights = np.exp(logits - logits.max())
    session = pair.session
    session.reset()
    session.feed(samples)
    session.end()
    token, probability = session.next() or (pair.reference.hparams.eos_token_id, None)
    assert token == logits.argmax()
    if probability is not None:
        assert probability == pytest.approx(1 / weights.sum(), rel=1e-3)
    session.reset()


def test_several_sequences_in_one_batch_do_not_disturb_each_other(pair: Pair) -> None:
    reference = pair.reference
    rng = np.random.default_rng(5)
    hidden, vocab = reference.hparams.llm_hidden_size, reference.hparams.llm_vocab_size
    batch = native.NativeSession(pair.native, threads=1, sequences=3)
    prompts = [rng.standard_normal((length, hidden)).astype(np.float32) for length in (5, 300, 41)]
    caches: list[model.Cache] = [[], [], []]
    for sequence, rows in enumerate(prompts):
        wanted = model.logits(reference, model.decode(reference, rows.astype(np.float64), caches[sequence])[-1:])[0]
        got = batch.decode(rows, sequence=sequence)
        assert np.abs(got - wanted).max() <= 1e-3 * np.ptp(wanted)
    for sequences in ([0, 1, 2], [2, 0], [1], [1, 2, 0]):
        tokens = rng.integers(0, vocab, len(sequences)).tolist()
        got = batch.decode_step(sequences, tokens)
        for row, sequence, token in zip(got, sequences, tokens, strict=True):
            step = model.decode(reference, model.embed(reference, [token]), caches[sequence])
            wanted = model.logits(reference, step)[0]
            assert np.abs(row - wanted).max() <= 1e-3 * np.ptp(wanted)


def test_a_cache_can_be_rewound_and_continued(pair: Pair) -> None:
    rng = np.random.default_rng(6)
    rows = rng.standard_normal((50, pair.reference.hparams.llm_hidden_size)).astype(np.float32)
    whole = pair.session.decode(rows)
    pair.session.decode(rows[:30])
    pair.session.decode(rng.standard_normal((9, rows.shape[1])).astype(np.float32), n_past=30)
    np.testing.assert_allclose(pair.session.decode(rows[30:], n_past=30), whole, atol=1e-4 * np.ptp(whole))


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q4_0", "q5_1"])
def test_every_matrix_type_computes(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    generate(path, preset="small", type=kind, all_matrices=True, seed=1)
    pair = Pair(path)
    samples = make_tones(9, seed=1)
    mel = model.log_mel(samples, 128)
    rows = model.encode(pair.reference, mel)
    frames = mel.T.astype(np.float32)
    # ggml rounds the other factor too, to 16 or 8 bits, which the reference does not.
    tolerance = 1e-4 if kind in ("f16", "bf16") else 3e-3
    assert cosines(pair.session.encode(frames), rows).min() >= 1 - tolerance
    assert (
        cosines(pair.session.adapt(rows.astype(np.float32)), model.adapt(pair.reference, rows)).min() >= 1 - tolerance
    )
    prompt = model.prompt_rows(pair.reference, samples)
    logits = model.logits(pair.reference, model.decode(pair.reference, prompt)[-1:])[0]
    assert cosines(pair.session.decode(prompt.astype(np.float32)), logits) >= 1 - tolerance


@pytest.mark.parametrize("kind", ["f32", "f16", "q4_k"])
def test_results_do_not_depend_on_the_number_of_threads(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    generate(path, preset="small", type=kind, hyperparameters={"enc.encoder_attention_heads": 8}, seed=2)
    model = native.NativeModel(path, "cpu")
    samples = make_tones(12, seed=2)
    results = []
    for threads in (1, 2, 3):  # more than there are cores is slow: they wait for each other at every node
        session = native.NativeSession(model, threads=threads, max_new_tokens=5)
        mel = session.log_mel(samples)
        rows = session.encode(mel)
        audio = session.adapt(rows)
        session.feed(samples)
        session.end()
        results.append((mel, rows, audio, session.decode(audio), list(iter(session.next, None))))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)
