#include "families/moss_transcribe.h"

#include <cmath>

namespace pcr::moss_transcribe {

namespace {

// Bounds on what metadata may claim. Far above any model of this kind, low enough that products of two fit in 63 bits
// and that a broken file is refused by name.
constexpr int32_t max_width  = 1 << 16;
constexpr int32_t max_layers = 1 << 10;
constexpr int32_t max_vocab  = 1 << 22;

std::string key(const char * name) {
    return std::string(architecture) + "." + name;
}

// Whisper's table: d/2 timescales, log-spaced from 1 to 10000; sines first, cosines behind.
ggml_tensor * make_positions(WeightStore & store, const EncoderWeights & encoder) {
    const int64_t      d = encoder.d_model, rows = encoder.chunk_rows, half = d / 2;
    std::vector<float> table(static_cast<size_t>(d * rows));
    const double       step = half > 1 ? std::log(10000.0) / static_cast<double>(half - 1) : 0.0;
    for (int64_t t = 0; t < rows; t++) {
        for (int64_t i = 0; i < half; i++) {
            // transformers rounds the timescale and the angle to float32 before it takes the sine.
            const float scale                            = std::exp(static_cast<float>(-step) * static_cast<float>(i));
            const float angle                            = static_cast<float>(t) * scale;
            table[static_cast<size_t>(t * d + i)]        = std::sin(angle);
            table[static_cast<size_t>(t * d + half + i)] = std::cos(angle);
        }
    }
    return store.table(table, d, rows);
}

}  // namespace

EncoderWeights load_encoder(WeightStore & store) {
    EncoderWeights e{};
    e.n_mels        = store.file.positive(key("enc.num_mel_bins").c_str(), 1024);
    e.n_layers      = store.file.positive(key("enc.encoder_layers").c_str(), max_layers);
    e.d_model       = store.file.positive(key("enc.d_model").c_str(), max_width);
    e.n_heads       = store.file.positive(key("enc.encoder_attention_heads").c_str(), max_width);
    e.ffn_dim       = store.file.positive(key("enc.encoder_ffn_dim").c_str(), max_width);
    e.conv_channels = store.file.positive(key("enc.downsample_hidden_size").c_str(), max_width);
    e.output_dim    = store.file.positive(key("enc.output_dim").c_str(), max_width);
    e.adapter_dim   = store.file.positive(key("adapter.hidden_size").c_str(), max_width);
    e.norm_eps      = store.file.number(key("enc.layer_norm_eps").c_str());

    const int32_t n_window       = store.file.positive(key("enc.n_window").c_str(), 1 << 14);
    const int32_t n_window_infer = store.file.positive(key("enc.n_window_infer").c_str(), 1 << 20);
    const int32_t max_positions  = store.file.positive(key("enc.max_source_positions").c_str(), 1 << 24);
    e.chunk_frames               = 2 * n_window;
    e.chunk_rows                 = static_cast<int32_t>(conv_rows(e.chunk_frames));
    e.window_chunks              = n_window_infer / e.chunk_frames;
    e.conv_freq                  = static_cast<int32_t>(conv_rows(e.n_mels));
    if (n_window_infer % e.chunk_frames != 0) {
        throw Error(PCR_ERROR_FORMAT, format("enc.n_window_infer is %d, no multiple of 2 * enc.n_window = %d",
                                             n_window_infer, e.chunk_frames));
    }
    if (e.chunk_rows > max_positions) {
        throw Error(PCR_ERROR_FORMAT,
                    format("a chunk of %d rows exceeds enc.max_source_positions = %d", e.chunk_rows, max_positions));
    }
    if (e.d_model % e.n_heads != 0 || e.d_model % 2 != 0) {
        throw Error(PCR_ERROR_FORMAT,
                    format("enc.d_model is %d: it must be even and a multiple of %d heads", e.d_model, e.n_heads));
    }

    for (int i = 0; i < 3; i++) {
        e.conv[i] = store.conv("enc.conv" + std::to_string(i + 1), i == 0 ? 1 : e.conv_channels, e.conv_channels);
    }
    e.conv_out = store.linear("enc.conv_out", int64_t(e.conv_channels) * e.conv_freq, e.d_model, false);
    e.layers.resize(static_cast<size_t>(e.n_layers));
    for (int i = 0; i < e.n_layers; i++) {
        EncoderLayer &    layer = e.layers[static_cast<size_t>(i)];
        const std::string block = "enc.blk." + std::to_string(i) + ".";
        layer.attn_norm         = store.norm(block + "attn_norm", e.d_model, true);
        layer.ffn_norm          = store.norm(block + "ffn_norm", e.d_model, true);
        layer.q                 = store.linear(block + "attn.q", e.d_model, e.d_model, true);
        layer.k                 = store.linear(block + "attn.k", e.d_model, e.d_model, true);
        layer.v                 = store.linear(block + "attn.v", e.d_model, e.d_model, true);
        layer.o                 = store.linear(block + "attn.o", e.d_model, e.d_model, true);
        layer.fc1               = store.linear(block + "ffn.fc1", e.d_model, e.ffn_dim, true);
        layer.fc2               = store.linear(block + "ffn.fc2", e.ffn_dim, e.d_model, true);
    }
    e.ln_post   = store.norm("enc.ln_post", e.d_model, true);
    e.proj1     = store.linear("enc.proj1", e.d_model, e.d_model, true);
    e.proj2     = store.linear("enc.proj2", e.d_model, e.output_dim, true);
    e.positions = make_positions(store, e);
    return e;
}

DecoderWeights load_decoder(WeightStore & store, EncoderWeights & encoder) {
    DecoderWeights d{};
    d.hidden        = store.file.positive(key("llm.hidden_size").c_str(), max_width);
    d.n_layers      = store.file.positive(key("llm.num_layers").c_str(), max_layers);
    d.n_heads       = store.file.positive(key("llm.num_heads").c_str(), max_width);
    d.n_kv_heads    = store.file.positive(key("llm.num_kv_heads").c_str(), max_width);
    d.head_dim      = store.file.positive(key("llm.head_dim").c_str(), 512);
    d.ffn_dim       = store.file.positive(key("llm.intermediate_size").c_str(), max_width);
    d.vocab         = store.file.positive(key("llm.vocab_size").c_str(), max_vocab);
    d.max_positions = store.file.positive(key("llm.max_position_embeddings").c_str(), 1 << 24);
    d.rope_theta    = store.file.number(key("llm.rope_theta").c_str());
    d.norm_eps      = store.file.number(key("llm.rms_norm_eps").c_str());
    if (d.n_heads % d.n_kv_heads != 0 || int64_t(d.n_heads) * d.head_dim > max_width) {
        throw Error(PCR_ERROR_FORMAT, format("llm.num_heads is %d: it must be a multiple of llm.num_kv_heads = %d, and "
                                             "times llm.head_dim = %d at most %d",
                                             d.n_heads, d.n_kv_heads, d.head_dim, max_width));
    }
    if (d.head_dim % 2 != 0) {
        throw Error(PCR_ERROR_FORMAT, format("llm.head_dim is %d: rotary embedding needs an even one", d.head_dim));
    }

    d.embed             = store.matrix("llm.embed.weight", d.hidden, d.vocab);
    d.head.weight       = store.file.boolean(key("llm.tied_embeddings").c_str())
                              ? d.embed
                              : store.matrix("llm.lm_head.weight", d.hidden, d.vocab);
    const int64_t q_dim = int64_t(d.n_heads) * d.head_dim;
    d.layers.resize(static_cast<size_t>(d.n_layers));
    for (int i = 0; i < d.n_layers; i++) {
        DecoderLayer &    layer = d.layers[static_cast<size_t>(i)];
        const std::string block = "llm.blk." + std::to_string(i) + ".";
        layer.attn_norm         = store.norm(block + "attn_norm", d.hidden, false);
        layer.ffn_norm          = store.norm(block + "ffn_norm", d.hidden, false);
        layer.q_norm            = store.norm(block + "attn.q_norm", d.head_dim, false);
        layer.k_norm            = store.norm(block + "attn.k_norm", d.head_dim, false);
        layer.q                 = store.linear(block + "attn.q", d.hidden, q_dim, false);
        layer.k                 = store.linear(block + "attn.k", d.hidden, d.kv_dim(), false);
        layer.v                 = store.linear(block + "attn.v", d.hidden, d.kv_dim(), false);
        layer.o                 = store.linear(block + "attn.o", q_dim, d.hidden, false);
        layer.gate              = store.linear(block + "ffn.gate", d.hidden, d.ffn_dim, false);
        layer.up                = store.linear(block + "ffn.up", d.hidden, d.ffn_dim, false);
        layer.down              = store.linear(block + "ffn.down", d.ffn_dim, d.hidden, false);
    }
    d.final_norm = store.norm("llm.final_norm", d.hidden, false);

    encoder.gate = store.linear("adapter.gate", encoder.output_dim, encoder.adapter_dim, false);
    encoder.up   = store.linear("adapter.up", encoder.output_dim, encoder.adapter_dim, false);
    encoder.down = store.linear("adapter.down", encoder.adapter_dim, d.hidden, false);
    return d;
}

LogMel load_front_end(WeightStore & store, const EncoderWeights & encoder) {
    const int64_t n_mels = encoder.n_mels;
    // Converters describe the front end by keys of several names, or not at all. What they say must be what is computed.
    const std::pair<const char *, int64_t> front_end[] = {
        {"n_fft", LogMel::n_fft},    {"win_length", LogMel::n_fft}, {"window_size", LogMel::n_fft},
        {"hop_length", LogMel::hop}, {"hop", LogMel::hop},          {"sample_rate", LogMel::sample_rate},
        {"n_mels", n_mels},          {"num_mel_bins", n_mels},      {"sampling_rate", LogMel::sample_rate},
        {"n_mel", n_mels},           {"feature_size", n_mels},
    };
    for (const auto & [suffix, value] : front_end) {
        store.file.require(key(""), suffix, value);
    }
    const auto values = [&](const char * name, std::initializer_list<int64_t> shape) {
        return store.file.find(name) ? store.values(name, shape) : nullptr;
    };
    return {encoder.n_mels, values("audio.mel_filters", {n_mels, LogMel::n_bins}),
            values("audio.mel_window", {LogMel::n_fft})};
}

Tokenizer load_tokenizer(const GgufFile & file, const DecoderWeights & decoder) {
    if (file.string("tokenizer.ggml.model", "") != "gpt2") {
        throw Error(PCR_ERROR_UNSUPPORTED, "the tokenizer is '" + file.string("tokenizer.ggml.model", "") +
                                               "': this runtime reads byte-level BPE ('gpt2')");
    }
    const size_t count = file.n_strings("tokenizer.ggml.tokens");
    if (count > static_cast<size_t>(decoder.vocab)) {
        throw Error(PCR_ERROR_FORMAT,
                    format("the vocabulary has %zu tokens, llm.vocab_size is %d", count, decoder.vocab));
    }
    return {file.strings("tokenizer.ggml.tokens"), file.strings("tokenizer.ggml.merges")};
}

Prompt load_prompt(const GgufFile & file, const DecoderWeights & decoder, Tokenizer & tokenizer) {
    const auto special = [&](const char * name_) {
        const int32_t id = file.token_id(key(name_).c_str(), decoder.vocab);
        if (id >= tokenizer.size()) {
            throw Error(PCR_ERROR_FORMAT,
                        format("%s is %d, beyond the vocabulary's %d tokens", name_, id, tokenizer.size()));
        }
        return id;
    };
    const int32_t bos = special("bos_token_id"), start = special("start_token_id");
    const int32_t audio_start = special("audio_start_id"), audio_end = special("audio_end_id");
    const int32_t eos_token = special("eos_token_id");
    tokenizer.set_special({bos, start, eos_token, audio_start, audio_end});

    // <|im_start|>user\n<audio_start> ... <audio_end><|im_end|>\n<|im_start|>assistant\n
    const auto append = [](std::vector<int32_t> & to, const std::vector<int32_t> & from) {
        to.insert(to.end(), from.begin(), from.end());
    };
    const std::vector<int32_t> newline = tokenizer.word("\n");
    Prompt                     prompt{{start}, {audio_end, eos_token}, eos_token};
    append(prompt.before, tokenizer.word("user"));
    append(prompt.before, newline);
    append(prompt.before, {audio_start});
    append(prompt.after, newline);
    append(prompt.after, {start});
    append(prompt.after, tokenizer.word("assistant"));
    append(prompt.after, newline);
    return prompt;
}

}  // namespace pcr::moss_transcribe
