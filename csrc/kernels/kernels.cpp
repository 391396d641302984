// Compiled once for each set of instructions (CMakeLists.txt), under a name of its own: PCR_KERNELS. Nothing but this
// file's own code may be instantiated here, or the linker could give an older processor a newer one's instructions.
// Vectors are GCC's and Clang's: 16 lanes, which the compiler splits where registers are narrower.

#include "kernels/kernels.h"

#include <cstring>

#if defined(__x86_64__)
#  include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__linux__)
#  define PCR_AMX 1
#endif

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed among this file's own functions only

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
    const F magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
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

// ---- Words

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

// ---- Matrix rows of any type -> F32

PCR_INLINE F from_bf16(const uint8_t * from) {
    typedef uint16_t H __attribute__((vector_size(32)));
    return (F)(__builtin_convertvector(load<H>(from), U) << 16);
}

#if defined(__AVX512F__)
#  define PCR_F16 1
PCR_INLINE F from_f16(const uint8_t * from) {
    return (F)_mm512_cvtph_ps((__m256i)_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
}
#elif defined(__F16C__)
#  define PCR_F16 1
PCR_INLINE F from_f16(const uint8_t * from) {
    const __m256 halves[2] = {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from))),
                              _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from + 16)))};
    return load<F>(halves);
}
#endif

PCR_INLINE F from_u8(B bytes) {
    return __builtin_convertvector(__builtin_convertvector(bytes, I), F);
}

PCR_INLINE F from_i8(const uint8_t * from) {
    return __builtin_convertvector(__builtin_convertvector(load<S>(from), I), F);
}

PCR_INLINE float half(const uint8_t * from) {
    uint16_t bits;
    std::memcpy(&bits, from, 2);
#if defined(__F16C__)
    return _cvtsh_ss(bits);
#else
    return ggml_fp16_to_fp32(bits);
#endif
}

constexpr int64_t chunk = 256;  // values that are decoded at once: a block of every type

// ggml's block_q4_K: d, dmin (F16), 12 bytes of 6-bit scales and minima of 8 x 32 values, 128 bytes of nibbles; and
// block_q5_K: 32 bytes of fifth bits before the nibbles.
template <bool fifth> PCR_INLINE void from_q45_k(const uint8_t * from, float * out) {
    const float     d = half(from), dmin = half(from + 2);
    const uint8_t * packed = from + 4;
    const uint8_t * high   = from + 16;
    const uint8_t * low    = from + (fifth ? 48 : 16);
    for (int j = 0; j < 4; j++) {
        float scale[2], least[2];
        for (int i = 0; i < 2; i++) {
            const int at = 2 * j + i;
            const int s  = at < 4 ? packed[at] & 63 : (packed[at + 4] & 15) | ((packed[at - 4] >> 6) << 4);
            const int m  = at < 4 ? packed[at + 4] & 63 : (packed[at + 4] >> 4) | ((packed[at] >> 6) << 4);
            scale[i]     = d * static_cast<float>(s);
            least[i]     = dmin * static_cast<float>(m);
        }
        PCR_UNROLL
        for (int h = 0; h < 2; h++) {
            const B bytes = load<B>(low + 32 * j + 16 * h);
            B       first = bytes & 15, second = bytes >> 4;
            if (fifth) {
                const B bits = load<B>(high + 16 * h) >> (unsigned char)(2 * j);
                first |= (bits & 1) << 4;
                second |= (bits & 2) << 3;
            }
            store(out + 64 * j + 16 * h, from_u8(first) * scale[0] - least[0]);
            store(out + 64 * j + 32 + 16 * h, from_u8(second) * scale[1] - least[1]);
        }
    }
}

// ggml's block_q6_K: 128 bytes of low nibbles, 64 of upper bit pairs, 16 signed scales of 16 values each, d (F16).
PCR_INLINE void from_q6_k(const uint8_t * from, float * out) {
    const float     d      = half(from + 208);
    const uint8_t * scales = from + 192;
    PCR_UNROLL
    for (int part = 0; part < 2; part++) {
        PCR_UNROLL
        for (int h = 0; h < 2; h++) {
            const B low       = load<B>(from + 64 * part + 16 * h);
            const B low32     = load<B>(from + 64 * part + 32 + 16 * h);
            const B high      = load<B>(from + 128 + 32 * part + 16 * h);
            const B values[4] = {(low & 15) | ((high & 3) << 4), (low32 & 15) | ((high & 12) << 2),
                                 (low >> 4) | (high & 48), (low32 >> 4) | ((high & 192) >> 2)};
            PCR_UNROLL
            for (int q = 0; q < 4; q++) {
                const float scale = d * static_cast<float>(static_cast<int8_t>(scales[8 * part + 2 * q + h]));
                store(out + 128 * part + 32 * q + 16 * h, (from_u8(values[q]) - 32.0f) * scale);
            }
        }
    }
}

// Up to 256 values, a whole number of the type's blocks.
PCR_INLINE void decode_chunk(ggml_type type, const uint8_t * from, int64_t n, float * out) {
    switch (type) {
        case GGML_TYPE_F32: std::memcpy(out, from, static_cast<size_t>(n) * sizeof(float)); return;
        case GGML_TYPE_BF16: {
            int64_t i = 0;
            for (; i + 16 <= n; i += 16) {
                store(out + i, from_bf16(from + 2 * i));
            }
            for (; i < n; i++) {
                const uint32_t bits = uint32_t(from[2 * i] | from[2 * i + 1] << 8) << 16;
                std::memcpy(out + i, &bits, 4);
            }
            return;
        }
        case GGML_TYPE_F16: {
            int64_t i = 0;
#if defined(PCR_F16)
            for (; i + 16 <= n; i += 16) {
                store(out + i, from_f16(from + 2 * i));
            }
#endif
            for (; i < n; i++) {
                out[i] = half(from + 2 * i);
            }
            return;
        }
        case GGML_TYPE_Q8_0:
            for (int64_t i = 0; i < n; i += 32, from += 34) {
                const float d = half(from);
                store(out + i, from_i8(from + 2) * d);
                store(out + i + 16, from_i8(from + 18) * d);
            }
            return;
        case GGML_TYPE_Q4_K: from_q45_k<false>(from, out); return;
        case GGML_TYPE_Q5_K: from_q45_k<true>(from, out); return;
        case GGML_TYPE_Q6_K: from_q6_k(from, out); return;
        default: break;
    }
    ggml_get_type_traits(type)->to_float(from, out, n);
}

void to_float(ggml_type type, const void * row, int64_t n, float * out) {
    const uint8_t * from = static_cast<const uint8_t *>(row);
    const size_t bytes = ggml_row_size(type, ggml_blck_size(type)) * static_cast<size_t>(chunk / ggml_blck_size(type));
    for (int64_t at = 0; at < n; at += chunk, from += bytes) {
        decode_chunk(type, from, n - at < chunk ? n - at : chunk, out + at);
    }
}

// Rows are read once, from memory, faster than the processor guesses what comes next.
constexpr int64_t ahead = 2048;  // bytes

PCR_INLINE void fetch_ahead(const uint8_t * from, int64_t bytes) {
    PCR_UNROLL
    for (int64_t i = 0; i < bytes; i += 64) {
        __builtin_prefetch(from + ahead + i);
    }
}

#if defined(__AVX512F__)
// d times the 8 scales of a block of Q4_K or Q5_K, and dmin times its 8 minima.
PCR_INLINE __m512 scales_q45_k(const uint8_t * from) {
    // The 12 bytes of 6-bit scales (0..7) and minima (8..15): the first four of each in the lower bits of bytes 0..3 and
    // 4..7, the others' lower bits in the nibbles of 8..11, their upper ones at the top of 0..3 and 4..7.
    const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from + 4));
    const __m128i first  = _mm_shuffle_epi8(packed, _mm_setr_epi8(0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 8, 9, 10, 11));
    const __m128i top = _mm_shuffle_epi8(packed, _mm_setr_epi8(-1, -1, -1, -1, 0, 1, 2, 3, -1, -1, -1, -1, 4, 5, 6, 7));
    const __m128i lower = _mm_and_si128(_mm_blend_epi32(first, _mm_srli_epi16(first, 4), 8),
                                        _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f));
    const __m128i bytes = _mm_or_si128(lower, _mm_and_si128(_mm_srli_epi16(top, 2), _mm_set1_epi8(0x30)));
    int32_t       halves;
    std::memcpy(&halves, from, 4);
    const __m512i both = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512  d    = _mm512_permutexvar_ps(both, _mm512_castps128_ps512(_mm_cvtph_ps(_mm_cvtsi32_si128(halves))));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)), d);
}
#endif

#if defined(__AVX512BF16__)
// Rows of the types that matter most, straight into BF16. False for others.
PCR_INLINE bool decode_bf16(ggml_type type, const uint8_t * from, int64_t n, uint32_t * out, int64_t out_step) {
    if (n % 256 != 0) {
        return false;
    }
    if (type == GGML_TYPE_F16) {
        for (int64_t i = 0; i < n; i += 32, out += out_step) {
            fetch_ahead(from + 2 * i, 64);
            store(out, bf16_words(from_f16(from + 2 * i), from_f16(from + 2 * i + 32)));
        }
        return true;
    }
    if (type == GGML_TYPE_Q4_K) {
        // 32 values of a block have one scale and one minimum, so they are one of 16 numbers: a table's entries.
        const F count = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        for (int64_t b = 0; b < n / 256; b++, from += 144) {
            fetch_ahead(from, 144);
            alignas(64) float scales[16];
            _mm512_store_ps(scales, scales_q45_k(from));
            for (int j = 0; j < 4; j++) {
                const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from + 16 + 32 * j));
                const __m512i words = _mm512_cvtepu8_epi16(bytes);
                for (int h = 0; h < 2; h++, out += out_step) {
                    const F       numbers = count * scales[2 * j + h] - scales[8 + 2 * j + h];
                    const __m512i table   = _mm512_castsi256_si512((__m256i)_mm512_cvtneps_pbh((__m512)numbers));
                    const __m512i which =
                        h ? _mm512_srli_epi16(words, 4) : _mm512_and_si512(words, _mm512_set1_epi16(15));
                    _mm512_storeu_si512(out, _mm512_permutexvar_epi16(which, table));
                }
            }
        }
        return true;
    }
    return false;
}
#endif

void decode(Number number, ggml_type type, const void * row, int64_t n, uint32_t * out, int64_t out_step) {
    const uint8_t * from = static_cast<const uint8_t *>(row);
#if defined(__AVX512BF16__)
    if (number == Number::bf16 && decode_bf16(type, from, n, out, out_step)) {
        return;
    }
#endif
    const size_t bytes = ggml_row_size(type, ggml_blck_size(type)) * static_cast<size_t>(chunk / ggml_blck_size(type));
    alignas(64) float values[chunk];
    for (int64_t at = 0; at < n; at += chunk, from += bytes) {
        const int64_t count = n - at < chunk ? n - at : chunk;
        decode_chunk(type, from, count, values);
        if (count < chunk) {
            std::memset(values + count, 0, static_cast<size_t>(chunk - count) * sizeof(float));
        }
        if (number == Number::bf16) {
            for (int64_t i = 0; i < count; i += 32, out += out_step) {
                store(out, bf16_words(load<F>(values + i), load<F>(values + i + 16)));
            }
        } else {
            for (int64_t i = 0; i < count; i += 16, out += out_step) {
                store(out, load<U>(values + i));
            }
        }
    }
}

void pack(Number number, const float * rows, int64_t stride, int64_t n_rows, int64_t n, uint32_t * columns) {
    const int64_t values = number == Number::bf16 ? 32 : 16;
    for (int64_t at = 0; at < n; at += values, columns += block_words) {
        U v[16];
        if (at + values <= n && n_rows == 16) {
            PCR_UNROLL
            for (int r = 0; r < 16; r++) {
                const float * row = rows + r * stride + at;
                v[r]              = number == Number::bf16 ? bf16_words(load<F>(row), load<F>(row + 16)) : load<U>(row);
            }
        } else {
            for (int64_t r = 0; r < 16; r++) {
                F first = {}, second = {};
                if (r < n_rows) {
                    const float * row  = rows + r * stride + at;
                    const int64_t left = n - at;
                    first              = load_some(row, left < 16 ? left : 16);
                    if (number == Number::bf16 && left > 16) {
                        second = load_some(row + 16, left < 32 ? left - 16 : 16);
                    }
                }
                v[r] = number == Number::bf16 ? bf16_words(first, second) : (U)first;
            }
        }
        transpose(v);
        PCR_UNROLL
        for (int k = 0; k < 16; k++) {
            store(columns + 16 * k, v[k]);
        }
    }
}

// ---- Products

// One register, and as many rows and groups of columns as leave the sums in registers.
#if defined(__AVX512F__)
constexpr int lanes = 16, tile_rows = 8, tile_groups = 3;
#elif defined(__AVX2__)
constexpr int lanes = 8, tile_rows = 4, tile_groups = 1;
#elif defined(__aarch64__)
constexpr int lanes = 4, tile_rows = 4, tile_groups = 1;
#else
constexpr int lanes = 4, tile_rows = 2, tile_groups = 1;
#endif
constexpr int parts = 16 / lanes;  // registers that a group of columns takes
typedef float R __attribute__((vector_size(4 * lanes)));

template <bool bf16> PCR_INLINE R multiply_add(R sum, const uint32_t * word, R column) {
#if defined(__AVX512BF16__)
    if (bf16) {
        int32_t both;
        std::memcpy(&both, word, 4);
        return (R)_mm512_dpbf16_ps((__m512)sum, (__m512bh)column, (__m512bh)_mm512_set1_epi32(both));
    }
#endif
    float one;
    std::memcpy(&one, word, 4);
    return sum + one * column;
}

// n_rows x 16 * n_groups results, held in registers over all steps.
template <int n_rows, int n_groups, bool bf16>
PCR_INLINE void tile(const uint32_t * a, int64_t row, int64_t step, const uint32_t * columns, int64_t column_group,
                     int64_t n_steps, bool add, float * out, int64_t out_stride) {
    constexpr int n = n_groups * parts;
    R             sums[n_rows][n];
    PCR_UNROLL
    for (int r = 0; r < n_rows; r++) {
        PCR_UNROLL
        for (int c = 0; c < n; c++) {
            sums[r][c] = add ? load<R>(out + r * out_stride + lanes * c) : R{};
        }
    }
    for (int64_t s = 0; s < n_steps; s++, a += step, columns += block_words) {
        for (int k = 0; k < 16; k++) {
            R values[n];
            PCR_UNROLL
            for (int c = 0; c < n; c++) {
                values[c] = load<R>(columns + c / parts * column_group + 16 * k + c % parts * lanes);
            }
            PCR_UNROLL
            for (int r = 0; r < n_rows; r++) {
                PCR_UNROLL
                for (int c = 0; c < n; c++) {
                    sums[r][c] = multiply_add<bf16>(sums[r][c], a + r * row + k, values[c]);
                }
            }
        }
    }
    PCR_UNROLL
    for (int r = 0; r < n_rows; r++) {
        PCR_UNROLL
        for (int c = 0; c < n; c++) {
            store(out + r * out_stride + lanes * c, sums[r][c]);
        }
    }
}

// All rows of n_groups <= tile_groups groups of columns.
template <int n_groups, bool bf16>
PCR_INLINE void tile_column(const Rows & rows, const uint32_t * words, int64_t n_rows, const uint32_t * columns,
                            int64_t column_group, int64_t n_steps, bool add, float * out, int64_t out_stride) {
    int64_t r = 0;
    while (r < n_rows) {
        const uint32_t * a    = words + r / 16 * rows.group + r % 16 * rows.row;
        float * const    to   = out + r * out_stride;
        const int64_t    left = n_rows - r;
        if (left >= tile_rows) {
            tile<tile_rows, n_groups, bf16>(a, rows.row, rows.step, columns, column_group, n_steps, add, to,
                                            out_stride);
            r += tile_rows;
        } else if (tile_rows > 4 && left >= 4) {
            tile<4, n_groups, bf16>(a, rows.row, rows.step, columns, column_group, n_steps, add, to, out_stride);
            r += 4;
        } else if (tile_rows > 2 && left >= 2) {
            tile<2, n_groups, bf16>(a, rows.row, rows.step, columns, column_group, n_steps, add, to, out_stride);
            r += 2;
        } else {
            tile<1, n_groups, bf16>(a, rows.row, rows.step, columns, column_group, n_steps, add, to, out_stride);
            r += 1;
        }
    }
}

template <bool bf16>
void multiply_vectors(const Rows & rows, int64_t n_rows, const uint32_t * columns, int64_t column_group,
                      int64_t n_groups, int64_t n_steps, bool add, float * out, int64_t out_stride) {
    constexpr int64_t steps_at_once = tile_groups == 3 ? 8 : 16;  // so that the columns stay in the first cache
    for (int64_t first = 0; first < n_steps; first += steps_at_once) {
        const int64_t    n     = n_steps - first < steps_at_once ? n_steps - first : steps_at_once;
        const bool       more  = add || first > 0;
        const uint32_t * words = rows.words + first * rows.step;
        const uint32_t * group = columns + first * block_words;
        for (int64_t g = 0; g < n_groups;) {
            const int64_t left = n_groups - g;
            if (left >= tile_groups) {
                tile_column<tile_groups, bf16>(rows, words, n_rows, group, column_group, n, more, out + 16 * g,
                                               out_stride);
                g += tile_groups;
                group += tile_groups * column_group;
            } else if (tile_groups > 2 && left == 2) {
                tile_column<2, bf16>(rows, words, n_rows, group, column_group, n, more, out + 16 * g, out_stride);
                g += 2;
            } else {
                tile_column<1, bf16>(rows, words, n_rows, group, column_group, n, more, out + 16 * g, out_stride);
                g += 1;
            }
        }
    }
}

#if defined(PCR_AMX)

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

void multiply_amx(const Rows & rows, int64_t n_rows, const uint32_t * columns, int64_t column_group, int64_t n_groups,
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

#endif

void multiply(Number number, const Rows & rows, int64_t n_rows, const uint32_t * columns, int64_t column_group,
              int64_t n_groups, int64_t n_steps, bool add, float * out, int64_t out_stride) {
    if (number == Number::bf16) {
#if defined(PCR_AMX)
        multiply_amx(rows, n_rows, columns, column_group, n_groups, n_steps, add, out, out_stride);
#elif defined(__AVX512BF16__)
        multiply_vectors<true>(rows, n_rows, columns, column_group, n_groups, n_steps, add, out, out_stride);
#endif
    } else {
        multiply_vectors<false>(rows, n_rows, columns, column_group, n_groups, n_steps, add, out, out_stride);
    }
}

// ---- Results on their way out

PCR_INLINE F activate(Activation activation, F x) {
    return activation == Activation::gelu ? gelu(x) : x;
}

void put_rows(const float * results, int64_t stride, int64_t n, int64_t n_columns, const float * bias,
              Activation activation, const float * residual, float * out, int64_t out_stride) {
    for (int64_t i = 0; i < n; i += 16) {
        const int64_t count = n - i < 16 ? n - i : 16;
        const F       b     = bias ? load_some(bias + i, count) : F{};
        for (int64_t c = 0; c < n_columns; c += 16) {
            U v[16];
            PCR_UNROLL
            for (int r = 0; r < 16; r++) {
                v[r] = r < count ? load<U>(results + (i + r) * stride + c) : U{};
            }
            transpose(v);
            const int64_t rows = n_columns - c < 16 ? n_columns - c : 16;
            for (int64_t r = 0; r < rows; r++) {
                const int64_t at = (c + r) * out_stride + i;
                F             x  = activate(activation, (F)v[r] + b);
                if (residual) {
                    x += count == 16 ? load<F>(residual + at) : load_some(residual + at, count);
                }
                if (count == 16) {
                    store(out + at, x);
                } else {
                    std::memcpy(out + at, &x, static_cast<size_t>(count) * sizeof(float));
                }
            }
        }
    }
}

void put_columns(Number number, const float * results, const float * gate, int64_t stride, int64_t n, int64_t n_groups,
                 const float * bias, Activation activation, uint32_t * columns, int64_t column_group, int64_t first) {
    const auto value = [&](int64_t i, int64_t c) __attribute__((always_inline)) {
        F x = load<F>(results + i * stride + c);
        x   = activate(activation, bias ? x + bias[i] : x);
        return gate ? x * silu(load<F>(gate + i * stride + c)) : x;
    };
    const int64_t step = number == Number::bf16 ? 32 : 16;
    for (int64_t i = 0; i < n; i += step / 16) {
        const int64_t at = (first + i) / step * block_words + (first + i) % step / (step / 16) * 16;
        for (int64_t g = 0; g < n_groups; g++) {
            const U words =
                number == Number::bf16 ? bf16_pairs(value(i, 16 * g), value(i + 1, 16 * g)) : (U)value(i, 16 * g);
            store(columns + g * column_group + at, words);
        }
    }
}

void put_words(Number number, const float * results, int64_t n, const float * bias, Activation activation,
               uint32_t * words) {
    const auto value = [&](int64_t i) __attribute__((always_inline)) {
        if (i >= n) {
            return F{};
        }
        if (n - i < 16) {
            const F x = load_some(results + i, n - i),
                    y = activate(activation, bias ? x + load_some(bias + i, n - i) : x);
            return load_some(reinterpret_cast<const float *>(&y), n - i);
        }
        return activate(activation, bias ? load<F>(results + i) + load<F>(bias + i) : load<F>(results + i));
    };
    const int64_t step = number == Number::bf16 ? 32 : 16;
    for (int64_t i = 0; i < n; i += step, words += 16) {
        store(words, number == Number::bf16 ? bf16_words(value(i), value(i + 16)) : (U)value(i));
    }
}

// ---- Few columns

void dot_rows(ggml_type type, const void * rows, size_t row_bytes, int64_t n_rows, int64_t n, const float * x,
              int64_t n_x, float * out, int64_t out_stride) {
    const size_t bytes = ggml_row_size(type, ggml_blck_size(type)) * static_cast<size_t>(chunk / ggml_blck_size(type));
    for (int64_t i = 0; i < n_rows; i++) {
        const uint8_t * from = static_cast<const uint8_t *>(rows) + static_cast<size_t>(i) * row_bytes;
        for (int64_t first = 0; first < n_x; first += 4) {
            const int64_t columns = n_x - first < 4 ? n_x - first : 4;
            F             sums[4] = {};
            for (int64_t at = 0; at < n; at += chunk) {
                const int64_t     count = n - at < chunk ? n - at : chunk;
                alignas(64) float values[chunk];
                decode_chunk(type, from + static_cast<size_t>(at / chunk) * bytes, count, values);
                for (int64_t j = 0; j < columns; j++) {
                    const float * const with = x + (first + j) * n + at;
                    int64_t             k    = 0;
                    F                   sum0 = sums[j], sum1 = {};
                    for (; k + 32 <= count; k += 32) {
                        sum0 += load<F>(values + k) * load<F>(with + k);
                        sum1 += load<F>(values + k + 16) * load<F>(with + k + 16);
                    }
                    for (; k < count; k += 16) {
                        const int64_t some = count - k < 16 ? count - k : 16;
                        sum0 += load_some(values + k, some) * load_some(with + k, some);
                    }
                    sums[j] = sum0 + sum1;
                }
            }
            for (int64_t j = 0; j < columns; j++) {
                out[(first + j) * out_stride + i] = sum_lanes(sums[j]);
            }
        }
    }
}

// ---- Few columns, in 8-bit integers

#if defined(__AVX512VNNI__)
#  define PCR_BYTES 1

// A column of n values, each 32 of them scaled to -127..127:
//   int8  [n]             in order
//   int8  [n]             of each 256: 0..31 and 64..95, 32..63 and 96..127, the same of the upper half; as K-quants' nibbles lie
//   int32 [n / 4]         minus the sums of 4 neighbours
//   float [n / 256][2][8] of each 32: the scale; the scale times the sum of its values
struct Column {
    const int8_t *  ordered;
    const int8_t *  split;
    const int32_t * minus;
    const float *   scales;
};

PCR_INLINE Column column(const uint8_t * at, int64_t n) {
    return {reinterpret_cast<const int8_t *>(at), reinterpret_cast<const int8_t *>(at + n),
            reinterpret_cast<const int32_t *>(at + 2 * n), reinterpret_cast<const float *>(at + 3 * n)};
}

void to_bytes(const float * x, int64_t n, uint8_t * out) {
    auto * ordered = reinterpret_cast<int8_t *>(out);
    auto * split   = ordered + n;
    auto * minus   = reinterpret_cast<int32_t *>(out + 2 * n);
    auto * scales  = reinterpret_cast<float *>(out + 3 * n);
    for (int64_t i = 0; i < n; i += 32) {
        const F       a = load<F>(x + i), b = load<F>(x + i + 16);
        const F       size  = max((F)((I)a & 0x7fffffff), (F)((I)b & 0x7fffffff));
        const float   most_ = _mm512_reduce_max_ps((__m512)size);
        const float   scale = most_ / 127.0f, inverse = most_ > 0.0f ? 127.0f / most_ : 0.0f;
        const __m512i ia = _mm512_cvtps_epi32((__m512)(a * inverse)), ib = _mm512_cvtps_epi32((__m512)(b * inverse));
        const __m128i low = _mm512_cvtsepi32_epi8(ia), high = _mm512_cvtsepi32_epi8(ib);
        _mm_storeu_si128(reinterpret_cast<__m128i *>(ordered + i), low);
        _mm_storeu_si128(reinterpret_cast<__m128i *>(ordered + i + 16), high);
        const int64_t part = i / 32 % 4, to = i - 32 * part + (part == 1 ? 64 : part == 2 ? 32 : 32 * part);
        if (n % 256 == 0) {
            std::memcpy(split + to, ordered + i, 32);
        }
        float * const pair = scales + i / 256 * 16 + i / 32 % 8;
        pair[0]            = scale;
        pair[8]            = scale * static_cast<float>(_mm512_reduce_add_epi32(_mm512_add_epi32(ia, ib)));
    }
    for (int64_t i = 0; i < n; i += 64) {
        const __m512i ones = _mm512_set1_epi8(1), values = _mm512_loadu_si512(ordered + i);
        _mm512_storeu_si512(minus + i / 4, _mm512_sub_epi32(_mm512_setzero_si512(),
                                                            _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, values)));
    }
}

void to_q8_0(const float * row, int64_t n, uint8_t * out, float * error, float * norm) {
    F lost = {}, kept = {};
    for (int64_t i = 0; i < n; i += 32, out += 34) {
        const F        a = load<F>(row + i), b = load<F>(row + i + 16);
        const F        size  = max((F)((I)a & 0x7fffffff), (F)((I)b & 0x7fffffff));
        const float    most  = _mm512_reduce_max_ps((__m512)size);
        const uint16_t bits  = _cvtss_sh(most / 127.0f, _MM_FROUND_TO_NEAREST_INT);
        const float    scale = _cvtsh_ss(bits), inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
        std::memcpy(out, &bits, 2);
        for (int h = 0; h < 2; h++) {
            const F       x = h ? b : a;
            const __m128i q = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32((__m512)(x * inverse)));
            _mm_storeu_si128(reinterpret_cast<__m128i *>(out + 2 + 16 * h), q);
            const F stands_for = (F)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)) * scale;
            lost += (x - stands_for) * (x - stands_for);
            kept += stands_for * stands_for;
        }
    }
    *error = _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(sum_lanes(lost)))) * 1.001f;
    *norm  = _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(sum_lanes(kept)))) * 1.001f;
}

PCR_INLINE __m512 dot64(__m512 sum, __m512i start, __m512i weights, const int8_t * x, __m512 scale) {
    const __m512i products = _mm512_dpbusd_epi32(start, weights, _mm512_loadu_si512(x));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scale, sum);
}

// Block b of 256 values of Q4_K or Q5_K: d scale q - dmin least. The upper half of sums[2] gathers what is subtracted.
template <bool fifth, int n_x>
PCR_INLINE void dot_q45_k(const uint8_t * from, const Column (&x)[n_x], int64_t b, __m512 (&sums)[n_x][3]) {
    const __m512 scale = scales_q45_k(from);

    const uint8_t * low    = from + (fifth ? 48 : 16);
    const __m512i   nibble = _mm512_set1_epi8(15);
    const __m512i   q0 = _mm512_loadu_si512(low), q1 = _mm512_loadu_si512(low + 64);
    __m512i         w[4] = {_mm512_and_si512(q0, nibble), _mm512_and_si512(_mm512_srli_epi16(q0, 4), nibble),
                            _mm512_and_si512(q1, nibble), _mm512_and_si512(_mm512_srli_epi16(q1, 4), nibble)};
    if (fifth) {  // bit 2j of a byte belongs to the low nibble of 64 values j, bit 2j + 1 to the high one
        const __m256i half_bits = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from + 16));
        const __m512i bits = _mm512_inserti64x4(_mm512_castsi256_si512(half_bits), _mm256_srli_epi16(half_bits, 2), 1);
        const __m512i one  = _mm512_set1_epi8(16);
        w[0]               = _mm512_or_si512(w[0], _mm512_and_si512(_mm512_slli_epi16(bits, 4), one));
        w[1]               = _mm512_or_si512(w[1], _mm512_and_si512(_mm512_slli_epi16(bits, 3), one));
        w[2]               = _mm512_or_si512(w[2], _mm512_and_si512(bits, one));
        w[3]               = _mm512_or_si512(w[3], _mm512_and_si512(_mm512_srli_epi16(bits, 1), one));
    }
    const __m512i order[4] = {_mm512_set_epi32(2, 2, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0),
                              _mm512_set_epi32(3, 3, 3, 3, 3, 3, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1),
                              _mm512_set_epi32(6, 6, 6, 6, 6, 6, 6, 6, 4, 4, 4, 4, 4, 4, 4, 4),
                              _mm512_set_epi32(7, 7, 7, 7, 7, 7, 7, 7, 5, 5, 5, 5, 5, 5, 5, 5)};
    PCR_UNROLL
    for (int j = 0; j < n_x; j++) {
        const __m512 scales = _mm512_mul_ps(scale, _mm512_loadu_ps(x[j].scales + 16 * b));
        PCR_UNROLL
        for (int i = 0; i < 4; i++) {
            sums[j][i % 2] = dot64(sums[j][i % 2], _mm512_setzero_si512(), w[i], x[j].split + 256 * b + 64 * i,
                                   _mm512_permutexvar_ps(order[i], scales));
        }
        sums[j][2] = _mm512_add_ps(sums[j][2], scales);
    }
}

// Block b of 256 values of Q6_K: d scale (q - 32).
template <int n_x>
PCR_INLINE void dot_q6_k(const uint8_t * from, const Column (&x)[n_x], int64_t b, __m512 (&sums)[n_x][3]) {
    const __m512 scale = _mm512_mul_ps(
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from + 192)))),
        _mm512_set1_ps(half(from + 208)));
    const __m512i nibble = _mm512_set1_epi8(15), upper = _mm512_set1_epi8(48);
    const __m512i twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    __m512i       w[4];
    PCR_UNROLL
    for (int part = 0; part < 2; part++) {
        const __m512i low  = _mm512_loadu_si512(from + 64 * part);
        const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from + 128 + 32 * part));
        // Bits 0..1 are of values 0..31, 2..3 of 32..63, 4..5 of 64..95, 6..7 of 96..127.
        const __m512i first =
            _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_slli_epi16(bits, 4)), _mm256_slli_epi16(bits, 2), 1);
        const __m512i second = _mm512_inserti64x4(_mm512_castsi256_si512(bits), _mm256_srli_epi16(bits, 2), 1);
        w[2 * part]          = _mm512_or_si512(_mm512_and_si512(low, nibble), _mm512_and_si512(first, upper));
        w[2 * part + 1] =
            _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(low, 4), nibble), _mm512_and_si512(second, upper));
    }
    PCR_UNROLL
    for (int j = 0; j < n_x; j++) {
        const __m512 x_scales =
            _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(_mm256_loadu_ps(x[j].scales + 16 * b)));
        const __m512 scales = _mm512_mul_ps(scale, x_scales);  // of 16 values each
        PCR_UNROLL
        for (int i = 0; i < 4; i++) {
            const __m512i four  = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
            const __m512i order = _mm512_add_epi32(four, _mm512_set1_epi32(4 * i));
            const __m512i start = _mm512_slli_epi32(_mm512_loadu_si512(x[j].minus + 64 * b + 16 * i), 5);
            sums[j][i % 2]      = dot64(sums[j][i % 2], start, w[i], x[j].ordered + 256 * b + 64 * i,
                                        _mm512_permutexvar_ps(order, scales));
        }
    }
}

// 64 values of Q8_0, two blocks of a scale (F16) and 32 signed bytes, which 128 more makes unsigned.
template <int n_x>
PCR_INLINE void dot_q8_0(const uint8_t * from, const Column (&x)[n_x], int64_t at, __m512 (&sums)[n_x][3]) {
    const __m512i bytes =
        _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from + 2))),
                           _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from + 36)), 1);
    const __m512i w     = _mm512_xor_si512(bytes, _mm512_set1_epi8(-128));
    const float   first = half(from), second = half(from + 34);
    PCR_UNROLL
    for (int j = 0; j < n_x; j++) {
        const float * pair   = x[j].scales + at / 256 * 16 + at / 32 % 8;
        const __m512  scale  = _mm512_insertf32x8(_mm512_set1_ps(first * pair[0]), _mm256_set1_ps(second * pair[1]), 1);
        const __m512i start  = _mm512_slli_epi32(_mm512_loadu_si512(x[j].minus + at / 4), 7);
        sums[j][at / 64 % 2] = dot64(sums[j][at / 64 % 2], start, w, x[j].ordered + at, scale);
    }
}

template <int n_x>
PCR_INLINE void dot_bytes_row(ggml_type type, const uint8_t * row, int64_t n, const Column (&x)[n_x], float * out,
                              int64_t out_stride) {
    __m512 sums[n_x][3];
    PCR_UNROLL
    for (int j = 0; j < n_x; j++) {
        sums[j][0] = sums[j][1] = sums[j][2] = _mm512_setzero_ps();
    }
    switch (type) {
        case GGML_TYPE_Q4_K:
            for (int64_t b = 0; b < n / 256; b++) {
                fetch_ahead(row + 144 * b, 144);
                dot_q45_k<false, n_x>(row + 144 * b, x, b, sums);
            }
            break;
        case GGML_TYPE_Q5_K:
            for (int64_t b = 0; b < n / 256; b++) {
                fetch_ahead(row + 176 * b, 176);
                dot_q45_k<true, n_x>(row + 176 * b, x, b, sums);
            }
            break;
        case GGML_TYPE_Q6_K:
            for (int64_t b = 0; b < n / 256; b++) {
                fetch_ahead(row + 210 * b, 210);
                dot_q6_k<n_x>(row + 210 * b, x, b, sums);
            }
            break;
        default:
            for (int64_t at = 0; at < n; at += 64) {
                fetch_ahead(row + at / 64 * 68, 68);
                dot_q8_0<n_x>(row + at / 64 * 68, x, at, sums);
            }
            break;
    }
    PCR_UNROLL
    for (int j = 0; j < n_x; j++) {
        const __m512 less   = _mm512_maskz_mov_ps(0xff00, sums[j][2]);
        out[j * out_stride] = _mm512_reduce_add_ps(_mm512_sub_ps(_mm512_add_ps(sums[j][0], sums[j][1]), less));
    }
}

bool takes_bytes(ggml_type type, int64_t n) {
    return type == GGML_TYPE_Q4_K || type == GGML_TYPE_Q5_K || type == GGML_TYPE_Q6_K ||
           (type == GGML_TYPE_Q8_0 && n % 64 == 0);
}

// n_x of a row's columns, or fewer: the row is unpacked once for all of them.
template <int n_x>
void dot_bytes_row(ggml_type type, const uint8_t * row, int64_t n, const uint8_t * x, int64_t count, float * out,
                   int64_t out_stride) {
    if (count < n_x) {
        if constexpr (n_x > 1) {
            dot_bytes_row<n_x - 1>(type, row, n, x, count, out, out_stride);
        }
        return;
    }
    const size_t bytes = column_bytes(n);
    Column       columns[n_x];
    for (int j = 0; j < n_x; j++) {
        columns[j] = column(x + static_cast<size_t>(j) * bytes, n);
    }
    dot_bytes_row<n_x>(type, row, n, columns, out, out_stride);
}

void dot_bytes(ggml_type type, const void * rows, size_t row_bytes, int64_t n_rows, int64_t n, const uint8_t * x,
               int64_t n_x, float * out, int64_t out_stride) {
    constexpr int most = 4;  // whose sums stay in registers
    for (int64_t i = 0; i < n_rows; i++) {
        const uint8_t * row = static_cast<const uint8_t *>(rows) + static_cast<size_t>(i) * row_bytes;
        for (int64_t j = 0; j < n_x; j += most) {
            dot_bytes_row<most>(type, row, n, x + static_cast<size_t>(j) * column_bytes(n), n_x - j,
                                out + j * out_stride + i, out_stride);
        }
    }
}

#endif

void multiply_gate(float * x, const float * gate, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) {
        const int64_t some = n - i < 16 ? n - i : 16;
        const F       y    = load_some(x + i, some) * silu(load_some(gate + i, some));
        std::memcpy(x + i, &y, static_cast<size_t>(some) * sizeof(float));
    }
}

void add(float * x, const float * y, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        x[i] += y[i];
    }
}

// ---- The head

float most(const float * x, int64_t n) {
    F       top = all(-3.4e38f);
    int64_t i   = 0;
    for (; i + 16 <= n; i += 16) {
        top = max(top, load<F>(x + i));
    }
    float result = largest_lane(top);
    for (; i < n; i++) {
        result = x[i] > result ? x[i] : result;
    }
    return result;
}

double sum_of_exponentials(const float * x, int64_t n, float minus) {
    double sum = 0.0;
    for (int64_t first = 0; first < n; first += 4096) {
        const int64_t last   = first + 4096 < n ? first + 4096 : n;
        F             lanes_ = {};
        int64_t       i      = first;
        for (; i + 16 <= last; i += 16) {
            lanes_ += exponential(load<F>(x + i) - minus);
        }
        if (i < last) {
            F rest = all(-3.4e38f);
            std::memcpy(&rest, x + i, static_cast<size_t>(last - i) * sizeof(float));
            lanes_ += exponential(rest - minus);
        }
        sum += static_cast<double>(sum_lanes(lanes_));
    }
    return sum;
}

// ---- Attention

// 16 of n values of a cache's row.
template <bool f16> PCR_INLINE F cached(const uint8_t * row, int64_t at, int64_t n) {
#if defined(PCR_F16)
    if (f16 && n - at >= 16) {
        return from_f16(row + 2 * at);
    }
#endif
    if (f16) {
        float values[16] = {};
        for (int64_t i = 0; i < 16 && at + i < n; i++) {
            values[i] = half(row + 2 * (at + i));
        }
        return load<F>(values);
    }
    return n - at >= 16 ? load<F>(row + 4 * at) : load_some(reinterpret_cast<const float *>(row) + at, n - at);
}

// count <= 64 keys -> columns [4 groups of keys][steps][16 words][16 keys].
template <bool f16>
PCR_INLINE void key_columns(const uint8_t * rows, size_t row_bytes, int64_t count, int64_t head_dim, float * columns) {
    const int64_t width = group_count(head_dim) * 16;
    for (int64_t g = 0; g < group_count(count); g++) {
        for (int64_t d = 0; d < width; d += 16, columns += block_words) {
            U v[16];
            PCR_UNROLL
            for (int i = 0; i < 16; i++) {
                const int64_t key = 16 * g + i;
                v[i] = key < count ? (U)cached<f16>(rows + static_cast<size_t>(key) * row_bytes, d, head_dim) : U{};
            }
            transpose(v);
            PCR_UNROLL
            for (int k = 0; k < 16; k++) {
                store(columns + 16 * k, v[k]);
            }
        }
    }
}

// count <= 64 values -> columns [groups of dims][64 values][16 dims].
template <bool f16>
PCR_INLINE void value_columns(const uint8_t * rows, size_t row_bytes, int64_t count, int64_t head_dim,
                              float * columns) {
    for (int64_t i = 0; i < group_count(count) * 16; i++) {
        for (int64_t g = 0; g < group_count(head_dim); g++) {
            store(columns + (g * attention_keys + i) * 16,
                  i < count ? cached<f16>(rows + static_cast<size_t>(i) * row_bytes, 16 * g, head_dim) : F{});
        }
    }
}

// Keys are taken in blocks of 64 from the first, whatever is asked for, with the running maximum and sum of each query
// (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"). Keys beyond a query's count weigh nothing.
void attend(const float * q, const int32_t * counts, int64_t n_rows, ggml_type type, const void * keys,
            const void * values, size_t row_bytes, int64_t head_dim, float * scratch, float * out) {
    constexpr int64_t block  = attention_keys;
    const int64_t     groups = group_count(head_dim), width = groups * 16;
    float * const     k_columns = scratch;
    float * const     v_columns = k_columns + block * width;
    float * const     scores    = v_columns + block * width;  // [rows][64]
    float             highest[attention_rows];
    F                 sums[attention_rows];

    int32_t n_keys = 0;
    for (int64_t r = 0; r < n_rows; r++) {
        n_keys     = counts[r] > n_keys ? counts[r] : n_keys;
        highest[r] = -3.4e38f;
        sums[r]    = F{};
    }
    std::memset(out, 0, static_cast<size_t>(n_rows * width) * sizeof(float));
    const Rows query_rows{reinterpret_cast<const uint32_t *>(q), 16 * width, width, 16};
    const Rows score_rows{reinterpret_cast<const uint32_t *>(scores), 16 * block, block, 16};

    for (int64_t first = 0; first < n_keys; first += block) {
        const int64_t count = n_keys - first < block ? n_keys - first : block, key_groups = group_count(count);
        const auto *  k = static_cast<const uint8_t *>(keys) + static_cast<size_t>(first) * row_bytes;
        const auto *  v = static_cast<const uint8_t *>(values) + static_cast<size_t>(first) * row_bytes;
        if (type == GGML_TYPE_F16) {
            key_columns<true>(k, row_bytes, count, head_dim, k_columns);
            value_columns<true>(v, row_bytes, count, head_dim, v_columns);
        } else {
            key_columns<false>(k, row_bytes, count, head_dim, k_columns);
            value_columns<false>(v, row_bytes, count, head_dim, v_columns);
        }
        multiply_vectors<false>(query_rows, n_rows, reinterpret_cast<const uint32_t *>(k_columns), 16 * width,
                                key_groups, groups, false, scores, block);
        const I lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        for (int64_t r = 0; r < n_rows; r++) {
            const int32_t seen =
                counts[r] - static_cast<int32_t>(first);  // of this block; may be beyond it or negative
            F s[4];
            F top = all(-3.4e38f);
            for (int g = 0; g < key_groups; g++) {
                s[g] = select(lane + 16 * g < seen, load<F>(scores + r * block + 16 * g), all(-3.4e38f));
                top  = max(top, s[g]);
            }
            const float now = largest_lane(top) > highest[r] ? largest_lane(top) : highest[r];
            if (now > highest[r]) {
                const F shrink = exponential(all(highest[r] - now));
                sums[r]        = sums[r] * shrink;
                for (int64_t d = 0; d < width; d += 16) {
                    store(out + r * width + d, load<F>(out + r * width + d) * shrink);
                }
                highest[r] = now;
            }
            for (int g = 0; g < key_groups; g++) {
                const F weight = exponential(s[g] - now);
                sums[r] += weight;
                store(scores + r * block + 16 * g, weight);
            }
        }
        multiply_vectors<false>(score_rows, n_rows, reinterpret_cast<const uint32_t *>(v_columns), 16 * block, groups,
                                key_groups, true, out, width);
    }
    for (int64_t r = 0; r < n_rows; r++) {
        const float scale = 1.0f / sum_lanes(sums[r]);
        for (int64_t d = 0; d < width; d += 16) {
            store(out + r * width + d, load<F>(out + r * width + d) * scale);
        }
    }
}

}  // namespace

#define PCR_JOIN2(a, b) a##b
#define PCR_JOIN(a, b) PCR_JOIN2(a, b)
#define PCR_TEXT2(a) #a
#define PCR_TEXT(a) PCR_TEXT2(a)

extern const Kernels PCR_JOIN(kernels_, PCR_KERNELS);
const Kernels        PCR_JOIN(kernels_, PCR_KERNELS) = {
    PCR_TEXT(PCR_KERNELS),
#if defined(__AVX512BF16__)
    true,
#else
    false,
#endif
#if defined(PCR_AMX)
    true,
#else
    false,
#endif
    multiply,
    decode,
    to_float,
    pack,
    put_rows,
    put_columns,
    put_words,
    dot_rows,
#if defined(PCR_BYTES)
    takes_bytes,
    to_bytes,
    dot_bytes,
    to_q8_0,
#else
    nullptr,
    nullptr,
    nullptr,
    nullptr,
#endif
    multiply_gate,
    add,
    attend,
    most,
    sum_of_exponentials,
};

}  // namespace pcr
