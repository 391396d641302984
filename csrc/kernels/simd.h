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
#elif defined(__aarch64__)
#  include <arm_neon.h>
#endif

// Dot products of BF16 pairs, in vectors.
#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#  define PCR_BF16 1
#endif

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed among these headers' own functions only

namespace pcr {

namespace {

#define PCR_INLINE [[maybe_unused]] static inline __attribute__((always_inline))
#define PCR_LAMBDA __attribute__((always_inline))
#if defined(__clang__)
#  define PCR_UNROLL _Pragma("clang loop unroll(full)")
#else
#  define PCR_UNROLL _Pragma("GCC unroll 16")
#endif

// Lanes of a register.
#if defined(__AVX512F__)
constexpr int lanes = 16;
#elif defined(__AVX2__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif
constexpr int parts = 16 / lanes;  // registers of 16 lanes

typedef float    FloatRegister __attribute__((vector_size(4 * lanes)));
typedef int32_t  IntRegister __attribute__((vector_size(4 * lanes)));
typedef uint32_t UintRegister __attribute__((vector_size(4 * lanes)));
typedef uint8_t  B __attribute__((vector_size(16)));

// Calls with 0, 1 ... parts - 1. Written out, not as a loop: compilers keep arrays in registers whose indices are constants
// from the beginning.
template <typename Call> PCR_INLINE void each_part(Call call) {
    call(0);
    if constexpr (parts > 1) {
        call(1);
    }
    if constexpr (parts > 2) {
        call(2);
        call(3);
    }
}

// 16 lanes in as many registers as they take: with vectors longer than a register, compilers go lane by lane.
template <typename Register> struct Lanes {
    Register part[parts];

    Lanes() = default;
    // Takes the bits of other lanes.
    template <typename Other> inline __attribute__((always_inline)) explicit Lanes(const Lanes<Other> & bits) {
        each_part([&](int p) PCR_LAMBDA { part[p] = (Register)bits.part[p]; });
    }
};

using F = Lanes<FloatRegister>;
using I = Lanes<IntRegister>;
using U = Lanes<UintRegister>;

template <typename Register, typename Call> PCR_INLINE Lanes<Register> by_parts(Call call) {
    Lanes<Register> result;
    each_part([&](int p) PCR_LAMBDA { result.part[p] = (Register)call(p); });
    return result;
}

// Memory need not be aligned.
template <typename V> struct Memory {
    static inline __attribute__((always_inline)) V load(const void * from) {
        V v;
        std::memcpy(&v, from, sizeof(v));
        return v;
    }
    static inline __attribute__((always_inline)) void store(void * to, const V & v) { std::memcpy(to, &v, sizeof(v)); }
};

template <typename Register> struct Memory<Lanes<Register>> {
    static inline __attribute__((always_inline)) Lanes<Register> load(const void * from) {
        return by_parts<Register>(
            [&](int p) PCR_LAMBDA { return Memory<Register>::load(static_cast<const Register *>(from) + p); });
    }
    static inline __attribute__((always_inline)) void store(void * to, const Lanes<Register> & v) {
        each_part([&](int p) PCR_LAMBDA { Memory<Register>::store(static_cast<Register *>(to) + p, v.part[p]); });
    }
};

template <typename V> PCR_INLINE V load(const void * from) {
    return Memory<V>::load(from);
}

template <typename V> PCR_INLINE void store(void * to, const V & v) {
    Memory<V>::store(to, v);
}

template <typename Register> struct LaneOf;
template <> struct LaneOf<FloatRegister> {
    using type = float;
};
template <> struct LaneOf<IntRegister> {
    using type = int32_t;
};
template <> struct LaneOf<UintRegister> {
    using type = uint32_t;
};
template <typename Register> using Lane = typename LaneOf<Register>::type;

// Lane by lane; one side may be a number.
#define PCR_OPERATOR(op, Result)                                                                         \
    template <typename V> PCR_INLINE Lanes<Result> operator op(const Lanes<V> & a, const Lanes<V> & b) { \
        return by_parts<Result>([&](int p) PCR_LAMBDA { return a.part[p] op b.part[p]; });               \
    }                                                                                                    \
    template <typename V> PCR_INLINE Lanes<Result> operator op(const Lanes<V> & a, Lane<V> b) {          \
        return by_parts<Result>([&](int p) PCR_LAMBDA { return a.part[p] op b; });                       \
    }                                                                                                    \
    template <typename V> PCR_INLINE Lanes<Result> operator op(Lane<V> a, const Lanes<V> & b) {          \
        return by_parts<Result>([&](int p) PCR_LAMBDA { return a op b.part[p]; });                       \
    }
PCR_OPERATOR(+, V)
PCR_OPERATOR(-, V)
PCR_OPERATOR(*, V)
PCR_OPERATOR(/, V)
PCR_OPERATOR(&, V)
PCR_OPERATOR(|, V)
PCR_OPERATOR(^, V)
PCR_OPERATOR(<<, V)
PCR_OPERATOR(>>, V)
PCR_OPERATOR(<, IntRegister)
PCR_OPERATOR(>, IntRegister)
PCR_OPERATOR(>=, IntRegister)
#undef PCR_OPERATOR

template <typename V> PCR_INLINE Lanes<V> operator-(const Lanes<V> & a) {
    return by_parts<V>([&](int p) PCR_LAMBDA { return -a.part[p]; });
}

template <typename V> PCR_INLINE void operator+=(Lanes<V> & a, const Lanes<V> & b) {
    a = a + b;
}

PCR_INLINE F all(float x) {
    return by_parts<FloatRegister>([&](int) PCR_LAMBDA { return x - FloatRegister{}; });
}

PCR_INLINE F load_some(const float * from, int64_t n) {
    float some[16] = {};
    std::memcpy(some, from, static_cast<size_t>(n) * sizeof(float));
    return load<F>(some);
}

PCR_INLINE void store_some(float * to, const F & v, int64_t n) {
    float some[16];
    store(some, v);
    std::memcpy(to, some, static_cast<size_t>(n) * sizeof(float));
}

PCR_INLINE I to_int(const F & x) {  // rounds towards 0
    return by_parts<IntRegister>([&](int p) PCR_LAMBDA { return __builtin_convertvector(x.part[p], IntRegister); });
}

PCR_INLINE F to_float(const I & x) {
    return by_parts<FloatRegister>([&](int p) PCR_LAMBDA { return __builtin_convertvector(x.part[p], FloatRegister); });
}

#if defined(__aarch64__)
PCR_INLINE I widened_bytes(uint8x16_t v) {
    const uint16x8_t low = vmovl_u8(vget_low_u8(v)), high = vmovl_high_u8(v);
    return by_parts<IntRegister>([&](int p) PCR_LAMBDA {
        const uint16x8_t half = p < 2 ? low : high;
        return p % 2 == 0 ? vmovl_u16(vget_low_u16(half)) : vmovl_high_u16(half);
    });
}

PCR_INLINE I widened_bytes(int8x16_t v) {
    const int16x8_t low = vmovl_s8(vget_low_s8(v)), high = vmovl_high_s8(v);
    return by_parts<IntRegister>([&](int p) PCR_LAMBDA {
        const int16x8_t half = p < 2 ? low : high;
        return p % 2 == 0 ? vmovl_s16(vget_low_s16(half)) : vmovl_high_s16(half);
    });
}
#endif

// 16 smaller integers.
template <typename Integer> PCR_INLINE I widened(const void * from) {
#if defined(__aarch64__)
    if constexpr (sizeof(Integer) == 1) {  // compilers widen 4 bytes at a time one by one
        typedef Integer Bytes __attribute__((vector_size(16)));
        return widened_bytes(load<Bytes>(from));
    }
#endif
    typedef Integer V __attribute__((vector_size(lanes * sizeof(Integer))));
    return by_parts<IntRegister>([&](int p) PCR_LAMBDA {
        return __builtin_convertvector(load<V>(static_cast<const Integer *>(from) + lanes * p), IntRegister);
    });
}

// The lower bytes of 16 integers -128..127.
PCR_INLINE void store_bytes(void * to, const I & v) {
#if defined(__AVX512F__)
    _mm_storeu_si128(static_cast<__m128i *>(to), _mm512_cvtepi32_epi8((__m512i)v.part[0]));
#elif defined(__AVX2__)
    const __m256i words = _mm256_packs_epi32((__m256i)v.part[0], (__m256i)v.part[1]);
    const __m256i bytes =
        _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words, words), _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5));
    _mm_storeu_si128(static_cast<__m128i *>(to), _mm256_castsi256_si128(bytes));
#elif defined(__SSE2__)
    const __m128i low  = _mm_packs_epi32((__m128i)v.part[0], (__m128i)v.part[1]);
    const __m128i high = _mm_packs_epi32((__m128i)v.part[2], (__m128i)v.part[3]);
    _mm_storeu_si128(static_cast<__m128i *>(to), _mm_packs_epi16(low, high));
#elif defined(__aarch64__)
    const auto words = [&](int p) {
        return vcombine_s16(vmovn_s32((int32x4_t)v.part[p]), vmovn_s32((int32x4_t)v.part[p + 1]));
    };
    vst1q_s8(static_cast<int8_t *>(to), vcombine_s8(vmovn_s16(words(0)), vmovn_s16(words(2))));
#else
    int32_t lane[16];
    store(lane, v);
    for (int i = 0; i < 16; i++) {
        static_cast<int8_t *>(to)[i] = static_cast<int8_t>(lane[i]);
    }
#endif
}

PCR_INLINE F select(const I & condition, const F & yes, const F & no) {
    return by_parts<FloatRegister>([&](int p) PCR_LAMBDA { return condition.part[p] ? yes.part[p] : no.part[p]; });
}

PCR_INLINE F max(const F & a, const F & b) {
    return by_parts<FloatRegister>([&](int p) PCR_LAMBDA { return a.part[p] > b.part[p] ? a.part[p] : b.part[p]; });
}

typedef float F4 __attribute__((vector_size(16)));

// 4 x 4 words, whatever they are.
template <typename V> PCR_INLINE void transpose_four(V (&v)[4]) {
    const auto first = [&](int i) PCR_LAMBDA { return __builtin_shufflevector((F4)v[i], (F4)v[i + 1], 0, 4, 1, 5); };
    const auto last  = [&](int i) PCR_LAMBDA { return __builtin_shufflevector((F4)v[i], (F4)v[i + 1], 2, 6, 3, 7); };
    const F4   a = first(0), b = first(2), c = last(0), d = last(2);
    v[0] = (V)__builtin_shufflevector(a, b, 0, 1, 4, 5);
    v[1] = (V)__builtin_shufflevector(a, b, 2, 3, 6, 7);
    v[2] = (V)__builtin_shufflevector(c, d, 0, 1, 4, 5);
    v[3] = (V)__builtin_shufflevector(c, d, 2, 3, 6, 7);
}

// Folds the upper half onto the lower one until one lane is left.
template <typename Fold> PCR_INLINE float fold_four(F4 four, Fold fold) {
    four = fold(four, __builtin_shufflevector(four, four, 2, 3, 2, 3));
    four = fold(four, __builtin_shufflevector(four, four, 1, 1, 1, 1));
    return four[0];
}

template <typename Fold> PCR_INLINE float fold_lanes(const F & v, Fold fold) {
    float lane[16];
    store(lane, v);
    const F4 quarter[4] = {load<F4>(lane), load<F4>(lane + 4), load<F4>(lane + 8), load<F4>(lane + 12)};
    return fold_four(fold(fold(quarter[0], quarter[2]), fold(quarter[1], quarter[3])), fold);
}

PCR_INLINE float largest_lane(const F & v) {
    return fold_lanes(v, [](F4 a, F4 b) PCR_LAMBDA { return a > b ? a : b; });
}

PCR_INLINE float sum_lanes(const F & v) {
    return fold_lanes(v, [](F4 a, F4 b) PCR_LAMBDA { return a + b; });
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
    const I scale = (to_int(n) + 127) << 23;
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

// BF16 in the lower halves of the lanes. Round to nearest, ties to even.
PCR_INLINE U bf16_bits(const F & x) {
    const U bits = (U)x;
    return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

// Two times 16 values -> 32 BF16, the first 16 in front.
PCR_INLINE U bf16_words(const F & first, const F & second) {
#if defined(__AVX512BF16__)
    U words;
    words.part[0] = (UintRegister)_mm512_cvtne2ps_pbh((__m512)second.part[0], (__m512)first.part[0]);
    return words;
#elif defined(PCR_BF16)
    return by_parts<UintRegister>([&](int p) PCR_LAMBDA {
        const F &          of    = p < 2 ? first : second;
        const float32x4_t  low   = (float32x4_t)of.part[2 * (p % 2)];
        const bfloat16x8_t words = vcvtq_low_bf16_f32(low);
        return vreinterpretq_u32_bf16(vcvtq_high_bf16_f32(words, (float32x4_t)of.part[2 * (p % 2) + 1]));
    });
#else
    uint32_t bits[2][16];
    uint16_t halves[32];
    store(bits[0], bf16_bits(first));
    store(bits[1], bf16_bits(second));
    for (int i = 0; i < 32; i++) {
        halves[i] = static_cast<uint16_t>(bits[i / 16][i % 16]);
    }
    return load<U>(halves);
#endif
}

// Words of two rows of values: lane by lane, the first row's in the lower half.
PCR_INLINE U bf16_pairs(const F & even, const F & odd) {
#if defined(__AVX512BF16__)
    const __m512i low  = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)even.part[0]));
    const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)odd.part[0]));
    U             words;
    words.part[0] = (UintRegister)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
    return words;
#elif defined(PCR_BF16)
    return by_parts<UintRegister>([&](int p) PCR_LAMBDA {
        const auto words = [&](const F & of) PCR_LAMBDA {
            return vreinterpretq_u16_bf16(vcvtq_low_bf16_f32((float32x4_t)of.part[p]));
        };
        return vreinterpretq_u32_u16(vzip1q_u16(words(even), words(odd)));
    });
#else
    return bf16_bits(even) | (bf16_bits(odd) << 16);
#endif
}

// Exchanges lanes between registers `apart` from each other: v[i] and v[i + apart] become their even groups of `apart`
// lanes, interleaved, and their odd ones.
template <int apart> PCR_INLINE void exchange(UintRegister & a, UintRegister & b) {
#if defined(__AVX512F__)
    const UintRegister x = a, y = b;
    if (apart == 1) {
        a = __builtin_shufflevector(x, y, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
        b = __builtin_shufflevector(x, y, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
    } else if (apart == 2) {
        a = __builtin_shufflevector(x, y, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
        b = __builtin_shufflevector(x, y, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    } else if (apart == 4) {
        a = __builtin_shufflevector(x, y, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
        b = __builtin_shufflevector(x, y, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    } else {
        a = __builtin_shufflevector(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
        b = __builtin_shufflevector(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    }
#elif defined(__AVX2__)
    const UintRegister x = a, y = b;
    if (apart == 1) {
        a = __builtin_shufflevector(x, y, 0, 8, 2, 10, 4, 12, 6, 14);
        b = __builtin_shufflevector(x, y, 1, 9, 3, 11, 5, 13, 7, 15);
    } else if (apart == 2) {
        a = __builtin_shufflevector(x, y, 0, 1, 8, 9, 4, 5, 12, 13);
        b = __builtin_shufflevector(x, y, 2, 3, 10, 11, 6, 7, 14, 15);
    } else {
        a = __builtin_shufflevector(x, y, 0, 1, 2, 3, 8, 9, 10, 11);
        b = __builtin_shufflevector(x, y, 4, 5, 6, 7, 12, 13, 14, 15);
    }
#else
    const UintRegister x = a, y = b;
    if (apart == 1) {
        a = __builtin_shufflevector(x, y, 0, 4, 2, 6);
        b = __builtin_shufflevector(x, y, 1, 5, 3, 7);
    } else {
        a = __builtin_shufflevector(x, y, 0, 1, 4, 5);
        b = __builtin_shufflevector(x, y, 2, 3, 6, 7);
    }
#endif
}

template <int apart> PCR_INLINE void exchange_all(U (&v)[16]) {
    PCR_UNROLL
    for (int i = 0; i < 16; i++) {
        if ((i & apart) == 0) {
            PCR_UNROLL
            for (int p = 0; p < parts; p++) {
                exchange<apart>(v[i].part[p], v[i + apart].part[p]);
            }
        }
    }
}

PCR_INLINE void transpose(U (&v)[16]) {
    exchange_all<1>(v);
    exchange_all<2>(v);
    if (lanes > 4) {
        exchange_all<4>(v);
    }
    if (lanes > 8) {
        exchange_all<8>(v);
    }
    PCR_UNROLL
    for (int i = 0; i < 16; i++) {  // and whole registers
        PCR_UNROLL
        for (int p = 0; p < parts; p++) {
            const int j = i % lanes + lanes * p, q = i / lanes;
            if (q < p) {
                const UintRegister held = v[i].part[p];
                v[i].part[p]            = v[j].part[q];
                v[j].part[q]            = held;
            }
        }
    }
}

}  // namespace

}  // namespace pcr
