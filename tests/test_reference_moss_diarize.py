"""The NumPy reference agrees with MOSS-Transcribe-Diarize in the transformers library, which reads the checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pycrispasr.models.convert import convert
from pycrispasr.models.random_model import generate
from pycrispasr.runtimes import native

from .checkpoint_moss_diarize import write_checkpoint
from .published_vocabulary import Vocabulary
from .reference import gguf_model
from .reference import model as ref
from .sounds import cosines, make_tones

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
theirs = pytest.importorskip("transformers.models.moss_transcribe_diarize.modeling_moss_transcribe_diarize")
features = pytest.importorskip("transformers.models.moss_transcribe_diarize.feature_extraction_moss_transcribe_diarize")
processing = pytest.importorskip("transformers.models.moss_transcribe_diarize.processing_moss_transcribe_diarize")

pytestmark = pytest.mark.reference

SECONDS = (0.3, 1, 1.01, 7.99, 29.99, 30, 30.01, 61)
SHAPES: dict[str, dict[str, int | float | bool]] = {
    "nano": {},
    "odd_heads_short_windows": {
        "enc.encoder_attention_heads": 3,
        "enc.d_model": 48,
        "enc.max_source_positions": 150,
        "enc.merge": 3,
        "enc.num_mel_bins": 128,
        "enc.marker_seconds": 2,
        "llm.num_heads": 3,
        "llm.num_kv_heads": 1,
    },
    "own_head": {"llm.tied_embeddings": False, "llm.hidden_size": 96, "enc.marker_seconds": 0, "llm.rope_theta": 1e4},
}


class Both:
    """One checkpoint in NumPy, in PyTorch and in the runtime."""

    def __init__(self, folder: Path, hyperparameters: dict[str, int | float | bool]) -> None:
        generate(
            folder / "random.gguf", preset="moss-diarize-nano", hyperparameters=hyperparameters, type="bf16",
            seed=len(hyperparameters),
        )  # fmt: skip
        write_checkpoint(folder / "checkpoint", folder / "random.gguf", "hf")
        convert(folder / "checkpoint", folder / "model.gguf", type="f32")
        self.path = folder / "model.gguf"
        self.numpy = gguf_model.load(self.path)
        self.torch: Any = theirs.MossTranscribeDiarizeForConditionalGeneration.from_pretrained(
            folder / "checkpoint", dtype=torch.float64, attn_implementation="eager"
        ).eval()
        hp = self.numpy.hparams
        self.extractor = features.MossTranscribeDiarizeFeatureExtractor(
            feature_size=hp.enc_num_mel_bins, chunk_length=hp.enc_max_source_positions // 50
        )
        self.placeholder = self.torch.config.audio_token_id

    def hear(self, samples: np.ndarray) -> dict[str, Any]:
        """What their model is given: the log-mel of each window, in float64, and masks."""
        found = self.extractor(samples, sampling_rate=16000, return_tensors="pt")
        mel = ref.listen(self.numpy, samples)
        windows = mel.reshape(len(mel), -1, ref.window_frames(self.numpy)).transpose(1, 0, 2)
        # The extractor works in float32 throughout.
        close(windows, found["input_features"].numpy(), 1e-3)
        return {**found, "input_features": torch.from_numpy(windows.copy())}

    def logits(self, ids: list[int], heard: dict[str, Any]) -> Any:
        """[P, V]"""
        theirs_ids = torch.tensor([[self.placeholder if token == ref.AUDIO else token for token in ids]])
        with torch.no_grad():
            return self.torch(input_ids=theirs_ids, **heard).logits[0]


@pytest.fixture(scope="module", params=SHAPES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(tmp_path_factory.mktemp("diarize"), SHAPES[request.param])


def close(actual: np.ndarray, expected: Any, tolerance: float) -> None:
    """Equal up to `tolerance` of the expected values' root mean square."""
    wanted = expected.detach().numpy() if isinstance(expected, torch.Tensor) else expected
    assert actual.shape == wanted.shape
    difference = np.abs(actual - wanted).max() / np.sqrt((wanted.astype(np.float64) ** 2).mean())
    assert difference <= tolerance, f"{difference:.2e}"


@pytest.mark.parametrize("seconds", SECONDS)
def test_every_stage_is_theirs(both: Both, seconds: float) -> None:
    samples, numpy = make_tones(seconds, seed=int(seconds * 100)), both.numpy
    heard = both.hear(samples)
    inputs: list[Any] = []
    outputs: list[Any] = []
    tower = both.torch.model.audio_tower
    hooks = [tower.layers[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))]
    hooks += [layer.register_forward_hook(lambda _, x, y: outputs.append(y)) for layer in tower.layers]
    with torch.no_grad():
        found = both.torch.get_audio_features(**heard, return_dict=True)
    for hook in hooks:
        hook.remove()
    states: list[np.ndarray] = []
    rows = ref.encode(numpy, ref.listen(numpy, samples), states=states)
    for state, after in zip(states, [*inputs, *outputs], strict=True):
        close(state, after.reshape(state.shape), 1e-9)
    close(rows, found.last_hidden_state.reshape(rows.shape), 1e-9)
    audio = ref.audio_rows(numpy, samples)
    close(audio, found.pooler_output, 1e-9)
    ids = ref.prompt_ids(numpy, len(audio))
    logits = both.logits(ids, heard)
    # PyTorch's norms, rotations and softmax are float32.
    close(ref.logits(numpy, ref.decode(numpy, ref.embed(numpy, ids, audio))), logits, 1e-4)


@pytest.mark.parametrize("seconds", [0.3, 9.5, 31])
def test_the_runtime_writes_their_tokens_over_64_steps(both: Both, seconds: float) -> None:
    samples, numpy = make_tones(seconds, seed=3), both.numpy
    heard = both.hear(samples)
    ids = ref.prompt_ids(numpy, ref.whisper_rows(numpy, len(samples)))
    table = both.torch.get_input_embeddings()
    with torch.no_grad():
        rows = table(torch.tensor([ids]).clamp(min=0))
        rows[0, torch.tensor(ids) == ref.AUDIO] = both.torch.get_audio_features(**heard, return_dict=True).pooler_output
        expected: list[int] = []
        while len(expected) < 64 and not ref.loops(expected):
            written = table(torch.tensor([expected], dtype=torch.long))
            token = int(both.torch(inputs_embeds=torch.cat([rows, written], dim=1)).logits[0, -1].argmax())
            if token in numpy.end_tokens:
                break
            expected.append(token)
    assert int(both.logits(ids, heard)[-1].argmax()) == expected[0]
    assert len(expected) > 8
    assert ref.greedy(numpy, samples, 64) == expected
    session = native.NativeSession(native.NativeModel(both.path, "cpu", "f32"), threads=1, max_new_tokens=64)
    assert [token for token, _ in session.decode_clip(samples)] == expected
    got = session.decode(session.embed([7, 300, 7]))
    with torch.no_grad():
        wanted = both.torch(input_ids=torch.tensor([[7, 300, 7]])).logits[0, -1].numpy()
    assert cosines(got, wanted) >= 0.99999


# Ours, in the way in which such templates are written.
TEMPLATE = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- set given = message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('') %}
    {%- for part in message.content %}
        {%- if part.type == 'audio' %}{{- '<|audio_start|><|audio_pad|><|audio_end|>\\n' }}{% endif %}
    {%- endfor %}
    {{- given or 'Write down who says what, and when: [S01] Łódź…' }}
    {%- for part in message.content %}
        {%- if part.type == 'keywords' %}{{- '\\nKeywords: ' + part.keywords | join(', ') + '.' }}{% endif %}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""
CONTEXTS = ([], ["Zwickau", "Łódź", "東京都"], ["\n two lines\nand more "], ["I'd say: 3.14 — don't!"], ["{context}"])


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `tokenizer.json` with the published vocabulary."""
    added = {151643: "<|endoftext|>", 151644: "<|im_start|>", 151645: "<|im_end|>", 151669: "<|audio_start|>",
             151670: "<|audio_end|>", 151671: "<|audio_pad|>"}  # fmt: skip
    folder = tmp_path_factory.mktemp("vocabulary") / "vocabulary"
    Vocabulary(folder, added)
    return folder / "tokenizer.json"


class Published:
    """A model with the published vocabulary, and their processor of the same."""

    def __init__(self, folder: Path, vocabulary: Path, every: int, template: str | None) -> None:
        generate(
            folder / "random.gguf",
            preset="moss-diarize-vocab",
            type="bf16",
            hyperparameters={"llm.hidden_size": 32, "llm.max_position_embeddings": 1 << 18, "enc.marker_seconds": every,
                             "enc.d_model": 32, "enc.encoder_layers": 1, "llm.num_layers": 1, "audio_token_id": 151671},
        )  # fmt: skip
        checkpoint = folder / "checkpoint"
        write_checkpoint(checkpoint, folder / "random.gguf", "hf")
        (checkpoint / "tokenizer.json").write_bytes(vocabulary.read_bytes())
        if template is not None:
            (checkpoint / "chat_template.jinja").write_text(template, encoding="utf-8")
        convert(checkpoint, folder / "model.gguf")
        self.model = native.NativeModel(folder / "model.gguf")
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(checkpoint / "tokenizer.json"))
        self.processor = processing.MossTranscribeDiarizeProcessor(
            features.MossTranscribeDiarizeFeatureExtractor(), tokenizer, time_marker_every_seconds=every,
            chat_template=template,
        )  # fmt: skip

    def theirs(self, text: str, n_audio: int) -> list[int]:
        """The ids of a prompt of so many audio rows."""
        audio = self.processor.replace_audio_token({"num_audio_tokens": [n_audio]}, 0)
        ids = self.processor.tokenizer(text.replace("<|audio_pad|>", audio, 1))["input_ids"]
        return [ref.AUDIO if token == 151671 else token for token in ids]


@pytest.fixture(scope="module", params=[2, 5])
def published(request: pytest.FixtureRequest, vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published(tmp_path_factory.mktemp("published"), vocabulary, request.param, TEMPLATE)


@pytest.mark.parametrize("seconds", SECONDS)
def test_prompts_are_their_processor_s_token_by_token(published: Published, seconds: float) -> None:
    samples = make_tones(seconds)
    for keywords in CONTEXTS:
        found = published.processor.apply_transcription_request(
            samples, keywords=keywords or None, processor_kwargs={"return_tensors": "pt"}
        )
        wanted = [ref.AUDIO if token == 151671 else token for token in found["input_ids"][0].tolist()]
        n_rows = published.model.row_count(-(-len(samples) // 160))
        assert published.model.prompt(n_rows, context=", ".join(keywords) or None) == wanted


def test_time_markers_are_theirs_up_to_three_hours(published: Published) -> None:
    text = published.processor.apply_transcription_request(np.zeros(1600, np.float32), tokenize=False)
    text = text if isinstance(text, str) else text[0]
    counts = [*range(1, 130), *range(24, 3 * 45000, 1871), *range(749, 3 * 45000, 6250), 3 * 45000]
    for count in counts:
        assert published.model.prompt(count) == published.theirs(text, count), count


def test_without_a_template_the_prompt_is_the_published_one(vocabulary: Path, tmp_path: Path) -> None:
    found = Published(tmp_path, vocabulary, 5, None)
    text = (
        f"<|im_start|>user\n<|audio_start|><|audio_pad|><|audio_end|>\n{ref.INSTRUCTION}{{}}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert found.model.prompt(777) == found.theirs(text.format(""), 777)
    assert found.model.prompt(3, context="Zwickau") == found.theirs(text.format("热词提示：Zwickau"), 3)
