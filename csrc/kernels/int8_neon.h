// NEON, with or without dot products. See int8.h.
#pragma once

#include "kernels/int8_128.h"

namespace pcr {

namespace {

// The bytes of a place shifted by as many bits as it takes.
PCR_INLINE CodeLanes shifted_right(CodeLanes v, int place, int a, int b, int c, int d) {
    return v >> static_cast<uint8_t>(place == 0 ? a : place == 1 ? b : place == 2 ? c : d);
}

// The scales and minima of Q4_K or Q5_K, d and dmin (F16) multiplied in.
PCR_INLINE void scales_q45_k(const uint8_t * from, int64_t bytes, int turn, FloatLanes (&out)[2][2]) {
    static const uint8_t lower_at[16] = {4, 7, 12, 15, 5, 6, 13, 14, 8, 11, 12, 15, 9, 10, 13, 14};
    static const uint8_t upper_at[16] = {255, 255, 4, 7, 255, 255, 5, 6, 255, 255, 8, 11, 255, 255, 9, 10};
    static const int8_t  shift[16]    = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -4, -4, 0, 0, -4, -4};
    const uint8x16_t     head         = vld1q_u8(from + bytes * turn);
    const uint8x16_t     lower        = vshlq_u8(vqtbl1q_u8(head, vld1q_u8(lower_at)), vld1q_s8(shift));
    const uint8x16_t     upper        = vshrq_n_u8(vqtbl1q_u8(head, vld1q_u8(upper_at)), 2);
    const uint8x16_t     codes =
        vorrq_u8(vandq_u8(lower, vreinterpretq_u8_u32(vdupq_n_u32(0x0f0f3f3fu))), vandq_u8(upper, vdupq_n_u8(0x30)));
    const uint16x8_t  words[2] = {vmovl_u8(vget_low_u8(codes)), vmovl_high_u8(codes)};
    const float32x4_t d        = vcvt_f32_f16(vreinterpret_f16_u8(vget_low_u8(head)));  // and dmin
    out[0][0]                  = (FloatLanes)vmulq_laneq_f32(vcvtq_f32_u32(vmovl_u16(vget_low_u16(words[0]))), d, 0);
    out[0][1]                  = (FloatLanes)vmulq_laneq_f32(vcvtq_f32_u32(vmovl_high_u16(words[0])), d, 0);
    out[1][0]                  = (FloatLanes)vmulq_laneq_f32(vcvtq_f32_u32(vmovl_u16(vget_low_u16(words[1]))), d, 1);
    out[1][1]                  = (FloatLanes)vmulq_laneq_f32(vcvtq_f32_u32(vmovl_high_u16(words[1])), d, 1);
}

PCR_INLINE int32x4_t sums_of_pairs(int32x4_t first, int32x4_t second, int32x4_t third, int32x4_t fourth) {
    return vpaddq_s32(vpaddq_s32(first, second), vpaddq_s32(third, fourth));
}

#if defined(__ARM_FEATURE_DOTPROD)

#  define PCR_INT8_ADD_DOT 1
// sum + sums of four neighbouring products. Codes are -128..127.
PCR_INLINE IntLanes add_dot(IntLanes sum, CodeLanes codes, CodeLanes x) {
    return (IntLanes)vdotq_s32((int32x4_t)sum, (int8x16_t)codes, (int8x16_t)x);
}

// start + the sums of the four places' products.
template <Codes> PCR_INLINE IntLanes dot(IntLanes start, const CodeLanes (&codes)[4], const CodeLanes (&x)[4]) {
    const auto of = [&](int place) PCR_LAMBDA { return (int32x4_t)add_dot(IntLanes{}, codes[place], x[place]); };
    return start + (IntLanes)sums_of_pairs(of(0), of(1), of(2), of(3));
}

// Both halves of a set.
template <Codes> PCR_INLINE IntLanes dot_halves(const CodeLanes (&codes)[2][4], const CodeLanes (&x)[2][4]) {
    const auto of = [&](int place) PCR_LAMBDA {
        return (int32x4_t)add_dot(add_dot(IntLanes{}, codes[0][place], x[0][place]), codes[1][place], x[1][place]);
    };
    return (IntLanes)sums_of_pairs(of(0), of(1), of(2), of(3));
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

// Both halves of a set.
template <Codes kind> PCR_INLINE IntLanes dot_halves(const CodeLanes (&codes)[2][4], const CodeLanes (&x)[2][4]) {
    if (kind == Codes::bytes) {
        return dot<kind>(dot<kind>(IntLanes{}, codes[0], x[0]), codes[1], x[1]);
    }
    const auto four = [&](int place) PCR_LAMBDA {
        int16x8_t sum = vdupq_n_s16(0);
        PCR_UNROLL
        for (int half = 0; half < 2; half++) {
            const int8x16_t w = (int8x16_t)codes[half][place], y = (int8x16_t)x[half][place];
            sum = vmlal_high_s8(vmlal_s8(sum, vget_low_s8(w), vget_low_s8(y)), w, y);
        }
        return sum;
    };
    return (IntLanes)vpaddq_s32(vpaddlq_s16(vpaddq_s16(four(0), four(1))), vpaddlq_s16(vpaddq_s16(four(2), four(3))));
}

#endif

}  // namespace

}  // namespace pcr
