"""A model on a device other than the CPU: the CPU's stages and texts, many at once, and errors that leave it usable.

Runs on each device that this build has; `tools/test_vulkan.sh` makes one of the software driver lavapipe. Most of these
tests let the CPU compute a device's graphs too, in every build.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import pycrispasr
from pycrispasr import DeviceError, Model, OutOfMemoryError, UnsupportedOperationError, audio
from pycrispasr.models import hub
from pycrispasr.models.random_model import generate
from pycrispasr.runtimes import native

from .reference import gguf_model, model
from .sounds import cosines, make_tones
from .test_stages import MODELS

SAMPLES = sorted((Path(__file__).parent.parent / "samples").glob("*.wav"))
GPUS = [device.name for device in pycrispasr.devices() if device.name != "cpu"]

REASON = "this build has no GPU, or the machine has none"


def on_gpus(*others: str) -> list[object]:
    """Parameters: these, which run everywhere, and every GPU."""
    none = [pytest.param("", marks=[pytest.mark.gpu, pytest.mark.skip(reason=REASON)])]
    return [*others, *([pytest.param(name, marks=pytest.mark.gpu) for name in GPUS] or none)]


@pytest.fixture(scope="module", params=on_gpus())
def gpu(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=on_gpus("operations"))
def where(request: pytest.FixtureRequest) -> Callable[[Path], native.NativeModel]:
    """Opens a model on a GPU, or with a GPU's graphs on the CPU."""
    if request.param == "operations":
        return lambda path: native.NativeModel(path, "cpu", kernels="operations")
    return lambda path: native.NativeModel(path, request.param)


@pytest.fixture(scope="module")
def tiny_gpu(gpu: str) -> Iterator[Model]:
    with Model("tiny", device=gpu) as opened:
        yield opened


@pytest.fixture(scope="module")
def tiny_cpu() -> Iterator[Model]:
    with Model("tiny", device="cpu") as opened:
        yield opened


Where = Callable[[Path], native.NativeModel]


def check_stages(path: Path, where: Where, seconds: float, least: float) -> None:
    """No row's cosine with that of the model in NumPy is below least. Each stage gets the reference's input."""
    reference = gguf_model.load(path)
    session = native.NativeSession(where(path), threads=1)
    samples = make_tones(seconds, seed=int(seconds * 100))

    heard = model.heard(reference, samples)
    mel = model.log_mel(heard, reference.hparams.enc_num_mel_bins, reference.weights.get("audio.mel_filters"))
    np.testing.assert_allclose(session.log_mel(samples), mel.T, atol=2e-3)

    frames = mel.T.astype(np.float32)
    encoder_states: list[np.ndarray] = []
    rows = model.encode(reference, mel, states=encoder_states)
    for n_layers, wanted in ((0, encoder_states[0]), (1, encoder_states[1]), (-1, rows)):
        got = session.encode(frames, n_layers)
        assert got.shape == wanted.shape
        assert cosines(got, wanted).min() >= least
    sound = model.adapt(reference, rows)
    assert cosines(session.adapt(rows.astype(np.float32)), sound).min() >= least

    ids = model.prompt_ids(reference, len(sound))
    prompt = model.embed(reference, ids, sound)
    text = [token for token in ids if token != model.AUDIO]
    assert cosines(session.embed(text), model.embed(reference, text)).min() >= 0.99999
    decoder_states: list[np.ndarray] = []
    last = model.decode(reference, prompt, states=decoder_states)[-1:]
    for n_layers in (0, 1, reference.hparams.llm_num_layers):
        got = session.decode(prompt.astype(np.float32), n_layers=n_layers)
        assert cosines(got, decoder_states[n_layers][-1]) >= least
    logits = model.logits(reference, last)[0]
    assert np.abs(session.decode(prompt.astype(np.float32)) - logits).max() <= 0.03 * np.ptp(logits)


@pytest.mark.parametrize("name", MODELS)
def test_every_stage_agrees_with_the_reference(where: Where, name: str, tmp_path: Path) -> None:
    hyperparameters, seed, options = MODELS[name]
    generate(tmp_path / "model.gguf", hyperparameters=hyperparameters, type="f32", seed=seed, **options)
    for seconds in (0.3, 8.01, 17):
        check_stages(tmp_path / "model.gguf", where, seconds, 0.9995)


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q4_0", "q5_1"])
def test_every_matrix_type_computes(where: Where, kind: str, tmp_path: Path) -> None:
    generate(tmp_path / "model.gguf", preset="small", type=kind, all_matrices=True, seed=1)
    check_stages(tmp_path / "model.gguf", where, 9, 0.995)


def test_quiet_frames_are_heard_beside_loud_ones(where: Where, nano_path: Path) -> None:
    """The transform is a product, in which a loud bin's rounding must not cover a quiet one, 75 dB below."""
    t = np.arange(32000) / 16000
    samples = (0.9 * np.sin(2 * np.pi * 440 * t) + 1.6e-4 * np.sin(2 * np.pi * 3000 * t)).astype(np.float32)
    on_gpu, on_cpu = (
        native.NativeSession(model, threads=1).log_mel(samples)
        for model in (where(nano_path), native.NativeModel(nano_path, "cpu"))
    )
    np.testing.assert_allclose(on_gpu, on_cpu, atol=0.02)


def test_a_frame_s_numbers_do_not_depend_on_how_many_are_computed(where: Where, nano_path: Path) -> None:
    samples = make_tones(4, seed=9)
    model = where(nano_path)
    texts = []
    for blocks in (1, 7, 31):
        session = native.NativeSession(model, max_new_tokens=20)
        for block in np.array_split(samples, blocks):
            session.feed(block)
        session.end()
        texts.append(list(iter(session.next, None)))
    assert texts[0] == texts[1] == texts[2]
    assert texts[0]


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_the_bundled_model_writes_the_cpu_s_tokens(where: Where, path: Path) -> None:
    samples = audio.load(path)[: 30 * 16000]
    texts = []
    for opened in (where(hub.resolve("tiny")), native.NativeModel(hub.resolve("tiny"), "cpu")):
        session = native.NativeSession(opened, threads=1)
        session.feed(samples)
        session.end()
        texts.append(list(iter(session.next, None)))
    on_gpu, on_cpu = texts
    assert [token for token, _ in on_gpu] == [token for token, _ in on_cpu]
    assert on_gpu
    np.testing.assert_allclose([likely for _, likely in on_gpu], [likely for _, likely in on_cpu], atol=0.05)


def test_a_long_recording_has_the_cpu_s_text(tiny_gpu: Model, tiny_cpu: Model) -> None:
    path = next(path for path in SAMPLES if path.stem == "long")
    assert tiny_gpu.transcribe(path).text == tiny_cpu.transcribe(path).text


def test_recordings_side_by_side_have_the_text_they_have_alone(tiny_gpu: Model) -> None:
    alone = [tiny_gpu.transcribe(path).text for path in SAMPLES]
    assert [transcript.text for transcript in tiny_gpu.transcribe_many(SAMPLES, batch=4)] == alone


def test_sequences_of_different_lengths_do_not_disturb_each_other(where: Where, nano_path: Path) -> None:
    """Neighbours in a batch, gaps, another order, and caches that grow meanwhile."""
    reference = gguf_model.load(nano_path)
    rng = np.random.default_rng(5)
    hidden, vocab = reference.hparams.llm_hidden_size, reference.hparams.llm_vocab_size
    batch = native.NativeSession(where(nano_path), sequences=5)
    caches: list[model.Cache] = [[] for _ in range(5)]

    def check(got: np.ndarray, wanted: np.ndarray) -> None:
        assert np.abs(got - wanted).max() <= 0.02 * np.ptp(wanted)

    for sequence, length in enumerate((5, 300, 41, 255, 600)):
        rows = rng.standard_normal((length, hidden)).astype(np.float32)
        wanted = model.logits(reference, model.decode(reference, rows.astype(np.float64), caches[sequence])[-1:])[0]
        check(batch.decode(rows, sequence=sequence), wanted)
    for sequences in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [2, 0], [1], [3, 4, 1, 2, 0], [0, 2, 3], [3]):
        tokens = rng.integers(0, vocab, len(sequences)).tolist()
        got = batch.decode_step(sequences, tokens)
        for row, sequence, token in zip(got, sequences, tokens, strict=True):
            step = model.decode(reference, model.embed(reference, [token]), caches[sequence])
            check(row, model.logits(reference, step)[0])


def test_a_cache_can_be_rewound_and_continued(where: Where, nano_path: Path) -> None:
    rng = np.random.default_rng(6)
    session = native.NativeSession(where(nano_path))
    rows = rng.standard_normal((50, 64)).astype(np.float32)[:, : session.embed([1]).shape[1]]
    whole = session.decode(rows)
    session.decode(rows[:30])
    session.decode(rng.standard_normal((9, rows.shape[1])).astype(np.float32), n_past=30)
    np.testing.assert_allclose(session.decode(rows[30:], n_past=30), whole, atol=0.02 * np.ptp(whole))


def test_a_text_that_was_expected_is_the_text(where: Where) -> None:
    samples = audio.load(SAMPLES[0])
    model = where(hub.resolve("tiny"))
    plain, expected = (native.NativeSession(model, threads=1) for _ in range(2))
    plain.feed(samples)
    plain.end()
    wanted = [token for token, _ in iter(plain.next, None)]
    expected.feed(samples)
    assert [token for token, _ in expected.hypothesis()] == wanted
    expected.end()
    assert [token for token, _ in iter(expected.next, None)] == wanted


def test_several_sessions_work_on_one_device_at_once(tiny_gpu: Model) -> None:
    alone = [tiny_gpu.transcribe(path).text for path in SAMPLES[:3]]
    together: dict[int, str] = {}

    def work(index: int) -> None:
        together[index] = tiny_gpu.transcribe(SAMPLES[index]).text

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[index] for index in range(3)] == alone


def test_no_part_of_a_graph_runs_on_the_cpu(gpu: str) -> None:
    code = (
        "import logging, sys; logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)\n"
        f"from pycrispasr import Model\nModel('tiny', device={gpu!r}).transcribe({str(SAMPLES[0])!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYCRISPASR_TRACE": "1"}, capture_output=True, text=True,
        timeout=300, check=True,
    )  # fmt: skip
    graphs = [line.partition("graph ")[2] for line in done.stdout.splitlines() if "graph " in line]
    names = {graph.partition(":")[0] for graph in graphs}
    assert names >= {"log-mel", "conv stem", "encoder", "adapter", "prefill", "step"}
    assert all(", 1 parts, " in graph for graph in graphs), graphs


def test_too_large_a_cache_names_the_sizes_and_the_device_goes_on(gpu: str, tiny_gpu: Model, tmp_path: Path) -> None:
    path = tmp_path / "wide.gguf"
    sizes = {"llm.num_kv_heads": 64, "llm.num_heads": 64, "llm.head_dim": 512, "llm.max_position_embeddings": 1 << 20}
    generate(path, preset="nano", type="f16", hyperparameters=sizes)
    session = native.NativeSession(native.NativeModel(path, gpu), sequences=256, max_new_tokens=1 << 19)
    with pytest.raises(OutOfMemoryError, match=rf"'{gpu}' for a KV cache of \d+ rows \(\d+ MB\): \d+ of its \d+ MB"):
        session.feed(make_tones(9))
    assert tiny_gpu.transcribe(SAMPLES[0]).text


def test_a_gpu_computes_with_one_precision_only(gpu: str) -> None:
    with pytest.raises(DeviceError, match=f"{gpu}.*precision 'auto' only"):
        Model("tiny", device=gpu, precision="f32")
    with Model("tiny", precision="f32") as opened:
        assert opened.info.device == "cpu"


def test_the_first_device_of_a_kind_needs_no_number(gpu: str) -> None:
    kind, _, number = gpu.partition(":")
    if number == "0":
        with Model("tiny", device=kind) as opened:
            assert opened.info.device == gpu


def test_auto_takes_the_first_device(gpu: str) -> None:
    with Model("tiny") as opened:
        assert opened.info.device == pycrispasr.devices()[0].name


FAILING = """
import logging, sys
from pycrispasr import Model, OutOfMemoryError
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
try:
    Model("tiny", device="vulkan")
except OutOfMemoryError as error:
    print("ERROR", error)
with Model("tiny") as model:
    print("DEVICE", model.info.device, model.transcribe(sys.argv[1]).text)
"""


def test_a_gpu_that_fails_is_an_error_by_name_and_a_warning_under_auto(gpu: str, tiny_cpu: Model) -> None:
    if not gpu.startswith("vulkan"):
        pytest.skip("only Vulkan can be told to have no memory")
    done = subprocess.run(
        [sys.executable, "-c", FAILING, str(SAMPLES[0])],
        env=os.environ | {"GGML_VK_FORCE_MAX_ALLOCATION_SIZE": "1024", "GGML_VK_FORCE_MAX_BUFFER_SIZE": "1024"},
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert "no memory on 'vulkan:0' for the weights (" in lines["ERROR"]
    assert "no memory on 'vulkan:0' for the weights (" in lines["WARNING"]
    assert lines["WARNING"].endswith("the next best device is used instead")
    assert lines["DEVICE"] == f"cpu {tiny_cpu.transcribe(SAMPLES[0]).text}"


def test_messages_of_the_driver_go_to_the_log(gpu: str, capfd: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("pycrispasr").setLevel(logging.NOTSET)
    with Model("tiny", device=gpu) as opened:
        opened.transcribe(SAMPLES[0])
    assert capfd.readouterr() == ("", "")


def test_word_times_are_an_operation_that_a_gpu_does_not_support(tiny_gpu: Model) -> None:
    with pytest.raises(UnsupportedOperationError, match="on the CPU only"):
        tiny_gpu.transcribe(SAMPLES[0], word_timestamps=True)
