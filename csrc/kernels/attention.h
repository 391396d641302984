// Attention of a block of queries over a cache, with a running softmax.
#pragma once

#include "kernels/gemm.h"
#include "kernels/unpack.h"

namespace pcr {

namespace {

// 16 of n values of a cache's row.
template <bool f16> PCR_INLINE F cached(const uint8_t * row, int64_t at, int64_t n) {
    if (f16 && n - at >= 16) {
        return from_f16(row + 2 * at);
    }
    if (f16) {
        float values[16] = {};
        for (int64_t i = 0; i < 16 && at + i < n; i++) {
            values[i] = half(row + 2 * (at + i));
        }
        return load<F>(values);
    }
    return n - at >= 16 ? load<F>(row + 4 * at) : load_some(reinterpret_cast<const float *>(row) + at, n - at);
}

// count <= 64 keys -> columns [4 groups of keys][steps][16 words][16 keys].
template <bool f16>
PCR_INLINE void key_columns(const uint8_t * rows, size_t row_bytes, int64_t count, int64_t head_dim, float * columns) {
    const int64_t width = group_count(head_dim) * 16;
    for (int64_t g = 0; g < group_count(count); g++) {
        for (int64_t d = 0; d < width; d += 16, columns += block_words) {
            U v[16];
            PCR_UNROLL
            for (int i = 0; i < 16; i++) {
                const int64_t key = 16 * g + i;
                v[i] = key < count ? (U)cached<f16>(rows + static_cast<size_t>(key) * row_bytes, d, head_dim) : U{};
            }
            transpose(v);
            PCR_UNROLL
            for (int k = 0; k < 16; k++) {
                store(columns + 16 * k, v[k]);
            }
        }
    }
}

// count <= 64 values -> columns [groups of dims][64 values][16 dims].
template <bool f16>
PCR_INLINE void value_columns(const uint8_t * rows, size_t row_bytes, int64_t count, int64_t head_dim,
                              float * columns) {
    for (int64_t i = 0; i < group_count(count) * 16; i++) {
        for (int64_t g = 0; g < group_count(head_dim); g++) {
            store(columns + (g * attention_keys + i) * 16,
                  i < count ? cached<f16>(rows + static_cast<size_t>(i) * row_bytes, 16 * g, head_dim) : F{});
        }
    }
}

// Keys are taken in blocks of 64 from the first, whatever is asked for, with the running maximum and sum of each query
// (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"). Keys beyond a query's count weigh nothing.
void attend(const float * q, const int32_t * counts, int64_t n_rows, ggml_type type, const void * keys,
            const void * values, size_t row_bytes, int64_t head_dim, float * scratch, float * out) {
    constexpr int64_t block  = attention_keys;
    const int64_t     groups = group_count(head_dim), width = groups * 16;
    float * const     k_columns = scratch;
    float * const     v_columns = k_columns + block * width;
    float * const     scores    = v_columns + block * width;  // [rows][64]
    float             highest[attention_rows];
    F                 sums[attention_rows];

    int32_t n_keys = 0;
    for (int64_t r = 0; r < n_rows; r++) {
        n_keys     = counts[r] > n_keys ? counts[r] : n_keys;
        highest[r] = -3.4e38f;
        sums[r]    = F{};
    }
    std::memset(out, 0, static_cast<size_t>(n_rows * width) * sizeof(float));
    const PackedRows query_rows{reinterpret_cast<const uint32_t *>(q), 16 * width, width, 16};
    const PackedRows score_rows{reinterpret_cast<const uint32_t *>(scores), 16 * block, block, 16};

    for (int64_t first = 0; first < n_keys; first += block) {
        const int64_t count = n_keys - first < block ? n_keys - first : block, key_groups = group_count(count);
        const auto *  k = static_cast<const uint8_t *>(keys) + static_cast<size_t>(first) * row_bytes;
        const auto *  v = static_cast<const uint8_t *>(values) + static_cast<size_t>(first) * row_bytes;
        if (type == GGML_TYPE_F16) {
            key_columns<true>(k, row_bytes, count, head_dim, k_columns);
            value_columns<true>(v, row_bytes, count, head_dim, v_columns);
        } else {
            key_columns<false>(k, row_bytes, count, head_dim, k_columns);
            value_columns<false>(v, row_bytes, count, head_dim, v_columns);
        }
        gemm_vectors<false>(query_rows, n_rows, reinterpret_cast<const uint32_t *>(k_columns), 16 * width, key_groups,
                            groups, false, scores, block);
        const I lane = widened<uint8_t>(lane_numbers);
        for (int64_t r = 0; r < n_rows; r++) {
            const int32_t seen =
                counts[r] - static_cast<int32_t>(first);  // of this block; may be beyond it or negative
            F s[4];
            F top = all(-3.4e38f);
            for (int g = 0; g < key_groups; g++) {
                s[g] = select(lane + static_cast<int32_t>(16 * g) < seen, load<F>(scores + r * block + 16 * g),
                              all(-3.4e38f));
                top  = max(top, s[g]);
            }
            const float now = largest_lane(top) > highest[r] ? largest_lane(top) : highest[r];
            if (now > highest[r]) {
                const F shrink = exponential(all(highest[r] - now));
                sums[r]        = sums[r] * shrink;
                for (int64_t d = 0; d < width; d += 16) {
                    store(out + r * width + d, load<F>(out + r * width + d) * shrink);
                }
                highest[r] = now;
            }
            for (int g = 0; g < key_groups; g++) {
                const F weight = exponential(s[g] - now);
                sums[r] += weight;
                store(scores + r * block + 16 * g, weight);
            }
        }
        gemm_vectors<false>(score_rows, n_rows, reinterpret_cast<const uint32_t *>(v_columns), 16 * block, groups,
                            key_groups, true, out, width);
    }
    for (int64_t r = 0; r < n_rows; r++) {
        const float scale = 1.0f / sum_lanes(sums[r]);
        for (int64_t d = 0; d < width; d += 16) {
            store(out + r * width + d, load<F>(out + r * width + d) * scale);
        }
    }
}

}  // namespace

}  // namespace pcr
