// 128 bits, on any processor: SSE2 on x86-64. See int8.h.
#pragma once

#include "kernels/int8_128.h"

namespace pcr {

namespace {

// Words of the four places shifted by so many bits; bits of neighbouring bytes come along. Shifts of single lanes are slow.
PCR_INLINE CodeLanes shifted_right(CodeLanes v, int, int a, int b, int c, int d) {
    typedef uint32_t Words __attribute__((vector_size(16)));
    const auto       words = (Words)v;
    const auto       by    = [&](int n) PCR_LAMBDA { return words >> static_cast<uint32_t>(n); };
    if (a == c && b == d) {
        return (CodeLanes)((by(a) & Words{~0u, 0, ~0u, 0}) | (by(b) & Words{0, ~0u, 0, ~0u}));
    }
    return (CodeLanes)((by(a) & Words{~0u, 0, 0, 0}) | (by(b) & Words{0, ~0u, 0, 0}) | (by(c) & Words{0, 0, ~0u, 0}) |
                       (by(d) & Words{0, 0, 0, ~0u}));
}

// Four bytes in the order of their places -> F32.
PCR_INLINE FloatLanes wide(uint32_t four) {
#if defined(__SSE2__)  // compilers widen 4 bytes one by one
    const __m128i zero = _mm_setzero_si128(), bytes = _mm_cvtsi32_si128(static_cast<int>(four));
    return (FloatLanes)_mm_cvtepi32_ps(_mm_unpacklo_epi16(_mm_unpacklo_epi8(bytes, zero), zero));
#else
    typedef uint8_t Four __attribute__((vector_size(4)));
    return __builtin_convertvector(__builtin_convertvector(load<Four>(&four), IntLanes), FloatLanes);
#endif
}

// The scales and minima of Q4_K or Q5_K, d and dmin (F16) multiplied in.
PCR_INLINE void scales_q45_k(const uint8_t * from, int64_t bytes, int turn, FloatLanes (&out)[2][2]) {
    const uint8_t * block = from + bytes * turn;
    uint32_t        a, b, c;
    std::memcpy(&a, block + 4, 4);
    std::memcpy(&b, block + 8, 4);
    std::memcpy(&c, block + 12, 4);
    const uint32_t scales[2] = {a & 0x3f3f3f3fu, (c & 0x0f0f0f0fu) | ((a >> 2) & 0x30303030u)};
    const uint32_t minima[2] = {b & 0x3f3f3f3fu, ((c >> 4) & 0x0f0f0f0fu) | ((b >> 2) & 0x30303030u)};
    // Bytes 0 and 3 of both, or 1 and 2.
    const auto outer = [](const uint32_t (&of)[2]) {
        return (of[0] & 0xffu) | ((of[0] >> 16) & 0xff00u) | ((of[1] & 0xffu) << 16) | (of[1] & 0xff000000u);
    };
    const auto inner = [](const uint32_t (&of)[2]) { return ((of[0] >> 8) & 0xffffu) | ((of[1] << 8) & 0xffff0000u); };
    out[0][0]        = wide(outer(scales)) * half(block);
    out[0][1]        = wide(inner(scales)) * half(block);
    out[1][0]        = wide(outer(minima)) * half(block + 2);
    out[1][1]        = wide(inner(minima)) * half(block + 2);
}

#if defined(__SSE2__)

// start + sums of the four quads' products. Codes and x are signed bytes.
template <Codes> PCR_INLINE IntLanes dot(IntLanes start, const CodeLanes (&codes)[4], const CodeLanes (&x)[4]) {
    const __m128i zero = _mm_setzero_si128();
    const auto    low  = [&](CodeLanes v) PCR_LAMBDA { return _mm_srai_epi16(_mm_unpacklo_epi8(zero, (__m128i)v), 8); };
    const auto    high = [&](CodeLanes v) PCR_LAMBDA { return _mm_srai_epi16(_mm_unpackhi_epi8(zero, (__m128i)v), 8); };
    // Sums of pairs: quads of the first two sub-blocks, and of the others.
    __m128i first = zero, second = zero;
    PCR_UNROLL
    for (int m = 0; m < 4; m++) {
        first  = _mm_add_epi32(first, _mm_madd_epi16(low(codes[m]), low(x[m])));
        second = _mm_add_epi32(second, _mm_madd_epi16(high(codes[m]), high(x[m])));
    }
    const auto a = (IntLanes)first, b = (IntLanes)second;
    return start + __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
}

#else

template <Codes> PCR_INLINE IntLanes dot(IntLanes start, const CodeLanes (&codes)[4], const CodeLanes (&x)[4]) {
    for (int m = 0; m < 4; m++) {
        for (int i = 0; i < 16; i++) {
            start[i / 4] += static_cast<int8_t>(codes[m][i]) * static_cast<int8_t>(x[m][i]);
        }
    }
    return start;
}

#endif

// Both halves of a set.
template <Codes kind> PCR_INLINE IntLanes dot_halves(const CodeLanes (&codes)[2][4], const CodeLanes (&x)[2][4]) {
    return dot<kind>(dot<kind>(IntLanes{}, codes[0], x[0]), codes[1], x[1]);
}

}  // namespace

}  // namespace pcr
