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

}  // namespace

}  // namespace pcr
