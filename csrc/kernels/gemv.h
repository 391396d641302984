// Products of few rows, read as they are: any type, sums in F32.
//
// A sum is that of some registers' lanes, which take turns, whatever rows are beside it.
#pragma once

#include "kernels/unpack.h"

namespace pcr {

namespace {

// Results whose sums stay in registers: of so many rows of the matrix and rows x.
#if defined(__AVX512F__)
constexpr int gemv_rows = 4, gemv_columns = 6;
#else
constexpr int gemv_rows = 2, gemv_columns = 3;
#endif
// Of each sum: a single row would wait for the last product's addition.
#if defined(__aarch64__)
constexpr int gemv_registers = 4;
#else
constexpr int gemv_registers = 2;
#endif

// A register's values of a row from the k-th on.
template <ggml_type type> PCR_INLINE FloatRegister values_at(const uint8_t * row, int64_t k) {
    return type == GGML_TYPE_F16    ? register_from_f16(row + 2 * k)
           : type == GGML_TYPE_BF16 ? register_from_bf16(row + 2 * k)
                                    : load<FloatRegister>(row + 4 * k);
}

// Compilers would rather read a value again for each product.
PCR_INLINE void keep_in_register(FloatRegister & value) {
#if defined(__SSE__)
    __asm__("" : "+x"(value));
#elif defined(__aarch64__)
    __asm__("" : "+w"(value));
#else
    (void)value;
#endif
}

template <int n_rows, int n_x> using GemvSums = FloatRegister[n_rows][n_x][gemv_registers];

// Registers that hold sums; those of more take turns.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int gemv_held = 24;
#else
constexpr int gemv_held = 12;
#endif

// add_products for the registers first .. first + n_held - 1 of each sum. A function of its own, with a short loop: else
// compilers run out of registers.
template <ggml_type type, int n_rows, int n_x, int first, int n_held>
__attribute__((noinline)) void add_products_of(const uint8_t * rows, size_t row_bytes, int64_t count, const float * x,
                                               int64_t stride, GemvSums<n_rows, n_x> & sums) {
    constexpr int64_t bytes = type == GGML_TYPE_F32 ? 4 : 2;
    FloatRegister     held[n_rows][n_x][n_held];
    PCR_UNROLL
    for (int r = 0; r < n_rows; r++) {
        PCR_UNROLL
        for (int j = 0; j < n_held * n_x; j++) {
            held[r][j / n_held][j % n_held] = sums[r][j / n_held][first + j % n_held];
        }
    }
    for (int64_t k = lanes * first; k < count; k += gemv_registers * lanes) {
        if (first == 0) {
            PCR_UNROLL
            for (int r = 0; r < n_rows; r++) {
                fetch_ahead(rows + static_cast<size_t>(r) * row_bytes + bytes * k, gemv_registers * lanes * bytes);
            }
        }
        PCR_UNROLL
        for (int i = 0; i < n_held; i++) {
            FloatRegister y[n_x];
            PCR_UNROLL
            for (int j = 0; j < n_x; j++) {
                y[j] = load<FloatRegister>(x + j * stride + k + lanes * i);
                keep_in_register(y[j]);
            }
            PCR_UNROLL
            for (int r = 0; r < n_rows; r++) {
                FloatRegister value = values_at<type>(rows + static_cast<size_t>(r) * row_bytes, k + lanes * i);
                keep_in_register(value);
                PCR_UNROLL
                for (int j = 0; j < n_x; j++) {
                    held[r][j][i] += value * y[j];
                }
            }
        }
    }
    PCR_UNROLL
    for (int r = 0; r < n_rows; r++) {
        PCR_UNROLL
        for (int j = 0; j < n_held * n_x; j++) {
            sums[r][j / n_held][first + j % n_held] = held[r][j / n_held][j % n_held];
        }
    }
}

// sums[r][j] += values k < count of row r times those of row j of x; count a multiple of 32.
template <ggml_type type, int n_rows, int n_x>
PCR_INLINE void add_products(const uint8_t * rows, size_t row_bytes, int64_t count, const float * x, int64_t stride,
                             GemvSums<n_rows, n_x> & sums) {
    if constexpr (n_rows * n_x * gemv_registers <= gemv_held) {
        add_products_of<type, n_rows, n_x, 0, gemv_registers>(rows, row_bytes, count, x, stride, sums);
    } else {
        static_assert(gemv_registers == 2);
        add_products_of<type, n_rows, n_x, 0, 1>(rows, row_bytes, count, x, stride, sums);
        add_products_of<type, n_rows, n_x, 1, 1>(rows, row_bytes, count, x, stride, sums);
    }
}

PCR_INLINE float sum_of(const FloatRegister (&sums)[gemv_registers]) {
    FloatRegister all = sums[0] + sums[1];
    if constexpr (gemv_registers == 4) {
        all += sums[2] + sums[3];
    }
    F4 four[lanes / 4];
    std::memcpy(four, &all, sizeof(all));
    PCR_UNROLL
    for (int i = 1; i < lanes / 4; i++) {
        four[0] += four[i];
    }
    return fold_four(four[0], [](F4 a, F4 b) PCR_LAMBDA { return a + b; });
}

// Rows of the matrix with rows x.
template <int n_rows, int n_x>
void gemv_tile(ggml_type type, const uint8_t * rows, size_t row_bytes, int64_t n, const float * x, float * out,
               int64_t out_stride) {
    GemvSums<n_rows, n_x> sums;
    PCR_UNROLL
    for (int r = 0; r < n_rows; r++) {
        PCR_UNROLL
        for (int j = 0; j < n_x; j++) {
            PCR_UNROLL
            for (int i = 0; i < gemv_registers; i++) {
                sums[r][j][i] = FloatRegister{};
            }
        }
    }
    const int64_t whole = n / 32 * 32;
    int64_t       k     = 0;
    switch (type) {
        case GGML_TYPE_F32: add_products<GGML_TYPE_F32, n_rows, n_x>(rows, row_bytes, k = whole, x, n, sums); break;
        case GGML_TYPE_F16: add_products<GGML_TYPE_F16, n_rows, n_x>(rows, row_bytes, k = whole, x, n, sums); break;
        case GGML_TYPE_BF16: add_products<GGML_TYPE_BF16, n_rows, n_x>(rows, row_bytes, k = whole, x, n, sums); break;
        default: break;
    }
    for (; k < n; k += chunk) {  // quantised types, and what is left
        const int64_t     count = n - k < chunk ? n - k : chunk, even = count / 32 * 32;
        alignas(64) float values[n_rows][chunk], rest[n_x][32];
        for (int r = 0; r < n_rows; r++) {
            unpack_chunk(type, rows + static_cast<size_t>(r) * row_bytes + ggml_row_size(type, k), count, values[r]);
        }
        const auto * decoded = reinterpret_cast<const uint8_t *>(values);
        add_products<GGML_TYPE_F32, n_rows, n_x>(decoded, sizeof(values[0]), even, x + k, n, sums);
        if (even < count) {
            const size_t used = static_cast<size_t>(count - even) * sizeof(float);
            for (int r = 0; r < n_rows; r++) {
                std::memset(values[r] + count, 0, sizeof(rest[0]) - used);
            }
            for (int j = 0; j < n_x; j++) {
                std::memset(rest[j], 0, sizeof(rest[j]));
                std::memcpy(rest[j], x + j * n + k + even, used);
            }
            add_products<GGML_TYPE_F32, n_rows, n_x>(decoded + static_cast<size_t>(even) * sizeof(float),
                                                     sizeof(values[0]), 32, rest[0], 32, sums);
        }
    }
    PCR_UNROLL
    for (int j = 0; j < n_x; j++) {
        PCR_UNROLL
        for (int r = 0; r < n_rows; r++) {
            out[j * out_stride + r] = sum_of(sums[r][j]);
        }
    }
}

// n_x <= most rows x.
template <int n_rows, int most>
PCR_INLINE void gemv_tile(int64_t n_x, ggml_type type, const uint8_t * rows, size_t row_bytes, int64_t n,
                          const float * x, float * out, int64_t out_stride) {
    if constexpr (most > 1) {
        if (n_x < most) {
            return gemv_tile<n_rows, most - 1>(n_x, type, rows, row_bytes, n, x, out, out_stride);
        }
    }
    gemv_tile<n_rows, most>(type, rows, row_bytes, n, x, out, out_stride);
}

// Rows of the matrix that stay in the second cache while all rows x pass.
PCR_INLINE int64_t rows_in_cache(size_t row_bytes) {
    const int64_t rows = static_cast<int64_t>((size_t(1) << 17) / row_bytes);
    return rows > 0 ? rows : 1;
}

void gemv(ggml_type type, const void * rows, size_t row_bytes, int64_t n_rows, int64_t n, const float * x, int64_t n_x,
          float * out, int64_t out_stride) {
    const int64_t groups = (n_x + gemv_columns - 1) / gemv_columns;  // of about the same size
    const int64_t block  = groups > 1 ? rows_in_cache(row_bytes) : n_rows;
    for (int64_t first = 0; first < n_rows; first += block) {
        const int64_t end = n_rows - first < block ? n_rows : first + block;
        for (int64_t g = 0; g < groups; g++) {
            const int64_t j = n_x * g / groups, count = n_x * (g + 1) / groups - j;
            for (int64_t i = first; i < end;) {
                const uint8_t * from = static_cast<const uint8_t *>(rows) + static_cast<size_t>(i) * row_bytes;
                float * const   to   = out + j * out_stride + i;
                if (n_x > 2 && end - i >= gemv_rows) {
                    gemv_tile<gemv_rows, gemv_columns>(count, type, from, row_bytes, n, x + j * n, to, out_stride);
                    i += gemv_rows;
                } else {  // one or two: a row after the other is read faster from memory
                    gemv_tile<1, gemv_columns>(count, type, from, row_bytes, n, x + j * n, to, out_stride);
                    i += 1;
                }
            }
        }
    }
}

}  // namespace

}  // namespace pcr
