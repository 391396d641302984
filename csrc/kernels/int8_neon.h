// NEON, with or without dot products. See int8.h.
#pragma once

#include "kernels/int8_128.h"

namespace pcr {

namespace {

// The bytes of a place shifted by as many bits as it takes.
PCR_INLINE CodeLanes shifted_right(CodeLanes v, int place, int a, int b, int c, int d) {
    return v >> static_cast<uint8_t>(place == 0 ? a : place == 1 ? b : place == 2 ? c : d);
}

PCR_INLINE int32x4_t sums_of_pairs(int32x4_t first, int32x4_t second, int32x4_t third, int32x4_t fourth) {
    return vpaddq_s32(vpaddq_s32(first, second), vpaddq_s32(third, fourth));
}

#if defined(__ARM_FEATURE_DOTPROD)

// sum + sums of four neighbouring products. Codes are -128..127.
PCR_INLINE IntLanes add_dot(IntLanes sum, CodeLanes codes, CodeLanes x) {
    return (IntLanes)vdotq_s32((int32x4_t)sum, (int8x16_t)codes, (int8x16_t)x);
}

// start + the sums of the four places' products.
template <Codes> PCR_INLINE IntLanes dot(IntLanes start, const CodeLanes (&codes)[4], const CodeLanes (&x)[4]) {
    const auto of = [&](int place) PCR_LAMBDA { return (int32x4_t)add_dot(IntLanes{}, codes[place], x[place]); };
    return start + (IntLanes)sums_of_pairs(of(0), of(1), of(2), of(3));
}

#else

// start + the sums of the four places' products. 16 bits hold the sum of two products of any codes, of four below 64 and of
// eight below 32.
template <Codes kind> PCR_INLINE IntLanes dot(IntLanes start, const CodeLanes (&codes)[4], const CodeLanes (&x)[4]) {
    const auto two = [&](int place) PCR_LAMBDA {
        const int8x16_t w = (int8x16_t)codes[place], y = (int8x16_t)x[place];
        return vmlal_high_s8(vmull_s8(vget_low_s8(w), vget_low_s8(y)), w, y);
    };
    if (kind == Codes::bytes) {
        return start + (IntLanes)sums_of_pairs(vpaddlq_s16(two(0)), vpaddlq_s16(two(1)), vpaddlq_s16(two(2)),
                                               vpaddlq_s16(two(3)));
    }
    const int16x8_t first = vpaddq_s16(two(0), two(1)), second = vpaddq_s16(two(2), two(3));
    return start + (IntLanes)(kind == Codes::small ? vpaddlq_s16(vpaddq_s16(first, second))
                                                   : vpaddq_s32(vpaddlq_s16(first), vpaddlq_s16(second)));
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
