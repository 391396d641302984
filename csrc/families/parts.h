// The parts that models are put together of, loaded from a file in which their sizes and weights may have any names.
#pragma once

#include "nn/model.h"

#include <string>
#include <utility>
#include <vector>

namespace pcr {

// Reads a file's sizes, whose keys begin with a family's prefix; refuses what no model has.
class Sizes {
public:
    Sizes(const GgufFile & file_, std::string prefix_) : file(file_), prefix(std::move(prefix_)) {}

    std::string key(const char * name) const { return prefix + name; }
    bool        has(const char * name) const { return file.has(key(name).c_str()); }

    int32_t width(const char * name) const { return file.positive(key(name).c_str(), max_width); }
    int32_t layers(const char * name) const { return file.positive(key(name).c_str(), 1 << 10); }
    int32_t at_most(const char * name, int32_t max) const { return file.positive(key(name).c_str(), max); }
    int32_t at_most(const char * name, int32_t max, int32_t otherwise) const {
        return has(name) ? at_most(name, max) : otherwise;
    }
    int32_t zero_or(const char * name, int32_t max) const { return file.token_id(key(name).c_str(), max + 1); }
    float   number(const char * name) const { return file.number(key(name).c_str()); }

    // Far above any model, low enough that products of two fit in 63 bits and that a broken file is refused by name.
    static constexpr int32_t max_width = 1 << 16;

    const GgufFile & file;

private:
    const std::string prefix;
};

// The names of Qwen3-Omni's audio tower, without ".weight" and ".bias"; those of a layer stand behind "BLOCKn.".
struct AudioTowerNames {
    const char *conv, *conv_out, *block, *attn_norm, *q, *k, *v, *o, *ffn_norm, *fc1, *fc2, *ln_post, *proj1, *proj2;
};

// What a file says about an audio tower.
struct AudioTowerSizes {
    int32_t n_mels, n_layers, d_model, n_heads, ffn_dim, conv_channels, output_dim;
    int32_t n_window, n_window_infer, max_positions;
    float   norm_eps;
};
EncoderWeights load_audio_tower(WeightStore & store, const AudioTowerSizes & sizes, const AudioTowerNames & names);

// The names of Whisper's, likewise; the table of positions with its ".weight".
struct WhisperNames {
    const char *conv, *positions, *block, *attn_norm, *q, *k, *v, *o, *ffn_norm, *fc1, *fc2, *ln_post;
};

struct WhisperSizes {
    int32_t n_mels, n_layers, d_model, n_heads, ffn_dim, max_positions;
    int32_t merge;  // rows that are joined to one
    float   norm_eps;
};
EncoderWeights load_whisper(WeightStore & store, const WhisperSizes & sizes, const WhisperNames & names);

// The names of Qwen3, likewise.
struct DecoderNames {
    const char *embed, *head, *block, *attn_norm, *q, *k, *v, *o, *q_norm, *k_norm, *ffn_norm, *gate, *up, *down,
        *final_norm;
};

struct DecoderSizes {
    int32_t hidden, n_layers, n_heads, n_kv_heads, head_dim, ffn_dim, vocab, max_positions;
    float   rope_theta, norm_eps;
    bool    tied;  // the embedding is the head too
};
DecoderWeights load_decoder(WeightStore & store, const DecoderSizes & sizes, const DecoderNames & names);

// The spectrogram, of the file's tables where it has some. What its metadata below the prefix say about it must be what
// is computed.
LogMel load_log_mel(WeightStore & store, const std::string & prefix, int32_t n_mels);

// Byte-level BPE.
Tokenizer load_tokenizer(const GgufFile & file, int32_t vocab);

// Control tokens by name, of a tokenizer that stays where it is.
class ControlTokens {
public:
    explicit ControlTokens(const Tokenizer & tokenizer_) : tokenizer(tokenizer_) {}

    // Looks one up: by its name in the vocabulary, or else, since converters may leave the names of control tokens out of
    // a vocabulary, where the published one has it.
    int32_t find(const char * name, int32_t published);
    // The same, unless the file has a key for it.
    int32_t find(const char * name, int32_t published, const Sizes & sizes, const char * key);

    // Tokens of a text in which those that were looked up stand by name.
    std::vector<int32_t> encode(const std::string & text) const;

private:
    int32_t add(const char * name, int32_t id);

    const Tokenizer &                            tokenizer;
    std::vector<std::pair<std::string, int32_t>> known;
};

}  // namespace pcr
