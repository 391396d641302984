"""The reference in NumPy agrees with Qwen3-ASR in the transformers library, which reads the checkpoints made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pycrispasr.models.convert import convert
from pycrispasr.models.families.qwen3_asr import FAMILY, LanguageReader
from pycrispasr.models.random_model import generate
from pycrispasr.runtimes import native

from .checkpoint_qwen3_asr import write_checkpoint
from .published_vocabulary import Vocabulary
from .reference import gguf_model
from .reference import model as ref
from .sounds import cosines, make_tones

pytestmark = pytest.mark.reference

SECONDS = (0.3, 0.5, 0.99, 1, 1.01, 7.99, 8, 8.01, 30, 61)
SHAPES: dict[str, dict[str, int | float | bool]] = {
    "nano": {},
    "odd_heads_short_window": {
        "enc.encoder_attention_heads": 3,
        "enc.d_model": 48,
        "enc.n_window_infer": 200,
        "llm.num_heads": 3,
        "llm.num_kv_heads": 1,
    },
    "own_head": {"llm.tied_embeddings": False, "llm.hidden_size": 96, "enc.output_dim": 96, "llm.rope_theta": 1e4},
}


@pytest.fixture(scope="module", autouse=True)
def libraries() -> None:
    """Imports PyTorch, which takes seconds, for those that run a test of it: collecting tests does not."""
    global torch, theirs, features, processing
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    theirs = pytest.importorskip("transformers.models.qwen3_asr.modeling_qwen3_asr")
    features = pytest.importorskip("transformers.models.qwen3_asr.feature_extraction_qwen3_asr")
    processing = pytest.importorskip("transformers.models.qwen3_asr.processing_qwen3_asr")


class Both:
    """One checkpoint in NumPy, in PyTorch and in the runtime."""

    def __init__(self, folder: Path, hyperparameters: dict[str, int | float | bool]) -> None:
        generate(
            folder / "random.gguf", preset="qwen3-asr-nano", hyperparameters=hyperparameters, type="bf16",
            seed=len(hyperparameters),
        )  # fmt: skip
        write_checkpoint(folder / "checkpoint", folder / "random.gguf", "hf")
        convert(folder / "checkpoint", folder / "model.gguf", type="f32")
        self.path = folder / "model.gguf"
        self.numpy = gguf_model.load(self.path)
        self.torch: Any = theirs.Qwen3ASRForConditionalGeneration.from_pretrained(
            folder / "checkpoint", dtype=torch.float64, attn_implementation="eager"
        ).eval()
        self.extractor = features.Qwen3ASRFeatureExtractor(feature_size=self.numpy.hparams.enc_num_mel_bins)

    def hear(self, samples: np.ndarray) -> tuple[Any, Any]:
        """Log-mel and mask, as their encoder takes them: float64 `[1, n_mels, frames]`, in whole chunks."""
        found = self.extractor(samples, sampling_rate=16000, padding=True, return_attention_mask=True)
        mel = ref.log_mel(ref.heard(self.numpy, samples), self.numpy.hparams.enc_num_mel_bins)
        mask = found["attention_mask"]
        # The extractor works in float32 throughout.
        theirs_mel = found["input_features"][0][:, : mel.shape[1]].numpy()
        assert int(mask.sum()) == mel.shape[1]
        close(mel, theirs_mel, 1e-3)
        padded = np.zeros((1, len(mel), mask.shape[1]))
        padded[0, :, : mel.shape[1]] = mel
        return torch.from_numpy(padded), mask


@pytest.fixture(scope="module", params=SHAPES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(tmp_path_factory.mktemp("qwen"), SHAPES[request.param])


def close(actual: np.ndarray, expected: Any, tolerance: float) -> None:
    """Equal up to `tolerance` of the expected values' root mean square."""
    wanted = expected.detach().numpy() if isinstance(expected, torch.Tensor) else expected
    assert actual.shape == wanted.shape
    difference = np.abs(actual - wanted).max() / np.sqrt((wanted.astype(np.float64) ** 2).mean())
    assert difference <= tolerance, f"{difference:.2e}"


@pytest.mark.parametrize("seconds", SECONDS)
def test_every_stage_is_theirs(both: Both, seconds: float) -> None:
    samples = make_tones(seconds, seed=int(seconds * 100))
    mel, mask = both.hear(samples)
    outputs: list[tuple[Any, Any]] = []  # of the layers; the input of the first is what convolutions and positions make
    layers = both.torch.model.audio_tower.layers
    hooks = [layer.register_forward_hook(lambda _, x, y: outputs.append((x[0], y[0]))) for layer in layers]
    with torch.no_grad():
        rows = both.torch.get_audio_features(mel, mask, return_dict=True).pooler_output
    for hook in hooks:
        hook.remove()
    numpy = both.numpy
    own = ref.log_mel(ref.heard(numpy, samples), numpy.hparams.enc_num_mel_bins)
    # PyTorch's position table is float32.
    close(ref.encode(numpy, own, 0), outputs[0][0], 1e-6)
    for i, (_, after) in enumerate(outputs, start=1):
        close(ref.encode(numpy, own, i), after, 1e-5)
    actual = ref.encode(numpy, own)
    close(actual, rows, 1e-5)

    ids = ref.prompt_ids(numpy, len(actual))
    placeholder = numpy.tokens.index("<|audio_pad|>")
    theirs_ids = torch.tensor([[placeholder if token == ref.AUDIO else token for token in ids]])
    with torch.no_grad():
        logits = both.torch(input_ids=theirs_ids, input_features=mel, input_features_mask=mask).logits[0]
    # PyTorch's norms, rotations and softmax are float32.
    close(ref.logits(numpy, ref.decode(numpy, ref.embed(numpy, ids, actual))), logits, 1e-4)


@pytest.mark.parametrize("seconds", [0.3, 9.5])
def test_the_runtime_writes_their_tokens_over_64_steps(both: Both, seconds: float) -> None:
    samples = make_tones(seconds, seed=3)
    mel, mask = both.hear(samples)
    numpy = both.numpy
    n_rows = len(ref.encode(numpy, ref.log_mel(ref.heard(numpy, samples), numpy.hparams.enc_num_mel_bins)))
    placeholder = numpy.tokens.index("<|audio_pad|>")
    ids = [placeholder if token == ref.AUDIO else token for token in ref.prompt_ids(numpy, n_rows)]
    expected: list[int] = []
    with torch.no_grad():
        while len(expected) < 64 and not ref.loops(expected):
            asked = torch.tensor([[*ids, *expected]])
            logits = both.torch(input_ids=asked, input_features=mel, input_features_mask=mask).logits[0, -1]
            token = int(logits.argmax())
            if token in numpy.end_tokens:
                break
            expected.append(token)
    assert ref.greedy(numpy, samples, 64) == expected
    model = native.NativeModel(both.path, "cpu", "f32")
    session = native.NativeSession(model, threads=1, max_new_tokens=64)
    assert [token for token, _ in session.decode_clip(samples)] == expected
    got = session.decode(session.embed([7, 300, 7]))
    with torch.no_grad():
        wanted = both.torch(input_ids=torch.tensor([[7, 300, 7]])).logits[0, -1].numpy()
    assert cosines(got, wanted) >= 0.99999


def test_the_languages_are_theirs() -> None:
    assert FAMILY.languages == processing.LANGUAGE_CODE_TO_NAME


@pytest.mark.parametrize(
    "written",
    ["language English<asr_text>Hello.", "language None<asr_text>", "language Chinese<asr_text>你好。", "Hello.", "",
     "language Klingon<asr_text>nuqneH", "language French<asr_text> Oui <asr_text>."],
)  # fmt: skip
def test_a_text_is_read_as_theirs_is(written: str) -> None:
    wanted = processing._parse_single_output(written)
    reader = LanguageReader()
    pieces = [piece for i in range(len(written)) for piece in reader.read(written[i].encode())] + reader.end()
    assert b"".join(piece.content for piece in pieces).decode().strip() == wanted["transcription"]
    names = FAMILY.languages | {"Klingon": "Klingon"}
    assert (None if reader.language is None else names[reader.language]) == wanted["language"]


ADDED = {151643: "<|endoftext|>", 151644: "<|im_start|>", 151645: "<|im_end|>", 151669: "<|audio_start|>",
         151670: "<|audio_end|>", 151676: "<|audio_pad|>", 151704: "<asr_text>"}  # fmt: skip

TEMPLATE = (
    "<|im_start|>system\n{context}<|im_end|>\n<|im_start|>user\n<|audio_start|>{audio}<|audio_end|><|im_end|>\n"
    "<|im_start|>assistant\n{prefill}"
)


def test_prompts_are_theirs_token_by_token_in_the_published_vocabulary(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = Vocabulary(tmp_path / "vocabulary", ADDED)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "vocabulary" / "tokenizer.json"))
    generate(
        tmp_path / "random.gguf",
        preset="qwen3-asr-vocab",
        type="bf16",
        hyperparameters={"llm.hidden_size": 32, "enc.output_dim": 32},
    )
    write_checkpoint(tmp_path / "checkpoint", tmp_path / "random.gguf", "hf")
    (tmp_path / "checkpoint" / "tokenizer.json").write_bytes((tmp_path / "vocabulary" / "tokenizer.json").read_bytes())
    convert(tmp_path / "checkpoint", tmp_path / "model.gguf")
    model = native.NativeModel(tmp_path / "model.gguf")
    assert len(vocabulary.tokens) == 151643
    contexts = [None, "Zwickau, Łódź, 東京都", "\n two lines\nand more ", "I'd say: 3.14 — don't!", "  "]
    for context in contexts:
        for language in (None, "English", "Cantonese"):
            text = TEMPLATE.format(
                context=context or "", audio="<|audio_pad|>" * 5,
                prefill="" if language is None else f"language {language}<asr_text>",
            )  # fmt: skip
            wanted = [ref.AUDIO if token == 151676 else token for token in tokenizer.encode(text).ids]
            assert model.prompt(5, language=language, context=context) == wanted
