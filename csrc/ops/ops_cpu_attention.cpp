#include "ops/ops_cpu.h"

#include <algorithm>
#include <cmath>

namespace pcr {

namespace {

struct Node {
    Compute *   compute;
    WorkCounter work{};
};

// Calls with (first token, number of tokens) for each block of at most max_tokens neighbouring tokens of one sequence.
template <typename Call> void each_block(const KvRange * ranges, int64_t n_tokens, int64_t max_tokens, Call call) {
    for (int64_t t = 0; t < n_tokens;) {
        int64_t n = 1;
        while (n < max_tokens && t + n < n_tokens && ranges[t + n].first == ranges[t].first) {
            n++;
        }
        call(t, n);
        t += n;
    }
}

void run(ggml_tensor * dst, int thread, int n_threads, void * user) {
    Node &              node   = *static_cast<Node *>(user);
    const ggml_tensor * q      = dst->src[0];
    const ggml_tensor * k      = dst->src[1];
    const ggml_tensor * v      = dst->src[2];
    const KvRange *     ranges = static_cast<const KvRange *>(dst->src[3]->data);

    const int64_t head_dim = q->ne[0], n_heads = q->ne[1], n_tokens = q->ne[2];
    const int64_t n_kv_heads = k->ne[2], group = n_heads / n_kv_heads;
    const int64_t width      = group_count(head_dim) * block_side;
    const int64_t max_tokens = std::max<int64_t>(1, attention_rows / group);  // tokens of a block
    const float   scale      = 1.0f / std::sqrt(static_cast<float>(head_dim));

    float * const queries = reinterpret_cast<float *>(node.compute->scratch(thread));
    float * const out     = queries + attention_rows * width;
    float * const scratch = out + attention_rows * width;
    int32_t       counts[attention_rows];

    int64_t n_blocks = 0;
    each_block(ranges, n_tokens, max_tokens, [&](int64_t, int64_t) { n_blocks++; });
    int64_t piece = node.work.take(n_blocks * n_kv_heads, n_threads);
    for (int64_t head = 0; head < n_kv_heads; head++) {
        int64_t block = head * n_blocks;
        each_block(ranges, n_tokens, max_tokens, [&](int64_t token, int64_t n) {
            if (block++ != piece) {
                return;
            }
            for (int64_t from = 0; from < group; from += attention_rows) {  // one turn, but for very many query heads
                const int64_t heads  = std::min(group - from, attention_rows);
                const int64_t n_rows = n * heads;
                for (int64_t r = 0; r < n_rows; r++) {
                    const int64_t at = token + r / heads, h = head * group + from + r % heads;
                    const float * row = static_cast<const float *>(q->data) + (at * n_heads + h) * head_dim;
                    counts[r]         = ranges[at].count;
                    std::transform(row, row + head_dim, queries + r * width, [scale](float x) { return x * scale; });
                    std::fill(queries + r * width + head_dim, queries + (r + 1) * width, 0.0f);
                }
                const auto at = [&](const ggml_tensor * cache) {
                    return static_cast<const uint8_t *>(cache->data) + static_cast<size_t>(head) * cache->nb[2] +
                           static_cast<size_t>(ranges[token].first) * cache->nb[1];
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
            piece = node.work.take(n_blocks * n_kv_heads, n_threads);
        });
    }
}

struct CaptureNode {
    Compute *                             compute;
    const std::vector<AttentionCapture> * captures;
    std::vector<int64_t>                  heads;  // of this layer
    std::vector<int64_t>                  rows;  // that they fill
    WorkCounter                           work{};
};

void run_capture(ggml_tensor * dst, int thread, int n_threads, void * user) {
    CaptureNode &       node   = *static_cast<CaptureNode *>(user);
    const ggml_tensor * q      = dst->src[0];
    const ggml_tensor * k      = dst->src[1];
    const KvRange *     ranges = static_cast<const KvRange *>(dst->src[2]->data);
    const Kernels &     ours   = *node.compute->arithmetic.kernels;

    const int64_t head_dim = q->ne[0], n_heads = q->ne[1], group = n_heads / k->ne[2];
    const int64_t n_captured = static_cast<int64_t>(node.heads.size()), pieces = q->ne[2] * n_captured;
    const float   scale  = 1.0f / std::sqrt(static_cast<float>(head_dim));
    float * const scores = reinterpret_cast<float *>(node.compute->scratch(thread));
    for (int64_t piece; (piece = node.work.take(pieces, n_threads)) < pieces;) {
        const int64_t            token   = piece / n_captured;
        const size_t             which   = static_cast<size_t>(piece % n_captured);
        const KvRange &          range   = ranges[token];
        const AttentionCapture & capture = (*node.captures)[static_cast<size_t>(token)];
        if (!capture.weights) {
            continue;
        }
        const int64_t   head = node.heads[which];
        const uint8_t * keys = static_cast<const uint8_t *>(k->data) + static_cast<size_t>(head / group) * k->nb[2] +
                               static_cast<size_t>(range.first) * k->nb[1];
        ours.gemv(k->type, keys, k->nb[1], range.count, head_dim,
                  static_cast<const float *>(q->data) + (token * n_heads + head) * head_dim, 1, scores, range.count);
        std::transform(scores, scores + range.count, scores, [scale](float x) { return x * scale; });
        const float   top = ours.max(scores, range.count);
        const float   sum = static_cast<float>(ours.sum_exp(scores, range.count, top));
        const float * row = scores + capture.first;
        std::transform(row, row + capture.count, capture.weights + node.rows[which] * capture.count,
                       [top, sum](float x) { return std::exp(x - top) / sum; });
    }
}

// The ranges themselves are the input: a graph serves any.
class RangeView : public KvView {
public:
    RangeView(ggml_tensor * ranges_) : ranges(ranges_) {}

    bool fits(const std::vector<KvRange> & other) const override {
        return ranges->ne[1] == static_cast<int64_t>(other.size());
    }

    void fill(const std::vector<KvRange> & from) override {
        if (ranges->buffer) {  // some node of the graph reads it
            set(ranges, from.data());
        }
    }

    std::unique_ptr<KvView> last(Graph & graph) const override {
        return std::make_unique<RangeView>(
            ggml_view_2d(graph.ctx(), ranges, 2, 1, ranges->nb[1], size_t(ranges->ne[1] - 1) * ranges->nb[1]));
    }

    ggml_tensor * ranges;  // I32 [2, tokens]
};

static_assert(sizeof(KvRange) == 2 * sizeof(int32_t), "a range is two words of the input");

}  // namespace

std::unique_ptr<KvView> CpuOps::cache_view(Graph & graph, const std::vector<KvRange> & ranges, int64_t) {
    return window_view(graph, ranges);
}

std::unique_ptr<KvView> CpuOps::window_view(Graph & graph, const std::vector<KvRange> & ranges) {
    return std::make_unique<RangeView>(graph.input(GGML_TYPE_I32, 2, static_cast<int64_t>(ranges.size())));
}

ggml_tensor * CpuOps::attention(Graph & graph, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, const KvView & view) {
    const int64_t width = group_count(q->ne[0]) * block_side;
    compute.reserve_scratch(2 * attention_rows * width + attention_scratch(q->ne[0]));
    ggml_tensor * args[] = {q, k, v, dynamic_cast<const RangeView &>(view).ranges};
    return ggml_custom_4d(graph.ctx(), GGML_TYPE_F32, q->ne[0] * q->ne[1], q->ne[2], 1, 1, args, 4, run,
                          GGML_N_TASKS_MAX, &graph.keep<Node>(&compute));
}

ggml_tensor * CpuOps::capture_attention(Graph & graph, ggml_tensor * q, ggml_tensor * k, const KvView & view,
                                        const std::vector<AttentionHead> & heads, int32_t layer,
                                        const std::vector<AttentionCapture> & captures, int64_t longest) {
    std::vector<int64_t> of_layer, rows;
    for (size_t row = 0; row < heads.size(); row++) {
        if (heads[row].layer == layer) {
            of_layer.push_back(heads[row].head);
            rows.push_back(static_cast<int64_t>(row));
        }
    }
    compute.reserve_scratch(longest);
    ggml_tensor * args[] = {q, k, dynamic_cast<const RangeView &>(view).ranges};
    return ggml_custom_4d(graph.ctx(), GGML_TYPE_F32, 1, 1, 1, 1, args, 3, run_capture, GGML_N_TASKS_MAX,
                          &graph.keep<CaptureNode>(&compute, &captures, of_layer, rows));
}

}  // namespace pcr
