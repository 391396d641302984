// Keys and values of the decoder's layers, for several sequences.
#pragma once

#include "device/graph.h"
#include "ops/ops.h"

#include <vector>

namespace pcr {

// Each sequence has `capacity` rows of every layer, those of sequence s from s * capacity on; there is memory for the
// sequences up to the highest one that was used. The cache owns its layout: who writes gives rows, who reads gets views
// of one shape.
class KvCache {
public:
    KvCache(const DecoderWeights & weights, const Ops & ops, Compute & compute, int32_t n_sequences);

    // Makes room for n_positions rows of a sequence, and of all others. What is cached stays. True where it has moved, so
    // that graphs that point at it are void. An Error(PCR_ERROR_AUDIO) beyond the model's positions.
    bool reserve(int32_t sequence, int64_t n_positions);

    int32_t n_sequences() const { return static_cast<int32_t>(lengths.size()); }
    int64_t capacity() const { return rows; }
    int64_t length(int32_t sequence) const { return lengths[static_cast<size_t>(sequence)]; }
    void    extend(int32_t sequence, int64_t n_rows) { lengths[static_cast<size_t>(sequence)] += n_rows; }
    // Forgets what a sequence holds from position n_past on.
    void rewind(int32_t sequence, int64_t n_past);

    size_t bytes() const { return buffer ? ggml_backend_buffer_get_size(buffer.get()) : 0; }

    // All rows of a layer's keys or values: [head_dim, rows of all sequences, n_kv_heads].
    struct Layer {
        ggml_tensor * keys;
        ggml_tensor * values;
    };
    // Writes keys and values [head_dim, n_kv_heads, n] to the rows `places` I64 [n], and gives the layer with them. Reading
    // comes after writing: what is read are the results of the writing nodes.
    Layer write(Graph & graph, size_t layer, ggml_tensor * keys, ggml_tensor * values, ggml_tensor * places) const;

private:
    ggml_tensor * write(Graph & graph, ggml_tensor * cache, ggml_tensor * x, ggml_tensor * places) const;

    const DecoderWeights & weights;
    Compute &              compute;
    const KvLayout         layout;
    const ggml_type        type;

    std::vector<int64_t>    lengths;   // rows held, per sequence
    int64_t                 rows   = 0;    // per sequence
    int32_t                 n_held = 0;  // sequences that there is memory for
    ggml_context_ptr        context;
    ggml_backend_buffer_ptr buffer;
    std::vector<Layer>      layers;
};

}  // namespace pcr
