// Products of few rows, read as they are: any type, sums in F32.
//
// A sum is that of 32 lanes, value k in lane k % 32, whatever rows are beside it.
#pragma once

#include "kernels/unpack.h"

namespace pcr {

namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int gemv_columns = 4;  // whose sums stay in registers
#else
constexpr int gemv_columns = 2;
#endif

// 16 values of a row from the k-th on.
template <ggml_type type> PCR_INLINE F values_at(const uint8_t * row, int64_t k) {
    return type == GGML_TYPE_F16    ? from_f16(row + 2 * k)
           : type == GGML_TYPE_BF16 ? from_bf16(row + 2 * k)
                                    : load<F>(row + 4 * k);
}

// sums[j] += values k < count of a row times those of x, x + stride ...; count a multiple of 32.
template <ggml_type type, int n_x>
PCR_INLINE void add_products(const uint8_t * row, int64_t count, const float * x, int64_t stride, F (&sums)[n_x][2]) {
    constexpr int64_t bytes = type == GGML_TYPE_F32 ? 128 : 64;
    for (int64_t k = 0; k < count; k += 32) {
        fetch_ahead(row + bytes / 32 * k, bytes);
        PCR_UNROLL
        for (int h = 0; h < 2; h++) {
            const F values = values_at<type>(row, k + 16 * h);
            PCR_UNROLL
            for (int j = 0; j < n_x; j++) {
                sums[j][h] += values * load<F>(x + j * stride + k + 16 * h);
            }
        }
    }
}

// One row of the matrix with n_x rows x.
template <int n_x>
void gemv_row(ggml_type type, const uint8_t * row, int64_t n, const float * x, float * out, int64_t out_stride) {
    F             sums[n_x][2] = {};
    const int64_t whole        = n / 32 * 32;
    int64_t       k            = 0;
    switch (type) {
        case GGML_TYPE_F32: add_products<GGML_TYPE_F32>(row, k = whole, x, n, sums); break;
        case GGML_TYPE_F16: add_products<GGML_TYPE_F16>(row, k = whole, x, n, sums); break;
        case GGML_TYPE_BF16: add_products<GGML_TYPE_BF16>(row, k = whole, x, n, sums); break;
        default: break;
    }
    for (; k < n; k += chunk) {  // quantised types, and what is left
        const size_t      at    = ggml_row_size(type, k);
        const int64_t     count = n - k < chunk ? n - k : chunk, padded = (count + 31) / 32 * 32;
        alignas(64) float values[chunk], rest[n_x][32];
        unpack_chunk(type, row + at, count, values);
        if (count == padded) {
            add_products<GGML_TYPE_F32>(reinterpret_cast<const uint8_t *>(values), count, x + k, n, sums);
            continue;
        }
        const int64_t even = padded - 32;
        add_products<GGML_TYPE_F32>(reinterpret_cast<const uint8_t *>(values), even, x + k, n, sums);
        for (int j = 0; j < n_x; j++) {
            std::memset(rest[j], 0, sizeof(rest[j]));
            std::memcpy(rest[j], x + j * n + k + even, static_cast<size_t>(count - even) * sizeof(float));
        }
        std::memset(values + count, 0, static_cast<size_t>(padded - count) * sizeof(float));
        add_products<GGML_TYPE_F32>(reinterpret_cast<const uint8_t *>(values + even), 32, rest[0], 32, sums);
    }
    for (int j = 0; j < n_x; j++) {
        out[j * out_stride] = sum_lanes(sums[j][0] + sums[j][1]);
    }
}

// Rows of the matrix that stay in the second cache while all rows x pass.
PCR_INLINE int64_t rows_in_cache(size_t row_bytes) {
    const int64_t rows = static_cast<int64_t>((size_t(1) << 17) / row_bytes);
    return rows > 0 ? rows : 1;
}

void gemv(ggml_type type, const void * rows, size_t row_bytes, int64_t n_rows, int64_t n, const float * x, int64_t n_x,
          float * out, int64_t out_stride) {
    const int64_t block = n_x > gemv_columns ? rows_in_cache(row_bytes) : n_rows;
    for (int64_t first = 0; first < n_rows; first += block) {
        const int64_t end = n_rows - first < block ? n_rows : first + block;
        for (int64_t j = 0; j < n_x;) {
            const bool several = n_x - j >= gemv_columns;
            for (int64_t i = first; i < end; i++) {
                const uint8_t * row = static_cast<const uint8_t *>(rows) + static_cast<size_t>(i) * row_bytes;
                float * const   to  = out + j * out_stride + i;
                if (several) {
                    gemv_row<gemv_columns>(type, row, n, x + j * n, to, out_stride);
                } else {
                    gemv_row<1>(type, row, n, x + j * n, to, out_stride);
                }
            }
            j += several ? gemv_columns : 1;
        }
    }
}

}  // namespace

}  // namespace pcr
