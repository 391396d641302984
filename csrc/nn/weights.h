// The weights of a model's parts, where the device can read them. Shapes are ggml's, fastest dimension first.
#pragma once

#include "ggml.h"

#include <cstdint>
#include <vector>

namespace pcr {

struct Norm {
    ggml_tensor * weight = nullptr;  // [n]
    ggml_tensor * bias   = nullptr;  // [n], or none for RMSNorm
};

struct Linear {
    ggml_tensor * weight = nullptr;  // [in, out] in ggml's order: rows of "in" values
    ggml_tensor * bias   = nullptr;  // [out] or none
};

struct Conv {
    ggml_tensor *         weight = nullptr;  // [3, 3, in, out] with time fastest
    ggml_tensor *         bias   = nullptr;  // [out]
    std::vector<uint32_t> packed;            // for our kernels
};

// Rows that the conv stem makes of frames: three convolutions of kernel 3, stride 2, padding 1.
constexpr int64_t conv_rows(int64_t n_frames) {
    for (int i = 0; i < 3; i++) {
        n_frames = n_frames > 0 ? (n_frames - 1) / 2 + 1 : 0;
    }
    return n_frames;
}

struct EncoderLayer {
    Norm   attn_norm, ffn_norm;
    Linear q, k, v, o, fc1, fc2;
};

// Qwen3-Omni's: two-dimensional convolutions over chunks of a second, attention within windows of chunks, a projection.
// Whisper's: two one-dimensional convolutions and attention over whole windows of 30 s; `merge` rows in succession are
// joined to one. Its chunks are what becomes one joined row.
enum class Tower { qwen3_omni, whisper };

// An audio tower.
struct EncoderWeights {
    Tower   tower;
    int32_t n_mels, n_layers, d_model, n_heads, ffn_dim, conv_channels, output_dim;
    float   norm_eps;
    int32_t chunk_frames;    // log-mel frames per chunk of the conv stem
    int32_t chunk_rows;      // audio rows that a full chunk gives
    int32_t window_chunks;   // chunks whose rows attend to each other
    int32_t conv_freq;       // mel bins left after the conv stem
    bool    pads_short;      // a clip shorter than a chunk is padded to it, as every last chunk is
    int32_t merge = 1;       // rows of d_model that make an audio row

    Conv                      conv[3];      // Whisper's: two of them, [3, in, out]
    Linear                    conv_out;     // columns (channel, freq), freq fastest
    ggml_tensor *             positions;    // [d_model, rows that have one]
    std::vector<EncoderLayer> layers;
    Norm                      ln_post;
    Linear                    proj1, proj2;

    // Audio rows of so many log-mel frames.
    int64_t rows(int64_t n_frames) const {
        const int64_t rest = n_frames % chunk_frames;
        return n_frames / chunk_frames * chunk_rows + (tower == Tower::whisper ? rest > 0 : conv_rows(rest));
    }
    // Columns of a row that went through so many layers; negative: of an audio row.
    int64_t columns(int32_t depth) const { return depth < 0 ? output_dim : int64_t(merge) * d_model; }
    int64_t window_frames() const { return int64_t(chunk_frames) * window_chunks; }
    int64_t window_rows() const { return int64_t(chunk_rows) * window_chunks; }
    // Frames of the chunks of a clip that has so many.
    int64_t chunk_of(int64_t n_frames) const {
        return !pads_short && n_frames < chunk_frames ? n_frames : chunk_frames;
    }
};

// Between the encoder and the decoder: a gated MLP; an MLP with SiLU and a LayerNorm behind it; or nothing.
struct ProjectorWeights {
    Linear gate, up, down;
    Linear fc1, fc2;
    Norm   norm;
    float  norm_eps = 0.0f;

    bool    empty() const { return !gate.weight && !fc1.weight; }
    int64_t input_dim() const { return (gate.weight ? gate : fc1).weight->ne[0]; }
};

struct DecoderLayer {
    Norm   attn_norm, ffn_norm, q_norm, k_norm;
    Linear q, k, v, o, gate, up, down;
};

// Qwen3.
struct DecoderWeights {
    int32_t hidden, n_layers, n_heads, n_kv_heads, head_dim, ffn_dim, vocab, max_positions;
    float   rope_theta, norm_eps;

    ggml_tensor *             embed;  // [hidden, vocab]
    Linear                    head;   // [hidden, vocab]: embed when tied
    std::vector<DecoderLayer> layers;
    Norm                      final_norm;

    int64_t kv_dim() const { return int64_t(n_kv_heads) * head_dim; }
};

}  // namespace pcr
