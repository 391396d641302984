#include "families/parts.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace pcr {

namespace {

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

std::string in_block(const char * block, int i) {
    return block + std::to_string(i) + ".";
}

void require_heads(const EncoderWeights & e) {
    if (e.d_model % e.n_heads != 0 || e.d_model % 2 != 0) {
        throw Error(PCR_ERROR_FORMAT, format("the audio tower is %d wide: that must be even and a multiple of %d heads",
                                             e.d_model, e.n_heads));
    }
}

template <typename Names>
void load_layers(WeightStore & store, const Names & names, bool key_bias, EncoderWeights & e) {
    e.layers.resize(static_cast<size_t>(e.n_layers));
    for (int i = 0; i < e.n_layers; i++) {
        EncoderLayer &    layer = e.layers[static_cast<size_t>(i)];
        const std::string block = in_block(names.block, i);
        layer.attn_norm         = store.norm(block + names.attn_norm, e.d_model, true);
        layer.ffn_norm          = store.norm(block + names.ffn_norm, e.d_model, true);
        layer.q                 = store.linear(block + names.q, e.d_model, e.d_model, true);
        layer.k                 = store.linear(block + names.k, e.d_model, e.d_model, key_bias);
        layer.v                 = store.linear(block + names.v, e.d_model, e.d_model, true);
        layer.o                 = store.linear(block + names.o, e.d_model, e.d_model, true);
        layer.fc1               = store.linear(block + names.fc1, e.d_model, e.ffn_dim, true);
        layer.fc2               = store.linear(block + names.fc2, e.ffn_dim, e.d_model, true);
    }
}

}  // namespace

EncoderWeights load_audio_tower(WeightStore & store, const AudioTowerSizes & sizes, const AudioTowerNames & names) {
    EncoderWeights e{};
    e.tower         = Tower::qwen3_omni;
    e.n_mels        = sizes.n_mels;
    e.n_layers      = sizes.n_layers;
    e.d_model       = sizes.d_model;
    e.n_heads       = sizes.n_heads;
    e.ffn_dim       = sizes.ffn_dim;
    e.conv_channels = sizes.conv_channels;
    e.output_dim    = sizes.output_dim;
    e.norm_eps      = sizes.norm_eps;
    e.chunk_frames  = 2 * sizes.n_window;
    e.chunk_rows    = static_cast<int32_t>(conv_rows(e.chunk_frames));
    e.window_chunks = sizes.n_window_infer / e.chunk_frames;
    e.conv_freq     = static_cast<int32_t>(conv_rows(e.n_mels));
    if (sizes.n_window_infer % e.chunk_frames != 0) {
        throw Error(PCR_ERROR_FORMAT, format("n_window_infer is %d, no multiple of 2 * n_window = %d",
                                             sizes.n_window_infer, e.chunk_frames));
    }
    if (e.chunk_rows > sizes.max_positions) {
        throw Error(PCR_ERROR_FORMAT, format("a chunk of %d rows exceeds the audio tower's %d positions", e.chunk_rows,
                                             sizes.max_positions));
    }
    require_heads(e);

    for (int i = 0; i < 3; i++) {
        e.conv[i] = store.conv(names.conv + std::to_string(i + 1), i == 0 ? 1 : e.conv_channels, e.conv_channels);
    }
    e.conv_out = store.linear(names.conv_out, int64_t(e.conv_channels) * e.conv_freq, e.d_model, false);
    load_layers(store, names, true, e);
    e.ln_post   = store.norm(names.ln_post, e.d_model, true);
    e.proj1     = store.linear(names.proj1, e.d_model, e.d_model, true);
    e.proj2     = store.linear(names.proj2, e.d_model, e.output_dim, true);
    e.positions = make_positions(store, e);
    return e;
}

EncoderWeights load_whisper(WeightStore & store, const WhisperSizes & sizes, const WhisperNames & names) {
    EncoderWeights e{};
    e.tower         = Tower::whisper;
    e.n_mels        = sizes.n_mels;
    e.n_layers      = sizes.n_layers;
    e.d_model       = sizes.d_model;
    e.n_heads       = sizes.n_heads;
    e.ffn_dim       = sizes.ffn_dim;
    e.conv_channels = sizes.d_model;
    e.output_dim    = sizes.merge * sizes.d_model;
    e.norm_eps      = sizes.norm_eps;
    e.merge         = sizes.merge;
    e.chunk_frames  = 2 * sizes.merge;  // the second convolution's stride is 2
    e.chunk_rows    = 1;
    e.window_chunks = sizes.max_positions / sizes.merge;
    if (sizes.max_positions % sizes.merge != 0) {
        throw Error(PCR_ERROR_FORMAT, format("the audio tower has %d positions, no multiple of the %d that are joined",
                                             sizes.max_positions, sizes.merge));
    }
    require_heads(e);

    e.conv[0] = store.conv_1d(names.conv + std::string("1"), e.n_mels, e.d_model);
    e.conv[1] = store.conv_1d(names.conv + std::string("2"), e.d_model, e.d_model);
    load_layers(store, names, false, e);
    e.ln_post = store.norm(names.ln_post, e.d_model, true);
    e.positions =
        store.table(store.unpacked(names.positions, e.d_model, sizes.max_positions), e.d_model, sizes.max_positions);
    return e;
}

DecoderWeights load_decoder(WeightStore & store, const DecoderSizes & sizes, const DecoderNames & names) {
    DecoderWeights d{};
    d.hidden        = sizes.hidden;
    d.n_layers      = sizes.n_layers;
    d.n_heads       = sizes.n_heads;
    d.n_kv_heads    = sizes.n_kv_heads;
    d.head_dim      = sizes.head_dim;
    d.ffn_dim       = sizes.ffn_dim;
    d.vocab         = sizes.vocab;
    d.max_positions = sizes.max_positions;
    d.rope_theta    = sizes.rope_theta;
    d.norm_eps      = sizes.norm_eps;
    if (d.n_heads % d.n_kv_heads != 0 || int64_t(d.n_heads) * d.head_dim > Sizes::max_width) {
        throw Error(PCR_ERROR_FORMAT,
                    format("the decoder has %d heads: that must be a multiple of its %d key and value "
                           "heads, and times the head's size %d at most %d",
                           d.n_heads, d.n_kv_heads, d.head_dim, Sizes::max_width));
    }
    if (d.head_dim % 2 != 0) {
        throw Error(PCR_ERROR_FORMAT,
                    format("the decoder's heads are %d wide: rotary embedding needs an even number", d.head_dim));
    }

    d.embed             = store.matrix(names.embed + std::string(".weight"), d.hidden, d.vocab);
    d.head.weight       = sizes.tied ? d.embed : store.matrix(names.head + std::string(".weight"), d.hidden, d.vocab);
    const int64_t q_dim = int64_t(d.n_heads) * d.head_dim;
    d.layers.resize(static_cast<size_t>(d.n_layers));
    for (int i = 0; i < d.n_layers; i++) {
        DecoderLayer &    layer = d.layers[static_cast<size_t>(i)];
        const std::string block = in_block(names.block, i);
        layer.attn_norm         = store.norm(block + names.attn_norm, d.hidden, false);
        layer.ffn_norm          = store.norm(block + names.ffn_norm, d.hidden, false);
        layer.q_norm            = store.norm(block + names.q_norm, d.head_dim, false);
        layer.k_norm            = store.norm(block + names.k_norm, d.head_dim, false);
        layer.q                 = store.linear(block + names.q, d.hidden, q_dim, false);
        layer.k                 = store.linear(block + names.k, d.hidden, d.kv_dim(), false);
        layer.v                 = store.linear(block + names.v, d.hidden, d.kv_dim(), false);
        layer.o                 = store.linear(block + names.o, q_dim, d.hidden, false);
        layer.gate              = store.linear(block + names.gate, d.hidden, d.ffn_dim, false);
        layer.up                = store.linear(block + names.up, d.hidden, d.ffn_dim, false);
        layer.down              = store.linear(block + names.down, d.ffn_dim, d.hidden, false);
    }
    d.final_norm = store.norm(names.final_norm, d.hidden, false);
    return d;
}

LogMel load_log_mel(WeightStore & store, const std::string & prefix, int32_t n_mels) {
    // Converters describe the front end by keys of several names, or not at all.
    const std::pair<const char *, int64_t> front_end[] = {
        {"n_fft", LogMel::n_fft},    {"win_length", LogMel::n_fft}, {"window_size", LogMel::n_fft},
        {"hop_length", LogMel::hop}, {"hop", LogMel::hop},          {"sample_rate", LogMel::sample_rate},
        {"n_mels", n_mels},          {"num_mel_bins", n_mels},      {"sampling_rate", LogMel::sample_rate},
        {"n_mel", n_mels},           {"feature_size", n_mels},
    };
    for (const auto & [suffix, value] : front_end) {
        store.file.require(prefix, suffix, value);
    }
    const auto values = [&](const char * name, std::initializer_list<int64_t> shape) {
        return store.file.find(name) ? store.values(name, shape) : nullptr;
    };
    return {n_mels, values("audio.mel_filters", {n_mels, LogMel::n_bins}), values("audio.mel_window", {LogMel::n_fft})};
}

Tokenizer load_tokenizer(const GgufFile & file, int32_t vocab) {
    const std::string kind = file.string("tokenizer.ggml.model", "gpt2");
    if (kind != "gpt2") {
        throw Error(PCR_ERROR_UNSUPPORTED,
                    "the tokenizer is '" + kind + "': this runtime reads byte-level BPE ('gpt2')");
    }
    const size_t count = file.n_strings("tokenizer.ggml.tokens");
    if (count > static_cast<size_t>(vocab)) {
        throw Error(PCR_ERROR_FORMAT,
                    format("the vocabulary has %zu tokens, the model's size of it is %d", count, vocab));
    }
    return {file.strings("tokenizer.ggml.tokens"), file.strings("tokenizer.ggml.merges")};
}

int32_t ControlTokens::find(const char * name, int32_t published) {
    const int32_t id = tokenizer.named(name);
    return add(name, id < 0 ? published : id);
}

int32_t ControlTokens::find(const char * name, int32_t published, const Sizes & sizes, const char * key) {
    return sizes.has(key) ? add(name, sizes.file.token_id(sizes.key(key).c_str(), tokenizer.size()))
                          : find(name, published);
}

int32_t ControlTokens::add(const char * name, int32_t id) {
    if (id >= tokenizer.size()) {
        throw Error(PCR_ERROR_FORMAT, format("the vocabulary has no token %s", name));
    }
    known.emplace_back(name, id);
    return id;
}

std::vector<int32_t> ControlTokens::encode(const std::string & text) const {
    std::vector<int32_t> tokens;
    size_t               plain = 0;  // where text begins that is not encoded yet
    const auto           flush = [&](size_t end) {
        const std::vector<int32_t> more = tokenizer.encode(text.substr(plain, end - plain));
        tokens.insert(tokens.end(), more.begin(), more.end());
    };
    for (size_t at = 0; at < text.size();) {
        const auto token = std::find_if(known.begin(), known.end(), [&](const auto & one) {
            return text.compare(at, one.first.size(), one.first) == 0;
        });
        if (token == known.end()) {
            at++;
            continue;
        }
        flush(at);
        tokens.push_back(token->second);
        at += token->first.size();
        plain = at;
    }
    flush(text.size());
    return tokens;
}

}  // namespace pcr
