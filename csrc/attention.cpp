#include "attention.h"

#include <algorithm>
#include <cmath>

namespace pcr {

namespace {

constexpr int64_t lanes        = 16;   // independent sums, so that the compiler may use vector registers
constexpr int64_t max_head_dim = 512;  // the loader refuses more
constexpr int64_t block        = 64;   // cache rows between two looks at the maximum

float dot(const float * a, const float * b, int64_t n) {
    float   sums[lanes] = {};
    int64_t i           = 0;
    for (; i + lanes <= n; i += lanes) {
        for (int64_t j = 0; j < lanes; j++) {
            sums[j] += a[i + j] * b[i + j];
        }
    }
    for (int64_t j = 0; i + j < n; j++) {
        sums[j] += a[i + j] * b[i + j];
    }
    for (int64_t width = lanes / 2; width > 0; width /= 2) {
        for (int64_t j = 0; j < width; j++) {
            sums[j] += sums[j + width];
        }
    }
    return sums[0];
}

// One query head of one token: softmax over its span, block by block, keeping the running maximum and sum
// (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax").
void attend(const float * q, const float * k, const float * v, int64_t stride, int64_t count, int64_t head_dim,
            float * out) {
    const float scale   = 1.0f / std::sqrt(static_cast<float>(head_dim));
    float       largest = -INFINITY, sum = 0.0f;
    float       sums[max_head_dim] = {};
    float       scores[block];
    for (int64_t start = 0; start < count; start += block) {
        const int64_t n           = std::min(block, count - start);
        float         new_largest = largest;
        for (int64_t i = 0; i < n; i++) {
            scores[i]   = dot(q, k + (start + i) * stride, head_dim) * scale;
            new_largest = std::max(new_largest, scores[i]);
        }
        const float shrink = std::exp(largest - new_largest);  // 0 in the first block
        largest            = new_largest;
        sum *= shrink;
        for (int64_t d = 0; d < head_dim; d++) {
            sums[d] *= shrink;
        }
        for (int64_t i = 0; i < n; i++) {
            const float   weight = std::exp(scores[i] - largest);
            const float * row    = v + (start + i) * stride;
            sum += weight;
            for (int64_t d = 0; d < head_dim; d++) {
                sums[d] += weight * row[d];
            }
        }
    }
    for (int64_t d = 0; d < head_dim; d++) {
        out[d] = sums[d] / sum;
    }
}

void compute(ggml_tensor * dst, int thread, int n_threads, void * /*user*/) {
    const ggml_tensor * q     = dst->src[0];
    const ggml_tensor * k     = dst->src[1];
    const ggml_tensor * v     = dst->src[2];
    const Span *        spans = static_cast<const Span *>(dst->src[3]->data);

    const int64_t head_dim = q->ne[0], n_heads = q->ne[1], n_tokens = q->ne[2];
    const int64_t stride = k->ne[0], group = n_heads / (stride / head_dim);

    // Heads are dealt out in the outer loop, so that a thread reads one part of the cache again and again.
    const int64_t tasks = n_heads * n_tokens;
    for (int64_t task = tasks * thread / n_threads; task < tasks * (thread + 1) / n_threads; task++) {
        const int64_t head = task / n_tokens, token = task % n_tokens;
        const int64_t first = spans[token].first * stride + head / group * head_dim;
        attend(static_cast<const float *>(q->data) + (token * n_heads + head) * head_dim,
               static_cast<const float *>(k->data) + first, static_cast<const float *>(v->data) + first, stride,
               spans[token].count, head_dim, static_cast<float *>(dst->data) + (token * n_heads + head) * head_dim);
    }
}

}  // namespace

ggml_tensor * attention(ggml_context * ctx, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, ggml_tensor * spans) {
    ggml_tensor * args[] = {q, k, v, spans};
    return ggml_custom_4d(ctx, GGML_TYPE_F32, q->ne[0] * q->ne[1], q->ne[2], 1, 1, args, 4, compute, GGML_N_TASKS_MAX,
                          nullptr);
}

}  // namespace pcr
