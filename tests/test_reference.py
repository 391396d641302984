"""The reference in NumPy agrees with the model's PyTorch modules, on small random models."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from pycrispasr.models import random_model

from .checkpoint import pytorch_name
from .reference import gguf_model
from .reference import model as ref

pytestmark = pytest.mark.reference

SECONDS = (0.05, 0.3, 0.99, 1, 1.01, 7.99, 8, 8.01, 30)
SHAPES = {
    "nano": {},
    "odd_heads_short_window": {
        "enc.encoder_attention_heads": 3,
        "enc.d_model": 48,
        "enc.n_window_infer": 100,
        "llm.num_heads": 3,
        "llm.num_kv_heads": 1,
    },
    "80_mels_no_gqa": {"enc.num_mel_bins": 80, "llm.num_heads": 2, "llm.num_kv_heads": 2, "llm.rope_theta": 1e4},
    "untied_two_second_window": {"llm.tied_embeddings": False, "enc.n_window_infer": 200, "llm.hidden_size": 96},
}


def clip(seconds, seed=0):
    """Speech-like noise: bands that come and go, between silence."""
    rng = np.random.default_rng(seed)
    n = round(seconds * 16000)
    time = np.arange(n) / 16000
    tones = sum(np.sin(2 * np.pi * (f * time + rng.random())) for f in rng.uniform(100, 4000, 8))
    loudness = np.maximum(0, np.sin(2 * np.pi * 1.7 * time + 1)) ** 2
    return (0.03 * tones * loudness + 0.001 * rng.standard_normal(n)).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def libraries():
    """Imports PyTorch, which takes seconds, for those that run a test of it: collecting tests does not."""
    global torch, transformers, encoder_module, encoder_config
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    encoder_module = pytest.importorskip("transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe")
    encoder_config = pytest.importorskip("transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe")


@pytest.fixture(scope="module", params=SHAPES)
def pair(request, tmp_path_factory, libraries):
    """A random model, in NumPy and in PyTorch, both in float64."""
    path = tmp_path_factory.mktemp("model") / f"{request.param}.gguf"
    random_model.generate(path, hyperparameters=SHAPES[request.param], type="f32", seed=len(request.param))
    model = gguf_model.load(path)
    return model, pytorch(model)


def pytorch(model):
    """The same weights in the transformers library's modules."""
    hp = model.hparams
    audio = encoder_config.Qwen3OmniMoeAudioEncoderConfig(
        num_mel_bins=hp.enc_num_mel_bins,
        d_model=hp.enc_d_model,
        encoder_layers=hp.enc_encoder_layers,
        encoder_attention_heads=hp.enc_encoder_attention_heads,
        encoder_ffn_dim=hp.enc_encoder_ffn_dim,
        downsample_hidden_size=hp.enc_downsample_hidden_size,
        max_source_positions=hp.enc_max_source_positions,
        n_window=hp.enc_n_window,
        n_window_infer=hp.enc_n_window_infer,
        output_dim=hp.enc_output_dim,
    )
    language = transformers.Qwen3Config(
        hidden_size=hp.llm_hidden_size,
        num_hidden_layers=hp.llm_num_layers,
        num_attention_heads=hp.llm_num_heads,
        num_key_value_heads=hp.llm_num_kv_heads,
        head_dim=hp.llm_head_dim,
        intermediate_size=hp.llm_intermediate_size,
        vocab_size=hp.llm_vocab_size,
        max_position_embeddings=hp.llm_max_position_embeddings,
        rms_norm_eps=hp.llm_rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": hp.llm_rope_theta},
        tie_word_embeddings=hp.llm_tied_embeddings,
    )
    audio._attn_implementation = language._attn_implementation = "eager"
    modules = {
        "enc": encoder_module.Qwen3OmniMoeAudioEncoder(audio),
        "llm": transformers.Qwen3Model(language),
    }
    for prefix, module in modules.items():
        state = {pytorch_name(name): torch.from_numpy(values) for name, values in named(model, prefix)}
        missing, unexpected = module.double().eval().load_state_dict(state, strict=False)
        assert not unexpected
        assert all("positional_embedding" in name for name in missing)
    adapter = {name: torch.from_numpy(model[f"adapter.{name}.weight"]) for name in ("gate", "up", "down")}
    head = "llm.embed.weight" if hp.llm_tied_embeddings else "llm.lm_head.weight"
    return SimpleNamespace(
        encoder=modules["enc"], adapter=adapter, decoder=modules["llm"], head=torch.tensor(model[head])
    )


def named(model, prefix):
    return (
        (name, values)
        for name, values in model.weights.items()
        if name.split(".")[0] == prefix and "lm_head" not in name
    )


def close(actual, expected, tolerance):
    """Equal up to `tolerance` of the expected values' root mean square."""
    expected = expected.detach().numpy() if isinstance(expected, torch.Tensor) else expected
    assert actual.shape == expected.shape
    difference = np.abs(actual - expected).max() / np.sqrt((expected.astype(np.float64) ** 2).mean())
    assert difference <= tolerance, f"{difference:.2e}"


@pytest.mark.parametrize("n_mels", [80, 128])
def test_filterbank(n_mels):
    expected = transformers.WhisperFeatureExtractor(feature_size=n_mels).mel_filters
    np.testing.assert_allclose(ref.slaney_filters(n_mels), expected, rtol=0, atol=1e-12)
    assert np.array_equal(random_model.mel_filters(n_mels), expected.astype(np.float32))


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("seconds", SECONDS)
def test_log_mel(seconds, n_mels):
    samples = clip(seconds)
    extractor = transformers.WhisperFeatureExtractor(feature_size=n_mels)
    actual = ref.log_mel(samples, n_mels)
    assert actual.shape == (n_mels, len(samples) // 160)
    # The one in NumPy keeps its spectra as complex64, the one in PyTorch works in float32 throughout.
    close(actual, extractor._np_extract_fbank_features(samples[None], "cpu")[0], 1e-5)
    close(actual, extractor._torch_extract_fbank_features(samples), 1e-3)


def test_log_mel_of_silence():
    assert np.array_equal(ref.log_mel(np.zeros(1600, np.float32), 80), np.full((80, 10), -1.5))


@pytest.mark.parametrize("seconds", SECONDS)
def test_encoder_and_adapter(pair, seconds):
    model, modules = pair
    mel = ref.log_mel(clip(seconds), model.hparams.enc_num_mel_bins)
    outputs = []  # of the layers; the input of the first is what the convolutions and positions make
    hooks = [
        layer.register_forward_hook(lambda _, x, y: outputs.append((x[0], y[0]))) for layer in modules.encoder.layers
    ]
    with torch.no_grad():
        expected = modules.encoder(torch.tensor(mel), feature_lens=torch.tensor([mel.shape[1]])).last_hidden_state
        gate, up, down = (modules.adapter[name] for name in ("gate", "up", "down"))
        rows = (torch.nn.functional.silu(expected @ gate.T) * (expected @ up.T)) @ down.T
    for hook in hooks:
        hook.remove()
    # PyTorch's position table is float32.
    close(ref.encode(model, mel, 0), outputs[0][0], 1e-6)
    for i, (_, after) in enumerate(outputs, start=1):
        close(ref.encode(model, mel, i), after, 1e-5)
    actual = ref.encode(model, mel)
    close(actual, expected, 1e-5)
    close(ref.adapt(model, actual), rows, 1e-5)


def test_decoder(pair):
    model, modules = pair
    rng = np.random.default_rng(0)
    audio = rng.standard_normal((30, model.hparams.llm_hidden_size))
    ids = ref.prompt_ids(model, len(audio))
    rows = np.concatenate([ref.embed(model, ids, audio), ref.embed(model, [7, 300, 7, 7])])
    with torch.no_grad():
        states = modules.decoder(inputs_embeds=torch.tensor(rows)[None], output_hidden_states=True, use_cache=False)
    # PyTorch's norms, rotations and softmax are float32.
    for i in range(model.hparams.llm_num_layers):  # the last of PyTorch's is after the final norm
        close(ref.decode(model, rows, n_layers=i), states.hidden_states[i][0], 1e-5)
    hidden = ref.decode(model, rows)
    close(hidden, states.last_hidden_state[0], 1e-5)
    close(ref.logits(model, hidden), states.last_hidden_state[0] @ modules.head.T, 1e-5)
    # In pieces, with a cache.
    cache = []
    pieces = [ref.decode(model, piece, cache) for piece in np.split(rows, [1, 20, len(ids), len(ids) + 1])]
    close(np.concatenate(pieces), hidden, 1e-12)


def test_greedy(pair):
    model, modules = pair
    rows = torch.tensor(ref.prompt_rows(model, clip(1.5)))
    embedding = torch.tensor(model["llm.embed.weight"])
    expected = []
    with torch.no_grad():
        for _ in range(32):
            last = modules.decoder(inputs_embeds=rows[None], use_cache=False).last_hidden_state[0, -1]
            token = int((modules.head @ last).argmax())
            if token == model.hparams.eos_token_id:
                break
            expected.append(token)
            rows = torch.cat([rows, embedding[token][None]])
    assert ref.greedy(model, clip(1.5), 32) == expected


def test_float32_is_near_float64(pair):
    model, _ = pair
    single = dataclasses.replace(model, weights={name: w.astype(np.float32) for name, w in model.weights.items()})
    rows = {m.dtype: ref.prompt_rows(m, clip(3)) for m in (model, single)}
    close(rows[single.dtype], rows[model.dtype], 1e-4)
    close(ref.decode(single, rows[single.dtype]), ref.decode(model, rows[model.dtype]), 1e-3)


def test_tokenizer(pair, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    model, _ = pair
    document = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(model.tokens)}, "merges": model.merges},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for word in ("user", "assistant", "\n", "uassist", "é", "日"):
        assert ref.tokenize(model, word) == tokenizer.encode(word).ids
        assert ref.detokenize(model, ref.tokenize(model, word)).decode() == word
    assert len(ref.tokenize(model, "assistant")) == 1
