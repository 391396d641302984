// Products of many rows: packed panels, tiles held in registers, and epilogues.
//
// Fixed k-order: a result depends on its own row and column only, not on the batch.
#pragma once

#include "kernels/simd.h"

#if defined(__AMX_BF16__) && defined(__linux__)
#  define PCR_AMX 1
#  include "kernels/gemm_amx.h"
#endif

namespace pcr {

namespace {

void pack(ComputeType type, const float * rows, int64_t stride, int64_t n_rows, int64_t n, uint32_t * columns) {
    const int64_t values = type == ComputeType::bf16 ? 32 : 16;
    for (int64_t at = 0; at < n; at += values, columns += block_words) {
        U v[16];
        if (at + values <= n && n_rows == 16) {
            PCR_UNROLL
            for (int r = 0; r < 16; r++) {
                const float * row = rows + r * stride + at;
                v[r] = type == ComputeType::bf16 ? bf16_words(load<F>(row), load<F>(row + 16)) : load<U>(row);
            }
        } else {
            for (int64_t r = 0; r < 16; r++) {
                F first = {}, second = {};
                if (r < n_rows) {
                    const float * row  = rows + r * stride + at;
                    const int64_t left = n - at;
                    first              = load_some(row, left < 16 ? left : 16);
                    if (type == ComputeType::bf16 && left > 16) {
                        second = load_some(row + 16, left < 32 ? left - 16 : 16);
                    }
                }
                v[r] = type == ComputeType::bf16 ? bf16_words(first, second) : (U)first;
            }
        }
        transpose(v);
        PCR_UNROLL
        for (int k = 0; k < 16; k++) {
            store(columns + 16 * k, v[k]);
        }
    }
}

// As many rows and groups of columns as leave the sums in registers.
#if defined(__AVX512F__)
constexpr int tile_rows = 8, tile_groups = 3;
#elif defined(__AVX2__)
constexpr int tile_rows = 6, tile_groups = 1;
#elif defined(__aarch64__)
constexpr int tile_rows = 4, tile_groups = 1;
#else
constexpr int tile_rows = 2, tile_groups = 1;
#endif
using R = FloatRegister;

template <bool bf16> PCR_INLINE R multiply_add(R sum, const uint32_t * word, R column) {
#if defined(PCR_BF16)
    if (bf16) {
        const IntRegister both = IntRegister{} + load<int32_t>(word);
#  if defined(__AVX512BF16__)
        return (R)_mm512_dpbf16_ps((__m512)sum, (__m512bh)column, (__m512bh)both);
#  else
        return (R)vbfdotq_f32((float32x4_t)sum, (bfloat16x8_t)column, (bfloat16x8_t)both);
#  endif
    }
#endif
    float one;
    std::memcpy(&one, word, 4);
    return sum + one * column;
}

// n_rows x 16 * n_groups results, held in registers over all steps.
template <int n_rows, int n_groups, bool bf16>
PCR_INLINE void tile(const uint32_t * a, int64_t row, int64_t step, const uint32_t * columns, int64_t column_group,
                     int64_t n_steps, bool add, float * out, int64_t out_stride) {
    constexpr int n = n_groups * parts;
    R             sums[n_rows][n];
    PCR_UNROLL
    for (int r = 0; r < n_rows; r++) {
        PCR_UNROLL
        for (int c = 0; c < n; c++) {
            sums[r][c] = add ? load<R>(out + r * out_stride + lanes * c) : R{};
        }
    }
    for (int64_t s = 0; s < n_steps; s++, a += step, columns += block_words) {
        for (int k = 0; k < 16; k++) {
            R values[n];
            PCR_UNROLL
            for (int c = 0; c < n; c++) {
                values[c] = load<R>(columns + c / parts * column_group + 16 * k + c % parts * lanes);
            }
            PCR_UNROLL
            for (int r = 0; r < n_rows; r++) {
                PCR_UNROLL
                for (int c = 0; c < n; c++) {
                    sums[r][c] = multiply_add<bf16>(sums[r][c], a + r * row + k, values[c]);
                }
            }
        }
    }
    PCR_UNROLL
    for (int r = 0; r < n_rows; r++) {
        PCR_UNROLL
        for (int c = 0; c < n; c++) {
            store(out + r * out_stride + lanes * c, sums[r][c]);
        }
    }
}

// All rows of n_groups <= tile_groups groups of columns.
template <int n_groups, bool bf16>
PCR_INLINE void tile_column(const PackedRows & rows, const uint32_t * words, int64_t n_rows, const uint32_t * columns,
                            int64_t column_group, int64_t n_steps, bool add, float * out, int64_t out_stride) {
    int64_t r = 0;
    while (r < n_rows) {
        const uint32_t * a    = words + r / 16 * rows.group + r % 16 * rows.row;
        float * const    to   = out + r * out_stride;
        const int64_t    left = n_rows - r < 16 - r % 16 ? n_rows - r : 16 - r % 16;  // of these 16
        if (left >= tile_rows) {
            tile<tile_rows, n_groups, bf16>(a, rows.row, rows.step, columns, column_group, n_steps, add, to,
                                            out_stride);
            r += tile_rows;
        } else if (tile_rows > 4 && left >= 4) {
            tile<4, n_groups, bf16>(a, rows.row, rows.step, columns, column_group, n_steps, add, to, out_stride);
            r += 4;
        } else if (tile_rows > 2 && left >= 2) {
            tile<2, n_groups, bf16>(a, rows.row, rows.step, columns, column_group, n_steps, add, to, out_stride);
            r += 2;
        } else {
            tile<1, n_groups, bf16>(a, rows.row, rows.step, columns, column_group, n_steps, add, to, out_stride);
            r += 1;
        }
    }
}

template <bool bf16>
void gemm_vectors(const PackedRows & rows, int64_t n_rows, const uint32_t * columns, int64_t column_group,
                  int64_t n_groups, int64_t n_steps, bool add, float * out, int64_t out_stride) {
    constexpr int64_t steps_at_once = tile_groups == 3 ? 8 : 16;  // so that the columns stay in the first cache
    for (int64_t first = 0; first < n_steps; first += steps_at_once) {
        const int64_t    n     = n_steps - first < steps_at_once ? n_steps - first : steps_at_once;
        const bool       more  = add || first > 0;
        const uint32_t * words = rows.words + first * rows.step;
        const uint32_t * group = columns + first * block_words;
        for (int64_t g = 0; g < n_groups;) {
            const int64_t left = n_groups - g;
            if (left >= tile_groups) {
                tile_column<tile_groups, bf16>(rows, words, n_rows, group, column_group, n, more, out + 16 * g,
                                               out_stride);
                g += tile_groups;
                group += tile_groups * column_group;
            } else if (tile_groups > 2 && left == 2) {
                tile_column<2, bf16>(rows, words, n_rows, group, column_group, n, more, out + 16 * g, out_stride);
                g += 2;
            } else {
                tile_column<1, bf16>(rows, words, n_rows, group, column_group, n, more, out + 16 * g, out_stride);
                g += 1;
            }
        }
    }
}

void gemm(ComputeType type, const PackedRows & rows, int64_t n_rows, const uint32_t * columns, int64_t column_group,
          int64_t n_groups, int64_t n_steps, bool add, float * out, int64_t out_stride) {
    if (type == ComputeType::bf16) {
#if defined(PCR_AMX)
        gemm_amx(rows, n_rows, columns, column_group, n_groups, n_steps, add, out, out_stride);
#elif defined(PCR_BF16)
        gemm_vectors<true>(rows, n_rows, columns, column_group, n_groups, n_steps, add, out, out_stride);
#endif
    } else {
        gemm_vectors<false>(rows, n_rows, columns, column_group, n_groups, n_steps, add, out, out_stride);
    }
}

PCR_INLINE F activate(Activation activation, F x) {
    return activation == Activation::gelu ? gelu(x) : x;
}

void epilogue_rows(const float * results, int64_t stride, int64_t n, int64_t n_columns, const float * bias,
                   Activation activation, const float * residual, float * out, int64_t out_stride) {
    for (int64_t i = 0; i < n; i += 16) {
        const int64_t count = n - i < 16 ? n - i : 16;
        const F       b     = bias ? load_some(bias + i, count) : F{};
        for (int64_t c = 0; c < n_columns; c += 16) {
            U v[16];
            PCR_UNROLL
            for (int r = 0; r < 16; r++) {
                v[r] = r < count ? load<U>(results + (i + r) * stride + c) : U{};
            }
            transpose(v);
            const int64_t rows = n_columns - c < 16 ? n_columns - c : 16;
            for (int64_t r = 0; r < rows; r++) {
                const int64_t at = (c + r) * out_stride + i;
                F             x  = activate(activation, (F)v[r] + b);
                if (residual) {
                    x += count == 16 ? load<F>(residual + at) : load_some(residual + at, count);
                }
                if (count == 16) {
                    store(out + at, x);
                } else {
                    store_some(out + at, x, count);
                }
            }
        }
    }
}

// Results i of 16 columns from c on, or silu(gate) * results.
PCR_INLINE F result_at(const float * results, const float * gate, int64_t stride, int64_t i, int64_t c,
                       const float * bias, Activation activation) {
    F x = load<F>(results + i * stride + c);
    x   = activate(activation, bias ? x + bias[i] : x);
    return gate ? x * silu(load<F>(gate + i * stride + c)) : x;
}

void epilogue_panel(ComputeType type, const float * results, const float * gate, int64_t stride, int64_t n,
                    int64_t n_groups, const float * bias, Activation activation, uint32_t * columns,
                    int64_t column_group, int64_t first) {
    const auto    value = [&](int64_t i, int64_t c)
                              PCR_LAMBDA { return result_at(results, gate, stride, i, c, bias, activation); };
    const int64_t step  = type == ComputeType::bf16 ? 32 : 16;
    for (int64_t i = 0; i < n; i += step / 16) {
        const int64_t at = (first + i) / step * block_words + (first + i) % step / (step / 16) * 16;
        for (int64_t g = 0; g < n_groups; g++) {
            const U words =
                type == ComputeType::bf16 ? bf16_pairs(value(i, 16 * g), value(i + 1, 16 * g)) : (U)value(i, 16 * g);
            store(columns + g * column_group + at, words);
        }
    }
}

void epilogue_words(ComputeType type, const float * results, int64_t n, const float * bias, Activation activation,
                    uint32_t * words) {
    const auto value = [&](int64_t i) __attribute__((always_inline)) {
        if (i >= n) {
            return F{};
        }
        if (n - i < 16) {
            const F x = load_some(results + i, n - i),
                    y = activate(activation, bias ? x + load_some(bias + i, n - i) : x);
            return load_some(reinterpret_cast<const float *>(&y), n - i);
        }
        return activate(activation, bias ? load<F>(results + i) + load<F>(bias + i) : load<F>(results + i));
    };
    const int64_t step = type == ComputeType::bf16 ? 32 : 16;
    for (int64_t i = 0; i < n; i += step, words += 16) {
        store(words, type == ComputeType::bf16 ? bf16_words(value(i), value(i + 16)) : (U)value(i));
    }
}

}  // namespace

}  // namespace pcr
