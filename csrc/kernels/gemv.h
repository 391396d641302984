// Products of few rows, read as they are: any type, sums in F32.
#pragma once

#include "kernels/unpack.h"

namespace pcr {

namespace {

void gemv(ggml_type type, const void * rows, size_t row_bytes, int64_t n_rows, int64_t n, const float * x, int64_t n_x,
          float * out, int64_t out_stride) {
    const size_t bytes = ggml_row_size(type, ggml_blck_size(type)) * static_cast<size_t>(chunk / ggml_blck_size(type));
    for (int64_t i = 0; i < n_rows; i++) {
        const uint8_t * from = static_cast<const uint8_t *>(rows) + static_cast<size_t>(i) * row_bytes;
        for (int64_t first = 0; first < n_x; first += 4) {
            const int64_t columns = n_x - first < 4 ? n_x - first : 4;
            F             sums[4] = {};
            for (int64_t at = 0; at < n; at += chunk) {
                const int64_t     count = n - at < chunk ? n - at : chunk;
                alignas(64) float values[chunk];
                unpack_chunk(type, from + static_cast<size_t>(at / chunk) * bytes, count, values);
                for (int64_t j = 0; j < columns; j++) {
                    const float * const with = x + (first + j) * n + at;
                    int64_t             k    = 0;
                    F                   sum0 = sums[j], sum1 = {};
                    for (; k + 32 <= count; k += 32) {
                        sum0 += load<F>(values + k) * load<F>(with + k);
                        sum1 += load<F>(values + k + 16) * load<F>(with + k + 16);
                    }
                    for (; k < count; k += 16) {
                        const int64_t some = count - k < 16 ? count - k : 16;
                        sum0 += load_some(values + k, some) * load_some(with + k, some);
                    }
                    sums[j] = sum0 + sum1;
                }
            }
            for (int64_t j = 0; j < columns; j++) {
                out[(first + j) * out_stride + i] = sum_lanes(sums[j]);
            }
        }
    }
}

}  // namespace

}  // namespace pcr
