// NEON, with or without dot products: half of a block at a time. See int8.h.
#pragma once

#include "kernels/unpack.h"

namespace pcr {

namespace {

constexpr int  int8_width  = 16;
constexpr bool int8_biased = false;

typedef uint8_t CodeLanes __attribute__((vector_size(16)));
typedef int32_t IntLanes __attribute__((vector_size(16)));
typedef float   FloatLanes __attribute__((vector_size(16)));

// 16 bytes of the turn's block: at `first` in its first turn, at `second` in its second one.
PCR_INLINE CodeLanes code_lanes(const uint8_t * from, int64_t bytes, int first, int second, int turn) {
    return load<CodeLanes>(from + bytes * (turn / 2) + (turn % 2 == 0 ? first : second));
}

PCR_INLINE CodeLanes shifted_right(CodeLanes v, int first, int second, int turn) {
    return v >> static_cast<uint8_t>(turn % 2 == 0 ? first : second);
}

// 16 bytes at 32 j + 16 h, and 16 bytes 64 behind.
PCR_INLINE void code_lanes_128(const uint8_t * from, int64_t bytes, int turn, CodeLanes (&out)[2][2]) {
    PCR_UNROLL
    for (int i = 0; i < 4; i++) {
        out[i / 2][i % 2] = code_lanes(from, bytes, 16 * i, 16 * i + 64, turn);
    }
}

// The scales and minima of Q4_K or Q5_K, d and dmin (F16) multiplied in. 12 bytes hold 8 scales and 8 minima of 6 bits: the
// first four of each in the lower bits of bytes 0..3 and 4..7, the others' lower bits in the nibbles of 8..11, their upper
// ones at the top of 0..3 and 4..7.
PCR_INLINE void scales_q45_k(const uint8_t * from, int64_t bytes, int turn, FloatLanes & scale, FloatLanes & least) {
    const uint8_t * block = from + bytes * (turn / 2);
    uint32_t        a, b, c;
    std::memcpy(&a, block + 4, 4);
    std::memcpy(&b, block + 8, 4);
    std::memcpy(&c, block + 12, 4);
    const bool        upper  = turn % 2 == 1;
    const uint32_t    scales = upper ? (c & 0x0f0f0f0fu) | ((a >> 2) & 0x30303030u) : a & 0x3f3f3f3fu;
    const uint32_t    minima = upper ? ((c >> 4) & 0x0f0f0f0fu) | ((b >> 2) & 0x30303030u) : b & 0x3f3f3f3fu;
    const uint16x8_t  both   = vmovl_u8(vcreate_u8(scales | uint64_t(minima) << 32));
    const float32x4_t d      = vcvt_f32_f16(vreinterpret_f16_u32(vdup_n_u32(load<uint32_t>(block))));  // and dmin
    scale                    = (FloatLanes)vmulq_laneq_f32(vcvtq_f32_u32(vmovl_u16(vget_low_u16(both))), d, 0);
    least                    = (FloatLanes)vmulq_laneq_f32(vcvtq_f32_u32(vmovl_high_u16(both)), d, 1);
}

// 4 of 8 numbers of the turn's block, 16-bit integers or F16; or one number.
template <typename Of> PCR_INLINE FloatLanes from_words(int turn, Of of) {
    typedef int16_t  Four __attribute__((vector_size(8)));
    const EightWords words = of(turn / 2);
    Four             four[2];
    std::memcpy(four, &words, sizeof(words));
    return __builtin_convertvector(__builtin_convertvector(four[turn % 2], IntLanes), FloatLanes);
}

template <typename Of> PCR_INLINE FloatLanes each_block(int turn, Of of) {
    return of(turn / 2) - FloatLanes{};
}

template <typename Of> PCR_INLINE FloatLanes from_halves(int turn, Of of) {
    const float16x8_t halves = vreinterpretq_f16_s16((int16x8_t)of(turn / 2));
    return (FloatLanes)vcvt_f32_f16(turn % 2 == 0 ? vget_low_f16(halves) : vget_high_f16(halves));
}

// Sums of neighbouring lanes: see sums_of_four().
PCR_INLINE IntLanes interleaved32(IntLanes a, IntLanes b) {
    return (IntLanes)vpaddq_s32((int32x4_t)a, (int32x4_t)b);
}

PCR_INLINE IntLanes interleaved64(IntLanes a, IntLanes b) {
    return interleaved32(a, b);
}

#if defined(__ARM_FEATURE_DOTPROD)
// sum + sums of four products. Codes are -128..127.
PCR_INLINE IntLanes add_dot(IntLanes sum, CodeLanes codes, CodeLanes x) {
    return (IntLanes)vdotq_s32((int32x4_t)sum, (int8x16_t)codes, (int8x16_t)x);
}

PCR_INLINE IntLanes dot_codes(CodeLanes codes, CodeLanes x) {
    return add_dot(IntLanes{}, codes, x);
}

PCR_INLINE IntLanes dot_signed(const CodeLanes (&codes)[2], CodeLanes x0, CodeLanes x1) {
    return add_dot(dot_codes(codes[0], x0), codes[1], x1);
}

PCR_INLINE IntLanes dot_small_codes(const CodeLanes (&codes)[2], CodeLanes x0, CodeLanes x1) {
    return dot_signed(codes, x0, x1);
}
#else
// Sums of two products. 16 bits hold two of any codes (x is -127..127), and eight of codes below 32.
PCR_INLINE int16x8_t two_products(CodeLanes codes, CodeLanes x) {
    const int8x16_t w = (int8x16_t)codes, y = (int8x16_t)x;
    return vmlal_high_s8(vmull_s8(vget_low_s8(w), vget_low_s8(y)), w, y);
}

// Sums of four products, in whatever order: all four lanes are added up.
PCR_INLINE IntLanes dot_codes(CodeLanes codes, CodeLanes x) {
    return (IntLanes)vpaddlq_s16(two_products(codes, x));
}

PCR_INLINE IntLanes dot_signed(const CodeLanes (&codes)[2], CodeLanes x0, CodeLanes x1) {
    return (IntLanes)vpadalq_s16(vpaddlq_s16(two_products(codes[0], x0)), two_products(codes[1], x1));
}

PCR_INLINE IntLanes dot_small_codes(const CodeLanes (&codes)[2], CodeLanes x0, CodeLanes x1) {
    const int8x16_t w = (int8x16_t)codes[1], y = (int8x16_t)x1;
    const int16x8_t three = vmlal_s8(two_products(codes[0], x0), vget_low_s8(w), vget_low_s8(y));
    return (IntLanes)vpaddlq_s16(vmlal_high_s8(three, w, y));
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
