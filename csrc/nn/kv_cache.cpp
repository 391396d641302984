#include "nn/kv_cache.h"

#include "log.h"

#include <algorithm>

namespace pcr {

namespace {

constexpr int64_t growth = 256;  // rows: a cache grows in steps of this

}  // namespace

KvCache::KvCache(const DecoderWeights & weights_, const Ops & ops, Compute & compute_, int32_t n_sequences)
    : weights(weights_),
      compute(compute_),
      layout(ops.kv_layout()),
      type(ops.kv_type()),
      lengths(static_cast<size_t>(n_sequences), 0) {}

bool KvCache::reserve(int32_t sequence, int64_t n_positions) {
    if (n_positions > weights.max_positions) {
        throw Error(PCR_ERROR_AUDIO,
                    format("%lld positions are needed, the model has %d: use shorter audio or a smaller max_new_tokens",
                           static_cast<long long>(n_positions), weights.max_positions));
    }
    if (n_positions <= rows && sequence < n_held) {
        return false;
    }
    const int64_t wanted =
        std::max(rows, std::min<int64_t>((n_positions + growth - 1) / growth * growth, weights.max_positions));
    int32_t n = std::max(n_held, 1);
    while (n <= sequence) {
        n = std::min(2 * n, n_sequences());
    }

    ggml_context_ptr   larger = new_context(2 * weights.layers.size());
    std::vector<Layer> new_layers;
    for (size_t i = 0; i < weights.layers.size(); i++) {
        ggml_tensor * keys =
            layout == KvLayout::by_row
                ? ggml_new_tensor_3d(larger.get(), type, weights.kv_dim(), wanted * n, 1)
                : ggml_new_tensor_3d(larger.get(), type, weights.head_dim, wanted * n, weights.n_kv_heads);
        new_layers.push_back({keys, ggml_dup_tensor(larger.get(), keys)});
    }
    const CollectErrors     errors;
    ggml_backend_buffer_ptr new_buffer =
        allocate(larger.get(), ggml_backend_get_default_buffer_type(compute.backend()));
    if (!new_buffer) {
        const long long all_rows = wanted * n;
        throw no_memory(compute.device,
                        format("a KV cache of %lld rows (%.0f MB)", all_rows,
                               double(all_rows * weights.kv_dim()) * 2e-6 * double(ggml_type_size(type)) *
                                   double(weights.layers.size())),
                        errors.text);
    }
    if (layout == KvLayout::by_row) {
        ggml_backend_buffer_clear(new_buffer.get(), 0);  // whole lines are read: rows that are masked times zero
    }
    std::vector<uint8_t> held;
    const auto           move = [&](const ggml_tensor * from, ggml_tensor * to, int32_t s, int64_t head) {
        held.resize(static_cast<size_t>(length(s)) * from->nb[1]);
        const size_t h = static_cast<size_t>(head), place = static_cast<size_t>(s) * from->nb[1];
        if (!held.empty()) {
            ggml_backend_tensor_get(from, held.data(), h * from->nb[2] + place * size_t(rows), held.size());
            ggml_backend_tensor_set(to, held.data(), h * to->nb[2] + place * size_t(wanted), held.size());
        }
    };
    for (size_t i = 0; i < layers.size(); i++) {
        for (int32_t s = 0; s < n_held; s++) {
            for (int64_t head = 0; head < layers[i].keys->ne[2]; head++) {
                move(layers[i].keys, new_layers[i].keys, s, head);
                move(layers[i].values, new_layers[i].values, s, head);
            }
        }
    }
    buffer  = std::move(new_buffer);
    context = std::move(larger);
    layers  = std::move(new_layers);
    rows    = wanted;
    n_held  = n;
    return true;
}

void KvCache::rewind(int32_t sequence, int64_t n_past) {
    int64_t & held = lengths[static_cast<size_t>(sequence)];
    held           = std::min(held, n_past);
}

KvCache::Layer KvCache::write(Graph & graph, size_t layer, ggml_tensor * keys, ggml_tensor * values,
                              ggml_tensor * places) const {
    return {write(graph, layers[layer].keys, keys, places), write(graph, layers[layer].values, values, places)};
}

ggml_tensor * KvCache::write(Graph & graph, ggml_tensor * cache, ggml_tensor * x, ggml_tensor * places) const {
    ggml_context * ctx = graph.ctx();
    if (layout == KvLayout::by_head) {
        return ggml_set_rows(ctx, cache, ggml_permute(ctx, x, 0, 2, 1, 3), places);
    }
    ggml_tensor * held = ggml_set_rows(ctx, cache, ggml_reshape_2d(ctx, x, x->ne[0] * x->ne[1], x->ne[2]), places);
    return ggml_view_3d(ctx, held, x->ne[0], held->ne[1], x->ne[1], held->nb[1],
                        static_cast<size_t>(x->ne[0]) * held->nb[0], 0);
}

}  // namespace pcr
