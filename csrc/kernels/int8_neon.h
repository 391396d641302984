// NEON, with or without dot products. See int8.h.
#pragma once

#include "kernels/int8_128.h"

namespace pcr {

namespace {

// Words of the four places shifted by so many bits; bits of neighbouring bytes come along.
PCR_INLINE CodeLanes shifted_right(CodeLanes v, int a, int b, int c, int d) {
    const int32_t by[4] = {-a, -b, -c, -d};
    return (CodeLanes)vshlq_u32((uint32x4_t)v, vld1q_s32(by));
}

#if defined(__ARM_FEATURE_DOTPROD)

// sum + sums of four neighbouring products. Codes are -128..127.
PCR_INLINE IntLanes add_dot(IntLanes sum, CodeLanes codes, CodeLanes x) {
    return (IntLanes)vdotq_s32((int32x4_t)sum, (int8x16_t)codes, (int8x16_t)x);
}

// start + sums of the four quads' products.
template <Codes> PCR_INLINE IntLanes dot(IntLanes start, const CodeLanes (&codes)[4], const CodeLanes (&x)[4]) {
    PCR_UNROLL
    for (int m = 0; m < 4; m++) {
        start = add_dot(start, codes[m], x[m]);
    }
    return start;
}

#else

// start + sums of the four quads' products: 16 bits hold the sum of four of codes below 64, and of two of any.
template <Codes kind> PCR_INLINE IntLanes dot(IntLanes start, const CodeLanes (&codes)[4], const CodeLanes (&x)[4]) {
    constexpr int together = kind == Codes::bytes ? 2 : 4;
    PCR_UNROLL
    for (int first = 0; first < 4; first += together) {
        int16x8_t low, high;  // of the first two sub-blocks, and of the others
        PCR_UNROLL
        for (int m = first; m < first + together; m++) {
            const int8x16_t w = (int8x16_t)codes[m], y = (int8x16_t)x[m];
            low = m == first ? vmull_s8(vget_low_s8(w), vget_low_s8(y)) : vmlal_s8(low, vget_low_s8(w), vget_low_s8(y));
            high = m == first ? vmull_high_s8(w, y) : vmlal_high_s8(high, w, y);
        }
        start += (IntLanes)vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
    }
    return start;
}

#endif

#if defined(__ARM_FEATURE_DOTPROD)
#  define PCR_INT8_GEMM 1
// Sums of products of 4 values in each lane: over n_quads, of n_rows rows and n_vectors vectors of x. word(r, q): 4 codes of
// a row, for all lanes; start(r): what its sums begin with; x(v, q): 4 values of each lane. small: codes are 0..31; bytes:
// any signed byte; else -32..31.
template <bool small, bool bytes, int n_rows, int n_vectors, int n_quads, typename Word, typename Start, typename X>
PCR_INLINE void int8_products(Word word, Start, X x, IntLanes (&sums)[n_rows][n_vectors]) {
    PCR_UNROLL
    for (int r = 0; r < n_rows; r++) {
        PCR_UNROLL
        for (int v = 0; v < n_vectors; v++) {
            sums[r][v] = IntLanes{};
        }
    }
    PCR_UNROLL
    for (int q = 0; q < n_quads; q++) {
        PCR_UNROLL
        for (int r = 0; r < n_rows; r++) {
            const CodeLanes codes = (CodeLanes)vdupq_n_s32(word(r, q));
            PCR_UNROLL
            for (int v = 0; v < n_vectors; v++) {
                sums[r][v] = add_dot(sums[r][v], codes, x(v, q));
            }
        }
    }
}
#endif

}  // namespace

}  // namespace pcr
