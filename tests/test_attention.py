"""What the decoder attended to while it wrote: as the model in NumPy has it, and reading it changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pycrispasr import UnsupportedOperationError, UsageError
from pycrispasr.models.random_model import generate
from pycrispasr.runtimes import native

from .reference import gguf_model, model
from .sounds import make_tones

LIMIT = 24
MODELS = {
    "plain": {},
    "no grouped queries": {"llm.num_heads": 3, "llm.num_kv_heads": 3, "llm.head_dim": 16},
    "odd sizes": {"llm.num_heads": 6, "llm.num_kv_heads": 2, "llm.head_dim": 24, "llm.num_layers": 3},
}


class Pair:
    """One file in the runtime, with all heads watched, and in NumPy."""

    def __init__(self, path: Path) -> None:
        self.reference = gguf_model.load(path)
        self.native = native.NativeModel(path, "cpu", "f32")
        hp = self.reference.hparams
        self.heads = [(layer, head) for layer in range(hp.llm_num_layers) for head in range(hp.llm_num_heads)]

    def session(self, **options: object) -> native.NativeSession:
        return native.NativeSession(
            self.native,
            threads=2,
            max_new_tokens=LIMIT,
            **{"heads": self.heads, **options},  # type: ignore[arg-type]
        )

    def weights(self, samples: np.ndarray, tokens: list[int]) -> np.ndarray:
        """The reference's, for the steps behind the prompt and behind each token: [steps, heads, rows]."""
        rows = model.prompt_rows(self.reference, samples)
        n_rows = self.native.row_count(self.native.frame_count(len(samples)))
        first = model.prompt_ids(self.reference, n_rows).index(model.AUDIO)
        seen: list[np.ndarray] = []
        model.decode(self.reference, np.concatenate([rows, model.embed(self.reference, tokens)]), seen=seen)
        steps = slice(len(rows) - 1, None)
        return np.concatenate([layer[:, steps, first : first + n_rows] for layer in seen]).transpose(1, 0, 2)


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    path = tmp_path_factory.mktemp("attention") / "model.gguf"
    generate(path, hyperparameters=MODELS[request.param], type="f32", seed=3)
    return Pair(path)


def rest(session: native.NativeSession, sequence: int = 0) -> list[tuple[int, float]]:
    return [step[0] for step in iter(lambda: session.next_of([sequence]), [None]) if step[0] is not None]


def check(pair: Pair, got: np.ndarray, samples: np.ndarray, tokens: list[tuple[int, float]]) -> None:
    wanted = pair.weights(samples, [token for token, _ in tokens])[: len(got)]
    assert len(tokens) <= len(got) <= len(tokens) + 1
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=1e-6)
    assert (got.sum(axis=-1) < 1).all()  # the rest goes to the prompt and the text


@pytest.mark.parametrize("seconds", [0.05, 0.99, 8.01, 20])
def test_single_steps_have_the_reference_s_weights(pair: Pair, seconds: float) -> None:
    samples = make_tones(seconds, seed=4)
    session = pair.session()
    session.feed(samples)
    session.end()
    tokens = rest(session)
    check(pair, session.attention(), samples, tokens)


def test_sequences_of_a_batch_have_their_own_weights(pair: Pair) -> None:
    clips = [make_tones(seconds, seed) for seed, seconds in enumerate((3, 0.4, 9))]
    session = pair.session(sequences=3)
    texts: list[list[tuple[int, float]]] = [[], [], []]
    for sequence, clip in enumerate(clips):  # each joins later than the one before
        session.feed(clip, sequence)
        session.end(sequence)
        for number, step in enumerate(session.next_of(list(range(sequence + 1)))):
            texts[number] += [step] if step else []
    for sequence, clip in enumerate(clips):
        texts[sequence] += rest(session, sequence)
        check(pair, session.attention(sequence), clip, texts[sequence])


@pytest.mark.parametrize("cut", [0, 100, 4000])
def test_texts_that_follow_a_draft_have_the_reference_s_weights(pair: Pair, cut: int) -> None:
    """Of a draft some tokens are kept, and the others are not: those leave no weights behind."""
    samples = make_tones(8.5, seed=5)
    session = pair.session()
    session.feed(samples[: len(samples) - cut])
    assert session.hypothesis()
    session.feed(samples[len(samples) - cut :])
    session.hypothesis()
    session.end()
    tokens = rest(session)
    check(pair, session.attention(), samples, tokens)


def test_any_selection_of_heads_in_any_order_can_be_read(pair: Pair) -> None:
    samples = make_tones(2, seed=6)
    everything = pair.session()
    chosen = [pair.heads[i] for i in (len(pair.heads) - 1, 0, 2, 0)]
    some = pair.session(heads=chosen)
    for session in (everything, some):
        session.feed(samples)
        session.end()
        rest(session)
    places = [pair.heads.index(head) for head in chosen]
    np.testing.assert_array_equal(some.attention(), everything.attention()[:, places])


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
@pytest.mark.parametrize("kernels", [*native.kernels(), "ggml"])
def test_reading_changes_no_bit_of_tokens_and_probabilities(kind: str, kernels: str, tmp_path: Path) -> None:
    generate(tmp_path / "model.gguf", type=kind, seed=1)
    model = native.NativeModel(tmp_path / "model.gguf", kernels=kernels)
    info = model.info()
    heads = [(layer, head) for layer in range(info["llm_layers"]) for head in range(info["llm_heads"])]
    texts = []
    for watched in ([], heads):
        session = native.NativeSession(model, threads=1, max_new_tokens=LIMIT, heads=watched)
        session.feed(make_tones(9, seed=7))
        first = session.hypothesis()
        session.end()
        texts.append((first, rest(session)))
    assert texts[0] == texts[1]


def test_a_text_can_be_read_while_it_is_written_and_after_it_was_cancelled(pair: Pair) -> None:
    samples = make_tones(2, seed=8)
    session = pair.session()
    session.feed(samples)
    session.end()
    assert len(session.attention()) == 0
    tokens = [step for _ in range(5) if (step := session.next())]
    before = session.attention()
    check(pair, before, samples, tokens)
    session.cancel()
    with pytest.raises(native.Cancelled):
        session.next()
    np.testing.assert_array_equal(session.attention(), before)
    session.begin(0, attention=True)
    assert len(session.attention()) == 0


def test_heads_that_are_not_there_are_refused(pair: Pair) -> None:
    hp = pair.reference.hparams
    for head in ((hp.llm_num_layers, 0), (0, hp.llm_num_heads), (-1, 0), (0, -1)):
        with pytest.raises(UsageError, match=f"layer {head[0]} has no head {head[1]}"):
            pair.session(heads=[head])
    session = pair.session(heads=[])
    with pytest.raises(UsageError, match=r"without params\.heads"):
        session.attention()


def test_too_little_room_is_refused_and_the_need_is_told(pair: Pair) -> None:
    ffi, lib = native.library()
    session = pair.session(heads=[(0, 0)])
    session.feed(make_tones(1))
    session.end()
    session.next()
    steps, room = ffi.new("int64_t *"), ffi.new("float[]", 12)
    assert lib.pcr_session_attention(session._pointer, 0, room, 12, steps) == lib.PCR_ERROR_ARGUMENT
    assert steps[0] == 1
    assert b"13 weights, and room for 12" in ffi.string(lib.pcr_session_error(session._pointer))
    assert lib.pcr_session_attention(session._pointer, 1, room, 12, steps) == lib.PCR_ERROR_ARGUMENT
    assert lib.pcr_session_attention(session._pointer, 0, ffi.NULL, 12, steps) == lib.PCR_ERROR_ARGUMENT


def test_it_cannot_be_read_out_where_every_stage_is_of_ggml_s_operations(nano_path: Path) -> None:
    model = native.NativeModel(nano_path, kernels="operations")
    with pytest.raises(UnsupportedOperationError, match="on the CPU only"):
        native.NativeSession(model, threads=1, heads=[(0, 0)])


def test_a_clip_that_keeps_no_attention_and_a_hypothesis_have_none(pair: Pair) -> None:
    session = pair.session()
    for attention in (False, True):
        session.begin(0, attention=attention)
        session.feed(make_tones(2, seed=8))
        session.begin_hypothesis()
        assert session.next()
        assert session.next()
        assert len(session.attention()) == 0
        session.end_hypothesis()
        session.end()
        assert session.next()
        assert len(session.attention()) == attention
