// Products of many rows in BF16 on AMX: tiles of 16 rows of 64 bytes.
#pragma once

#include "kernels/simd.h"

namespace pcr {

namespace {

// Eight tiles of 16 rows of 64 bytes.
struct alignas(64) TileConfig {
    uint8_t  palette   = 1;
    uint8_t  start_row = 0;
    uint8_t  reserved[14]{};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t  rows[16]  = {16, 16, 16, 16, 16, 16, 16, 16};
};

template <int n_rows, int n_groups>
PCR_INLINE void amx_tile(const uint32_t * a0, const uint32_t * a1, int64_t row, int64_t step, const uint32_t * c0,
                         const uint32_t * c1, int64_t n_steps, bool add, float * out, int64_t out_stride) {
    const int64_t bytes = 4 * out_stride;
    float * const below = out + 16 * out_stride;
    if (add) {
        _tile_loadd(0, out, bytes);
        if (n_groups > 1)
            _tile_loadd(1, out + 16, bytes);
        if (n_rows > 1)
            _tile_loadd(2, below, bytes);
        if (n_rows > 1 && n_groups > 1)
            _tile_loadd(3, below + 16, bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t s = 0; s < n_steps; s++) {
        _tile_loadd(4, a0 + s * step, 4 * row);
        _tile_loadd(6, c0 + s * block_words, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (n_groups > 1) {
            _tile_loadd(7, c1 + s * block_words, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (n_rows > 1) {
            _tile_loadd(5, a1 + s * step, 4 * row);
            _tile_dpbf16ps(2, 5, 6);
            if (n_groups > 1)
                _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, out, bytes);
    if (n_groups > 1)
        _tile_stored(1, out + 16, bytes);
    if (n_rows > 1)
        _tile_stored(2, below, bytes);
    if (n_rows > 1 && n_groups > 1)
        _tile_stored(3, below + 16, bytes);
}

void gemm_amx(const PackedRows & rows, int64_t n_rows, const uint32_t * columns, int64_t column_group, int64_t n_groups,
              int64_t n_steps, bool add, float * out, int64_t out_stride) {
    constexpr int64_t steps_at_once = 8;  // two groups of rows and two of columns then fit in the first cache
    const TileConfig  config;
    _tile_loadconfig(&config);
    for (int64_t first = 0; first < n_steps; first += steps_at_once) {
        const int64_t n    = n_steps - first < steps_at_once ? n_steps - first : steps_at_once;
        const bool    more = add || first > 0;
        for (int64_t r = 0; r < n_rows; r += 32) {
            const uint32_t * a0 = rows.words + r / 16 * rows.group + first * rows.step;
            const uint32_t * a1 = a0 + rows.group;
            for (int64_t g = 0; g < n_groups; g += 2) {
                const uint32_t * c0 = columns + g * column_group + first * block_words;
                const uint32_t * c1 = c0 + column_group;
                float * const    to = out + r * out_stride + 16 * g;
                if (r + 16 < n_rows && g + 1 < n_groups) {
                    amx_tile<2, 2>(a0, a1, rows.row, rows.step, c0, c1, n, more, to, out_stride);
                } else if (r + 16 < n_rows) {
                    amx_tile<2, 1>(a0, a1, rows.row, rows.step, c0, c1, n, more, to, out_stride);
                } else if (g + 1 < n_groups) {
                    amx_tile<1, 2>(a0, a1, rows.row, rows.step, c0, c1, n, more, to, out_stride);
                } else {
                    amx_tile<1, 1>(a0, a1, rows.row, rows.step, c0, c1, n, more, to, out_stride);
                }
            }
        }
    }
    _tile_release();
}

}  // namespace

}  // namespace pcr
