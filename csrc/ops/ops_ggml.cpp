#include "ops/ops_ggml.h"

#include <algorithm>
#include <cmath>

namespace pcr {

namespace {

// Caches are read up to a multiple of this, so that a graph serves many lengths.
constexpr int64_t cache_step = 256;

// Sequences that follow each other in tokens and in rows.
struct Block {
    int64_t token, row;   // the first ones
    int64_t n_sequences;
};

// Shapes say what is read, so a graph serves the same sequences up to a length only; a mask says the rest.
class CacheView : public KvView {
public:
    CacheView(const std::vector<KvRange> & ranges, int64_t rows_per_sequence)
        : apart(rows_per_sequence), n_tokens(static_cast<int64_t>(ranges.size())) {
        read(ranges);
    }

    bool fits(const std::vector<KvRange> & ranges) const override {
        const CacheView other(ranges, apart);
        return other.rows == rows && other.tokens == tokens && other.firsts == firsts;
    }

    void fill(const std::vector<KvRange> & ranges) override {
        if (!input->buffer) {
            return;  // no node of a shortened graph reads it
        }
        const size_t line = static_cast<size_t>(rows);
        values.resize(line * ranges.size());
        for (size_t i = 0; i < ranges.size(); i++) {
            const auto to = values.begin() + static_cast<std::ptrdiff_t>(i * line);
            std::fill_n(to, line, ggml_fp32_to_fp16(-INFINITY));
            std::fill_n(to, ranges[i].count, ggml_fp32_to_fp16(0.0f));
        }
        set(input, values.data());
    }

    std::unique_ptr<KvView> last(Graph & graph) const override {
        auto one    = std::make_unique<CacheView>(*this);
        one->tokens = one->n_tokens = 1;
        one->mask = ggml_view_2d(graph.ctx(), mask, rows, 1, mask->nb[1], size_t(n_tokens - 1) * mask->nb[1]);
        return one;
    }

    int64_t            apart;         // from one sequence's first row to the next one's
    int64_t            n_tokens;
    int64_t            tokens = 0;    // of each sequence
    int64_t            rows   = 0;    // that are read of each sequence
    std::vector<Block> blocks;
    ggml_tensor *      input = nullptr;  // F16 [rows, n_tokens]: 0 or minus infinity
    ggml_tensor *      mask  = nullptr;  // on the device once, not once for each layer's view of it

private:
    void read(const std::vector<KvRange> & ranges) {
        int64_t longest = 0;
        for (size_t i = 0; i < ranges.size(); i++) {
            longest = std::max<int64_t>(longest, ranges[i].count);
            if (i > 0 && ranges[i].first == ranges[i - 1].first) {
                continue;  // another token of this sequence
            }
            if (!firsts.empty() && ranges[i].first == firsts.back() + apart) {
                blocks.back().n_sequences++;
            } else {
                blocks.push_back({static_cast<int64_t>(i), ranges[i].first, 1});
            }
            firsts.push_back(ranges[i].first);
        }
        tokens = n_tokens / static_cast<int64_t>(firsts.size());
        rows   = std::min((longest + cache_step - 1) / cache_step * cache_step, apart);
    }

    std::vector<int64_t>     firsts;  // of each sequence
    std::vector<ggml_fp16_t> values;
};

// Windows of rows, which attend to each other within one.
class WindowView : public KvView {
public:
    explicit WindowView(const std::vector<KvRange> & ranges) {
        for (const KvRange & range : ranges) {
            if (windows.empty() || windows.back().first != range.first) {
                windows.push_back(range);
            }
        }
    }

    bool                    fits(const std::vector<KvRange> &) const override { return false; }
    void                    fill(const std::vector<KvRange> &) override {}
    std::unique_ptr<KvView> last(Graph &) const override {
        throw Error(PCR_ERROR_INTERNAL, "a window has no last token");
    }

    std::vector<KvRange> windows;
};

// seen [head_dim, tokens, n_heads, n] of queries x, keys and values: [head_dim, tokens or rows, heads, n].
ggml_tensor * attend(Graph & graph, const Compute & compute, ggml_tensor * x, ggml_tensor * k, ggml_tensor * v,
                     ggml_tensor * mask) {
    ggml_context * ctx   = graph.ctx();
    const float    scale = 1.0f / std::sqrt(static_cast<float>(x->ne[0]));
    if (mask) {
        ggml_tensor * seen = ggml_flash_attn_ext(ctx, x, k, v, mask, scale, 0.0f, 0.0f);
        ggml_prec_set_acc(seen, GGML_PREC_F32);
        if (compute.supports(seen)) {
            return seen;  // [head_dim, n_heads, tokens, n]
        }
    }
    ggml_tensor * weights = ggml_mul_mat(ctx, k, x);  // [rows, tokens, n_heads, n]
    ggml_prec_set_acc(weights, GGML_PREC_F32);
    weights            = ggml_soft_max_ext(ctx, weights, mask, scale, 0.0f);
    ggml_tensor * seen = ggml_mul_mat(ctx, ggml_cont(ctx, ggml_permute(ctx, v, 1, 0, 2, 3)), weights);
    return ggml_cont(ctx, ggml_permute(ctx, seen, 0, 2, 1, 3));
}

// The choices and their probabilities, as the device computes them.
class GraphChoosing : public Choosing {
public:
    GraphChoosing(Graph & graph, ggml_tensor * logits) {
        ggml_context * ctx   = graph.ctx();
        const int64_t  count = logits->ne[1];
        ggml_tensor *  all   = ggml_reshape_3d(ctx, ggml_soft_max(ctx, logits), 1, logits->ne[0], count);
        ids                  = ggml_argmax(ctx, logits);
        probabilities        = ggml_get_rows(ctx, all, ggml_reshape_2d(ctx, ids, 1, count));
        graph.output(ids);
        graph.output(probabilities);
    }

    void read(Choice * out) override {
        const size_t count = static_cast<size_t>(ggml_nelements(ids));
        tokens.resize(count);
        likely.resize(count);
        ggml_backend_tensor_get(ids, tokens.data(), 0, count * sizeof(int32_t));
        ggml_backend_tensor_get(probabilities, likely.data(), 0, count * sizeof(float));
        for (size_t i = 0; i < count; i++) {
            if (!(likely[i] > 0.0f && likely[i] <= 1.001f)) {
                throw not_finite();
            }
            out[i] = {tokens[i], std::min(likely[i], 1.0f)};
        }
    }

private:
    ggml_tensor *        ids;            // I32 [count]
    ggml_tensor *        probabilities;  // F32 [1, count]
    std::vector<int32_t> tokens;
    std::vector<float>   likely;
};

}  // namespace

Error not_finite() {
    return Error(PCR_ERROR_FORMAT,
                 "the model's logits are not finite: the file's weights are damaged, or its numbers overflow; try "
                 "precision 'f32', or a bf16, q8_0 or f32 file of the same model");
}

ggml_tensor * GgmlOps::linear(Graph & graph, Input & x, const Linear & l, Activation activation,
                              ggml_tensor * residual) {
    ggml_context * ctx = graph.ctx();
    ggml_tensor *  y   = ggml_mul_mat(ctx, l.weight, x.rows);
    y                  = l.bias ? ggml_add(ctx, y, l.bias) : y;
    y                  = activation == Activation::gelu ? ggml_gelu_erf(ctx, y) : y;
    return residual ? ggml_add(ctx, residual, y) : y;
}

ggml_tensor * GgmlOps::mlp(Graph & graph, Input & x, const Linear & first, const Linear & second,
                           ggml_tensor * residual) {
    Input y{linear(graph, x, first, Activation::gelu, nullptr), x.path};
    return linear(graph, y, second, Activation::none, residual);
}

ggml_tensor * GgmlOps::gated_mlp(Graph & graph, Input & x, const Linear & gate, const Linear & up, const Linear & down,
                                 ggml_tensor * residual) {
    ggml_tensor * gates = linear(graph, x, gate, Activation::none, nullptr);
    Input         y{ggml_swiglu_split(graph.ctx(), gates, linear(graph, x, up, Activation::none, nullptr)), x.path};
    return linear(graph, y, down, Activation::none, residual);
}

// All chunks at once. Between convolutions the channels go back behind time and frequency.
ggml_tensor * GgmlOps::conv_stem(Graph & graph, const EncoderWeights & w, ggml_tensor * chunks) {
    ggml_context * ctx = graph.ctx();
    ggml_tensor *  x   = chunks;  // [time, freq, 1, chunks]
    for (int i = 0; i < 3; i++) {
        const Conv & conv     = w.conv[i];
        x                     = i == 0 ? x : ggml_cont(ctx, ggml_permute(ctx, x, 2, 0, 1, 3));
        ggml_tensor * patches = ggml_im2col(ctx, conv.weight, x, 2, 2, 1, 1, 1, 1, /*is_2D =*/true, GGML_TYPE_F32);
        ggml_tensor * kernel  = ggml_reshape_2d(ctx, conv.weight, patches->ne[0], conv.weight->ne[3]);
        x                     = ggml_mul_mat(ctx, kernel, patches);
        if (asks_for_f32) {
            ggml_prec_set_acc(x, GGML_PREC_F32);
        }
        x = ggml_gelu_erf(ctx, ggml_add(ctx, x, conv.bias));        // [channels, time / 2, freq / 2, chunks]
    }
    x = ggml_cont(ctx, ggml_permute(ctx, x, 1, 2, 0, 3));  // [freq, channels, time / 8, chunks]
    return ggml_reshape_3d(ctx, x, x->ne[0] * x->ne[1], x->ne[2], x->ne[3]);
}

std::unique_ptr<KvView> GgmlOps::cache_view(Graph & graph, const std::vector<KvRange> & ranges,
                                            int64_t rows_per_sequence) {
    auto view   = std::make_unique<CacheView>(ranges, rows_per_sequence);
    view->input = graph.input(GGML_TYPE_F16, view->rows, view->n_tokens);
    view->mask  = ggml_cont(graph.ctx(), view->input);
    return view;
}

std::unique_ptr<KvView> GgmlOps::window_view(Graph &, const std::vector<KvRange> & ranges) {
    return std::make_unique<WindowView>(ranges);
}

ggml_tensor * GgmlOps::attention(Graph & graph, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v,
                                 const KvView & view) {
    ggml_context * ctx      = graph.ctx();
    const int64_t  head_dim = q->ne[0], n_heads = q->ne[1], n_kv_heads = k->ne[2];
    ggml_tensor *  all = nullptr;
    // Tokens t .. t + tokens * n - 1, of n sequences, and their rows, from r on and `apart` from each other.
    const auto add = [&](int64_t t, int64_t tokens, int64_t n, int64_t r, int64_t rows, int64_t apart,
                         ggml_tensor * mask) {
        const auto held = [&](ggml_tensor * cache) {  // [head_dim, rows, n_kv_heads, n]
            return ggml_view_4d(ctx, cache, head_dim, rows, n_kv_heads, n, cache->nb[1], cache->nb[2],
                                static_cast<size_t>(apart) * cache->nb[1], static_cast<size_t>(r) * cache->nb[1]);
        };
        ggml_tensor * x    = ggml_view_4d(ctx, q, head_dim, n_heads, tokens, n, q->nb[1], q->nb[2],
                                          static_cast<size_t>(tokens) * q->nb[2], static_cast<size_t>(t) * q->nb[2]);
        x                  = ggml_permute(ctx, x, 0, 2, 1, 3);  // [head_dim, tokens, n_heads, n]
        ggml_tensor * seen = attend(graph, compute, x, held(k), held(v), mask);
        seen               = ggml_reshape_2d(ctx, seen, head_dim * n_heads, tokens * n);
        all                = all ? ggml_concat(ctx, all, seen, 1) : seen;
    };
    if (const auto * windows = dynamic_cast<const WindowView *>(&view)) {
        for (const KvRange & window : windows->windows) {
            add(window.first, window.count, 1, window.first, window.count, 0, nullptr);
        }
        return all;
    }
    const auto & cached = dynamic_cast<const CacheView &>(view);
    for (const Block & block : cached.blocks) {
        const size_t  line = cached.mask->nb[1], lines = line * static_cast<size_t>(cached.tokens);
        ggml_tensor * mask = ggml_view_4d(ctx, cached.mask, cached.rows, cached.tokens, 1, block.n_sequences, line,
                                          lines, lines, line * static_cast<size_t>(block.token));
        add(block.token, cached.tokens, block.n_sequences, block.row, cached.rows, cached.apart, mask);
    }
    return all;
}

ggml_tensor * GgmlOps::capture_attention(Graph &, ggml_tensor *, ggml_tensor *, const KvView &,
                                         const std::vector<AttentionHead> &, int32_t,
                                         const std::vector<AttentionCapture> &, int64_t) {
    check_capture();
    return nullptr;
}

void GgmlOps::check_capture() const {
    throw Error(PCR_ERROR_UNSUPPORTED, "attention, and with it the times of words, can be read out on the CPU only");
}

std::unique_ptr<Choosing> GgmlOps::choose(Graph & graph, ggml_tensor * x, const Linear & head) {
    Input y{x, Path::gemv};
    return std::make_unique<GraphChoosing>(graph, linear(graph, y, head, Activation::none, nullptr));
}

size_t GgmlOps::attention_nodes(int64_t n_sequences) const {
    return 20 * static_cast<size_t>((n_sequences + 1) / 2);  // sequences that do not follow each other, at worst
}

}  // namespace pcr
