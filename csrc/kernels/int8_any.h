// 128 bits, on any processor: half of a block at a time. See int8.h.
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
    const bool      upper  = turn % 2 == 1;
    const uint32_t  scales = upper ? (c & 0x0f0f0f0fu) | ((a >> 2) & 0x30303030u) : a & 0x3f3f3f3fu;
    const uint32_t  minima = upper ? ((c >> 4) & 0x0f0f0f0fu) | ((b >> 2) & 0x30303030u) : b & 0x3f3f3f3fu;
    typedef uint8_t Four __attribute__((vector_size(4)));
    const auto      wide = [](uint32_t four) {
        return __builtin_convertvector(__builtin_convertvector(load<Four>(&four), IntLanes), FloatLanes);
    };
    scale = wide(scales) * half(block);
    least = wide(minima) * half(block + 2);
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
    const EightWords halves[2] = {of(turn / 2), {}};
    const F          wide      = from_f16(reinterpret_cast<const uint8_t *>(halves));
    return load<FloatLanes>(reinterpret_cast<const uint8_t *>(&wide) + 16 * (turn % 2));
}

// a0 + a2, b0 + b2, a1 + a3, b1 + b3 of four lanes a and b, and then pairs of those: see sums_of_four().
PCR_INLINE IntLanes interleaved32(IntLanes a, IntLanes b) {
    return __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
}

PCR_INLINE IntLanes interleaved64(IntLanes a, IntLanes b) {
    return __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
}

// Sums of four products, in whatever order. Codes are -128..127.
PCR_INLINE IntLanes dot_codes(CodeLanes codes, CodeLanes x) {
#if defined(__SSE2__)
    const __m128i zero = _mm_setzero_si128(), w = (__m128i)codes, y = (__m128i)x;
    const auto    low  = [&](__m128i v) { return _mm_srai_epi16(_mm_unpacklo_epi8(zero, v), 8); };
    const auto    high = [&](__m128i v) { return _mm_srai_epi16(_mm_unpackhi_epi8(zero, v), 8); };
    return (IntLanes)_mm_add_epi32(_mm_madd_epi16(low(w), low(y)), _mm_madd_epi16(high(w), high(y)));
#else
    typedef int8_t  Signed __attribute__((vector_size(16)));
    typedef int32_t Wide __attribute__((vector_size(64)));
    const Wide      products = __builtin_convertvector((Signed)codes, Wide) * __builtin_convertvector((Signed)x, Wide);
    IntLanes        quarter[4];
    std::memcpy(quarter, &products, sizeof(products));
    return (quarter[0] + quarter[1]) + (quarter[2] + quarter[3]);
#endif
}

PCR_INLINE IntLanes dot_signed(const CodeLanes (&codes)[2], CodeLanes x0, CodeLanes x1) {
    return dot_codes(codes[0], x0) + dot_codes(codes[1], x1);
}

PCR_INLINE IntLanes dot_small_codes(const CodeLanes (&codes)[2], CodeLanes x0, CodeLanes x1) {
    return dot_signed(codes, x0, x1);
}

}  // namespace

}  // namespace pcr
