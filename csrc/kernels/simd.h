// Vectors of 16 lanes, which the compiler splits where registers are narrower; exp, GELU and SiLU on them; BF16.
//
// The headers of this folder are compiled once for each instruction set (table.cpp). Only their own code may be
// instantiated there: a template or inline function of the standard library would be compiled once for all, perhaps with
// instructions that an older processor lacks.
#pragma once

#include "kernels/kernels.h"

#include <cstring>

#if defined(__x86_64__)
#  include <immintrin.h>
#endif

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed among these headers' own functions only

namespace pcr {

namespace {

#define PCR_INLINE [[maybe_unused]] static inline __attribute__((always_inline))
#if defined(__clang__)
#  define PCR_UNROLL _Pragma("clang loop unroll(full)")
#else
#  define PCR_UNROLL _Pragma("GCC unroll 16")
#endif

typedef float    F __attribute__((vector_size(64)));
typedef int32_t  I __attribute__((vector_size(64)));
typedef uint32_t U __attribute__((vector_size(64)));
typedef uint8_t  B __attribute__((vector_size(16)));
typedef int8_t   S __attribute__((vector_size(16)));

// Memory need not be aligned.
template <typename V> PCR_INLINE V load(const void * from) {
    V v;
    std::memcpy(&v, from, sizeof(v));
    return v;
}

template <typename V> PCR_INLINE void store(void * to, V v) {
    std::memcpy(to, &v, sizeof(v));
}

PCR_INLINE F all(float x) {
    return x - F{};
}

PCR_INLINE F load_some(const float * from, int64_t n) {
    F v = {};
    std::memcpy(&v, from, static_cast<size_t>(n) * sizeof(float));
    return v;
}

PCR_INLINE F select(I condition, F yes, F no) {
    return (F)(((I)yes & condition) | ((I)no & ~condition));
}

PCR_INLINE F max(F a, F b) {
    return select(a > b, a, b);
}

PCR_INLINE float largest_lane(F v) {
    float lane[16];
    store(lane, v);
    for (int width = 8; width > 0; width /= 2) {
        for (int k = 0; k < width; k++) {
            lane[k] = lane[k] > lane[k + width] ? lane[k] : lane[k + width];
        }
    }
    return lane[0];
}

PCR_INLINE float sum_lanes(F v) {
    float lane[16];
    store(lane, v);
    for (int width = 8; width > 0; width /= 2) {
        for (int k = 0; k < width; k++) {
            lane[k] += lane[k + width];
        }
    }
    return lane[0];
}

// exp(x): 2^n * exp(r) with |r| <= ln(2)/2, Taylor to the 7th power. Within 2 units of the last place; 0 below -87.
PCR_INLINE F exponential(F x) {
    const F low = all(-87.3f), high = all(88.3f);
    const I under = x < low;
    x             = select(under, low, select(x > high, high, x));
    const F magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole type
    const F n     = (x * 1.44269504f + magic) - magic;
    const F r     = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    F       p     = all(1.0f / 5040.0f);
    p             = p * r + 1.0f / 720.0f;
    p             = p * r + 1.0f / 120.0f;
    p             = p * r + 1.0f / 24.0f;
    p             = p * r + 1.0f / 6.0f;
    p             = p * r + 0.5f;
    p             = p * r + 1.0f;
    p             = p * r + 1.0f;
    const I scale = (__builtin_convertvector(n, I) + 127) << 23;
    return select(under, F{}, p * (F)scale);
}

// x Phi(x), Phi the normal distribution. With u = |x| / sqrt(2), erfc(u) = exp(-g(u)), g a polynomial fitted by us on
// 0..6: erfc within 6e-8.
PCR_INLINE F gelu(F x) {
    const F magnitude = (F)((I)x & 0x7fffffff);
    F       u         = magnitude * 0.70710678f;
    u                 = select(u > 6.0f, all(6.0f), u);
    F g               = all(-4.535192132948396e-08f);
    g                 = g * u + 1.4058422266316484e-06f;
    g                 = g * u - 1.8802036720444448e-05f;
    g                 = g * u + 0.00014139812265057117f;
    g                 = g * u - 0.0006415223469957709f;
    g                 = g * u + 0.0016004553763195872f;
    g                 = g * u - 2.6415686079417355e-05f;
    g                 = g * u - 0.01926407404243946f;
    g                 = g * u + 0.10282185673713684f;
    g                 = g * u + 0.6366117000579834f;
    g                 = g * u + 1.1283795833587646f;
    const F tail      = 0.5f * x * exponential(-(g * u));
    return select(x < 0.0f, tail, x - tail);
}

PCR_INLINE F silu(F x) {
    return x / (1.0f + exponential(-x));
}

// Two times 16 values -> 32 BF16, the first 16 in front. Round to nearest, ties to even.
PCR_INLINE U bf16_words(F first, F second) {
#if defined(__AVX512BF16__)
    return (U)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
#else
    typedef uint16_t H __attribute__((vector_size(32)));
    const auto       rounded = [](F x) {
        const U bits = (U)x;
        return __builtin_convertvector((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, H);
    };
    const H halves[2] = {rounded(first), rounded(second)};
    return load<U>(halves);
#endif
}

// Words of two rows of values: lane by lane, the first row's in the lower half.
PCR_INLINE U bf16_pairs(F even, F odd) {
#if defined(__AVX512BF16__)
    const __m512i low  = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)even));
    const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)odd));
    return (U)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
#else
    const auto rounded = [](F x) {
        const U bits = (U)x;
        return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    };
    return rounded(even) | (rounded(odd) << 16);
#endif
}

PCR_INLINE void transpose(U (&v)[16]) {
    // Lanes are exchanged between registers 1, 2, 4 and 8 apart.
    PCR_UNROLL
    for (int i = 0; i < 16; i += 2) {
        const U a = v[i], b = v[i + 1];
        v[i]     = __builtin_shufflevector(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
        v[i + 1] = __builtin_shufflevector(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
    }
    PCR_UNROLL
    for (int h = 0; h < 16; h += 4) {
        PCR_UNROLL
        for (int i = h; i < h + 2; i++) {
            const U a = v[i], b = v[i + 2];
            v[i]     = __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
            v[i + 2] = __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
        }
    }
    PCR_UNROLL
    for (int h = 0; h < 16; h += 8) {
        PCR_UNROLL
        for (int i = h; i < h + 4; i++) {
            const U a = v[i], b = v[i + 4];
            v[i]     = __builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
            v[i + 4] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
        }
    }
    PCR_UNROLL
    for (int i = 0; i < 8; i++) {
        const U a = v[i], b = v[i + 8];
        v[i]     = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
        v[i + 8] = __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    }
}

}  // namespace

}  // namespace pcr
