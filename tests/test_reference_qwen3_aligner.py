"""The forced aligner in NumPy, and in the runtime, agrees with Qwen3ASRForTokenClassification of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycrispasr import Model
from pycrispasr.decoding import forced_alignment
from pycrispasr.models.convert import convert
from pycrispasr.models.families import ALIGNER
from pycrispasr.models.random_model import generate
from pycrispasr.runtimes import native

from .checkpoint_qwen3_asr import write_checkpoint
from .reference import alignment, gguf_model
from .reference import model as ref
from .sounds import make_tones

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
theirs = pytest.importorskip("transformers.models.qwen3_asr.modeling_qwen3_asr")
features = pytest.importorskip("transformers.models.qwen3_asr.feature_extraction_qwen3_asr")
processing = pytest.importorskip("transformers.models.qwen3_asr.processing_qwen3_asr")

pytestmark = pytest.mark.reference

SHAPES: dict[str, dict[str, int | float | bool]] = {
    "nano": {},
    "short_window": {"enc.n_window_infer": 200, "llm.num_heads": 3, "llm.num_kv_heads": 1, "align.bins": 251},
    "untied": {"llm.hidden_size": 96, "enc.output_dim": 96, "align.bins": 1000},
}
TEXTS = (
    "one",
    "Hello, world! It's half-past two — isn't it?",
    "你好，世界：OpenAI 发布了 GPT-4o 模型。",
    "Où est l'hôtel « Ærø » ? ½ price, naïve café №5",
    "안녕하세요 여러분, 오늘은 날씨가 좋네요",
    "今日は良い天気ですね。東京タワーへ行きます",
)
SECONDS = (0.3, 1, 7.99, 8.01, 19.5)


class Both:
    """One checkpoint in NumPy, in PyTorch and in the runtime."""

    def __init__(self, folder: Path, hyperparameters: dict[str, int | float | bool]) -> None:
        generate(
            folder / "random.gguf", preset="qwen3-aligner-nano", hyperparameters=hyperparameters, type="bf16",
            seed=len(hyperparameters),
        )  # fmt: skip
        write_checkpoint(folder / "checkpoint", folder / "random.gguf", "hf")
        convert(folder / "checkpoint", folder / "model.gguf", type="f32")
        self.path = folder / "model.gguf"
        self.numpy = gguf_model.load(self.path)
        self.torch: Any = theirs.Qwen3ASRForTokenClassification.from_pretrained(
            folder / "checkpoint", dtype=torch.float64, attn_implementation="eager"
        ).eval()
        self.extractor = features.Qwen3ASRFeatureExtractor(feature_size=self.numpy.hparams.enc_num_mel_bins)
        self.model = native.NativeModel(self.path, "cpu", "f32")
        self.session = native.NativeSession(self.model, threads=1)

    def tokens(self, text: str) -> list[list[int]]:
        """The tokens of its words."""
        return [self.model.tokenize(word.encode()) for word in alignment.words(text)]

    def scores(self, samples: np.ndarray, tokens: list[list[int]]) -> np.ndarray:
        """What PyTorch's classifier says at the places: `[places, bins]`."""
        mel = ref.log_mel(ref.heard(self.numpy, samples), self.numpy.hparams.enc_num_mel_bins)
        mask = self.extractor(samples, sampling_rate=16000, padding=True, return_attention_mask=True)["attention_mask"]
        padded = np.zeros((1, len(mel), mask.shape[1]))
        padded[0, :, : mel.shape[1]] = mel
        names = self.numpy.tokens
        ids = alignment.prompt_ids(self.numpy, len(ref.encode(self.numpy, mel)), tokens)
        asked = torch.tensor([[names.index("<|audio_pad|>") if token == ref.AUDIO else token for token in ids]])
        with torch.no_grad():
            logits = self.torch(
                input_ids=asked, input_features=torch.from_numpy(padded), input_features_mask=mask
            ).logits[0]
        return np.asarray(logits[asked[0] == self.torch.config.timestamp_token_id])


@pytest.fixture(scope="module", params=SHAPES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(tmp_path_factory.mktemp("aligner"), SHAPES[request.param])


@pytest.mark.parametrize("seconds", SECONDS)
def test_scores_and_bins_are_theirs(both: Both, seconds: float) -> None:
    samples = make_tones(seconds, seed=int(seconds * 100))
    for text in TEXTS:
        tokens = both.tokens(text)
        expected = both.scores(samples, tokens)
        actual = alignment.scores(both.numpy, samples, tokens)
        assert actual.shape == expected.shape == (2 * len(tokens), both.model.info()["align_bins"])
        # PyTorch's norms, rotations and softmax are float32.
        assert np.abs(actual - expected).max() <= 1e-4 * np.sqrt((expected**2).mean())
        places = both.session.align(samples, [token for word in tokens for token in [*word, -1, -1]])
        assert [place for place, _ in places] == expected.argmax(axis=1).tolist()
        shares = np.exp(expected - expected.max(axis=1, keepdims=True))
        np.testing.assert_allclose([sure for _, sure in places], 1 / shares.sum(axis=1), rtol=1e-3)


def test_times_of_words_are_theirs(both: Both) -> None:
    samples = make_tones(12, seed=4)
    processor = processing.Qwen3ASRProcessor.__new__(processing.Qwen3ASRProcessor)
    processor.timestamp_segment_time = 80
    with Model(both.path, device="cpu", precision="f32") as model:
        for text in TEXTS[:4]:
            words = processor.split_words_for_alignment(text)
            expected = torch.from_numpy(both.scores(samples, both.tokens(text)))[None]
            place = both.torch.config.timestamp_token_id
            asked = torch.full(expected.shape[:2], place)
            found = processor.decode_forced_alignment(expected, asked, [words], place)[0]
            aligned = model.align(samples, text, sample_rate=16000).words
            assert [(word.start, word.end) for word in aligned] == [
                (min(item["start_time"], 12), min(item["end_time"], 12)) for item in found
            ]


@settings(deadline=None)
@given(st.text() | st.sampled_from(TEXTS))
def test_words_are_theirs(text: str) -> None:
    wanted = processing.Qwen3ASRProcessor.split_words_for_alignment(None, text)
    assert alignment.words(text) == wanted
    assert [unit.spoken for unit in forced_alignment.split(text) if unit.spoken] == wanted


@settings(deadline=None)
@given(st.text() | st.sampled_from(TEXTS))
def test_korean_words_are_theirs(text: str) -> None:
    pytest.importorskip("soynlp")
    wanted = processing.Qwen3ASRProcessor.split_words_for_alignment(None, text, "Korean")
    assert [unit.spoken for unit in forced_alignment.split(text, "ko") if unit.spoken] == wanted


@settings(deadline=None)
@given(st.text(st.sampled_from("今日は良い天気です。カタカナ、 ABC\uff11\uff12abc「」ｶﾞ")) | st.sampled_from(TEXTS[-2:]))
def test_japanese_words_are_theirs(text: str) -> None:
    pytest.importorskip("nagisa")
    wanted = processing.Qwen3ASRProcessor.split_words_for_alignment(None, text, "Japanese")
    assert [unit.spoken for unit in forced_alignment.split(text, "ja") if unit.spoken] == wanted


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=60))
def test_times_that_go_back_are_mended_as_theirs_are(bins: list[int]) -> None:
    times = [80 * place for place in bins]
    wanted = processing._fix_timestamps(np.array(times, np.float32))
    assert alignment.mended(times) == wanted
    assert forced_alignment.mended(times) == wanted


def test_the_languages_are_theirs() -> None:
    assert set(ALIGNER.languages.values()) == processing.FORCED_ALIGNER_LANGUAGES
