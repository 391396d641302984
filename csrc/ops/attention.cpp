#include "ops/attention.h"

#include <algorithm>
#include <cmath>

namespace pcr {

namespace {

struct Node {
    Compute * compute;
    Tickets   tickets{};
};

// Calls with (first token, number of tokens) for each block of at most `most` neighbouring tokens of one sequence.
template <typename Call> void each_block(const Span * spans, int64_t n_tokens, int64_t most, Call call) {
    for (int64_t t = 0; t < n_tokens;) {
        int64_t n = 1;
        while (n < most && t + n < n_tokens && spans[t + n].first == spans[t].first) {
            n++;
        }
        call(t, n);
        t += n;
    }
}

void run(ggml_tensor * dst, int thread, int n_threads, void * user) {
    Node &              node  = *static_cast<Node *>(user);
    const ggml_tensor * q     = dst->src[0];
    const ggml_tensor * k     = dst->src[1];
    const ggml_tensor * v     = dst->src[2];
    const Span *        spans = static_cast<const Span *>(dst->src[3]->data);

    const int64_t head_dim = q->ne[0], n_heads = q->ne[1], n_tokens = q->ne[2];
    const int64_t n_kv_heads = k->ne[2], group = n_heads / n_kv_heads;
    const int64_t width = group_count(head_dim) * block_side;
    const int64_t most  = std::max<int64_t>(1, attention_rows / group);  // tokens of a block
    const float   scale = 1.0f / std::sqrt(static_cast<float>(head_dim));

    float * const queries = reinterpret_cast<float *>(node.compute->scratch(thread));
    float * const out     = queries + attention_rows * width;
    float * const scratch = out + attention_rows * width;
    int32_t       counts[attention_rows];

    int64_t n_blocks = 0;
    each_block(spans, n_tokens, most, [&](int64_t, int64_t) { n_blocks++; });
    int64_t ticket = node.tickets.take(n_blocks * n_kv_heads, n_threads);
    for (int64_t head = 0; head < n_kv_heads; head++) {
        int64_t block = head * n_blocks;
        each_block(spans, n_tokens, most, [&](int64_t token, int64_t n) {
            if (block++ != ticket) {
                return;
            }
            for (int64_t from = 0; from < group; from += attention_rows) {  // one turn, but for very many query heads
                const int64_t heads  = std::min(group - from, attention_rows);
                const int64_t n_rows = n * heads;
                for (int64_t r = 0; r < n_rows; r++) {
                    const int64_t at = token + r / heads, h = head * group + from + r % heads;
                    const float * row = static_cast<const float *>(q->data) + (at * n_heads + h) * head_dim;
                    counts[r]         = spans[at].count;
                    std::transform(row, row + head_dim, queries + r * width, [scale](float x) { return x * scale; });
                    std::fill(queries + r * width + head_dim, queries + (r + 1) * width, 0.0f);
                }
                const auto at = [&](const ggml_tensor * cache) {
                    return static_cast<const uint8_t *>(cache->data) + static_cast<size_t>(head) * cache->nb[2] +
                           static_cast<size_t>(spans[token].first) * cache->nb[1];
                };
                const Kernels & ours  = *node.compute->arithmetic.kernels;
                const uint8_t * k_row = at(k);
                const uint8_t * v_row = at(v);
                ours.attend(queries, counts, n_rows, k->type, k_row, v_row, k->nb[1], head_dim, scratch, out);
                for (int64_t r = 0; r < n_rows; r++) {
                    const int64_t to = token + r / heads, h = head * group + from + r % heads;
                    std::copy_n(out + r * width, head_dim,
                                static_cast<float *>(dst->data) + (to * n_heads + h) * head_dim);
                }
            }
            ticket = node.tickets.take(n_blocks * n_kv_heads, n_threads);
        });
    }
}

struct WatchNode {
    Compute *                 compute;
    const std::vector<Look> * looks;
    std::vector<int64_t>      heads;  // of this layer
    std::vector<int64_t>      rows;  // that they fill
    Tickets                   tickets{};
};

void run_watch(ggml_tensor * dst, int thread, int n_threads, void * user) {
    WatchNode &         node  = *static_cast<WatchNode *>(user);
    const ggml_tensor * q     = dst->src[0];
    const ggml_tensor * k     = dst->src[1];
    const Span *        spans = static_cast<const Span *>(dst->src[2]->data);
    const Kernels &     ours  = *node.compute->arithmetic.kernels;

    const int64_t head_dim = q->ne[0], n_heads = q->ne[1], group = n_heads / k->ne[2];
    const int64_t n_watched = static_cast<int64_t>(node.heads.size()), pieces = q->ne[2] * n_watched;
    const float   scale  = 1.0f / std::sqrt(static_cast<float>(head_dim));
    float * const scores = reinterpret_cast<float *>(node.compute->scratch(thread));
    for (int64_t piece; (piece = node.tickets.take(pieces, n_threads)) < pieces;) {
        const int64_t token = piece / n_watched;
        const size_t  which = static_cast<size_t>(piece % n_watched);
        const Span &  span  = spans[token];
        const Look &  look  = (*node.looks)[static_cast<size_t>(token)];
        if (!look.weights) {
            continue;
        }
        const int64_t   head = node.heads[which];
        const uint8_t * keys = static_cast<const uint8_t *>(k->data) + static_cast<size_t>(head / group) * k->nb[2] +
                               static_cast<size_t>(span.first) * k->nb[1];
        ours.gemv(k->type, keys, k->nb[1], span.count, head_dim,
                  static_cast<const float *>(q->data) + (token * n_heads + head) * head_dim, 1, scores, span.count);
        std::transform(scores, scores + span.count, scores, [scale](float x) { return x * scale; });
        const float   top = ours.max(scores, span.count);
        const float   sum = static_cast<float>(ours.sum_exp(scores, span.count, top));
        const float * row = scores + look.first;
        std::transform(row, row + look.count, look.weights + node.rows[which] * look.count,
                       [top, sum](float x) { return std::exp(x - top) / sum; });
    }
}

}  // namespace

ggml_tensor * attention(Graph & graph, Compute & compute, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v,
                        ggml_tensor * spans) {
    const int64_t width = group_count(q->ne[0]) * block_side;
    compute.reserve_scratch(2 * attention_rows * width + attention_scratch(q->ne[0]));
    ggml_tensor * args[] = {q, k, v, spans};
    return ggml_custom_4d(graph.ctx(), GGML_TYPE_F32, q->ne[0] * q->ne[1], q->ne[2], 1, 1, args, 4, run,
                          GGML_N_TASKS_MAX, &graph.keep<Node>(&compute));
}

ggml_tensor * watch(Graph & graph, Compute & compute, ggml_tensor * q, ggml_tensor * k, ggml_tensor * spans,
                    const std::vector<WatchedHead> & heads, int32_t layer, const std::vector<Look> & looks,
                    int64_t longest) {
    std::vector<int64_t> of_layer, rows;
    for (size_t row = 0; row < heads.size(); row++) {
        if (heads[row].layer == layer) {
            of_layer.push_back(heads[row].head);
            rows.push_back(static_cast<int64_t>(row));
        }
    }
    compute.reserve_scratch(longest);
    ggml_tensor * args[] = {q, k, spans};
    return ggml_custom_4d(graph.ctx(), GGML_TYPE_F32, 1, 1, 1, 1, args, 3, run_watch, GGML_N_TASKS_MAX,
                          &graph.keep<WatchNode>(&compute, &looks, of_layer, rows));
}

ggml_tensor * attention(Graph & graph, Compute & compute, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v,
                        const Sight & sight) {
    ggml_context * ctx      = graph.ctx();
    const int64_t  head_dim = q->ne[0], n_heads = q->ne[1], n_kv_heads = k->ne[2], tokens = sight.tokens;
    const float    scale = 1.0f / std::sqrt(static_cast<float>(head_dim));

    ggml_tensor * all = nullptr;
    for (const Sight::Block & block : sight.blocks) {
        const int64_t n    = block.n_sequences;
        const auto    rows = [&](ggml_tensor * cache) {  // [head_dim, rows, n_kv_heads, n]
            return ggml_view_4d(ctx, cache, head_dim, sight.rows, n_kv_heads, n, cache->nb[1], cache->nb[2],
                                static_cast<size_t>(sight.apart) * cache->nb[1],
                                static_cast<size_t>(block.row) * cache->nb[1]);
        };
        ggml_tensor * x =
            ggml_view_4d(ctx, q, head_dim, n_heads, tokens, n, q->nb[1], q->nb[2],
                         static_cast<size_t>(tokens) * q->nb[2], static_cast<size_t>(block.token) * q->nb[2]);
        x = ggml_permute(ctx, x, 0, 2, 1, 3);  // [head_dim, tokens, n_heads, n]

        ggml_tensor * seen = nullptr;  // [head_dim, n_heads, tokens, n]
        ggml_tensor * mask = sight.mask;
        if (mask) {
            const size_t line = mask->nb[1], lines = line * static_cast<size_t>(tokens);
            mask = ggml_view_4d(ctx, mask, sight.rows, tokens, 1, n, line, lines, lines,
                                line * static_cast<size_t>(block.token));
            seen = ggml_flash_attn_ext(ctx, x, rows(k), rows(v), mask, scale, 0.0f, 0.0f);
            ggml_prec_set_acc(seen, GGML_PREC_F32);
        }
        if (!seen || !compute.supports(seen)) {
            ggml_tensor * weights = ggml_mul_mat(ctx, rows(k), x);  // [rows, tokens, n_heads, n]
            ggml_prec_set_acc(weights, GGML_PREC_F32);
            weights = ggml_soft_max_ext(ctx, weights, mask, scale, 0.0f);
            seen    = ggml_mul_mat(ctx, ggml_cont(ctx, ggml_permute(ctx, rows(v), 1, 0, 2, 3)), weights);
            seen    = ggml_cont(ctx, ggml_permute(ctx, seen, 0, 2, 1, 3));
        }
        seen = ggml_reshape_2d(ctx, seen, head_dim * n_heads, tokens * n);
        all  = all ? ggml_concat(ctx, all, seen, 1) : seen;
    }
    return all;
}

}  // namespace pcr
