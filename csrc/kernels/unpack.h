// Matrix rows of any of ggml's types -> F32 or the words of a packed panel.
#pragma once

#include "kernels/simd.h"

namespace pcr {

namespace {

// As many BF16 or F16 as a register takes of F32.
typedef uint16_t HalfWords __attribute__((vector_size(2 * lanes)));

PCR_INLINE FloatRegister register_from_bf16(const uint8_t * from) {
#if defined(__AVX512F__)
    const auto words = (UintRegister)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
#elif defined(__AVX2__)
    const auto words = (UintRegister)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
#else
    const UintRegister words = __builtin_convertvector(load<HalfWords>(from), UintRegister);
#endif
    return (FloatRegister)(words << 16);
}

PCR_INLINE FloatRegister register_from_f16(const uint8_t * from) {
#if defined(__AVX512F__)
    return (FloatRegister)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
#elif defined(__F16C__)
    return (FloatRegister)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
#elif defined(__aarch64__)
    return (FloatRegister)vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(from)));
#else
    const UintRegister bits     = __builtin_convertvector(load<HalfWords>(from), UintRegister);
    const UintRegister size     = (bits & 0x7fffu) << 13;  // exponent and fraction in place, the exponent 112 too small
    const auto         value    = (UintRegister)((FloatRegister)size * 0x1p112f);
    const auto         infinite = (UintRegister)((IntRegister)size >= 0x0f800000);  // or no number
    return (FloatRegister)((value & ~infinite) | ((size | 0x7f800000u) & infinite) | ((bits & 0x8000u) << 16));
#endif
}

// 16 of them.
PCR_INLINE F from_bf16(const uint8_t * from) {
    return by_parts<FloatRegister>([&](int p) PCR_LAMBDA { return register_from_bf16(from + 2 * lanes * p); });
}

PCR_INLINE F from_f16(const uint8_t * from) {
    return by_parts<FloatRegister>([&](int p) PCR_LAMBDA { return register_from_f16(from + 2 * lanes * p); });
}

PCR_INLINE F from_u8(B bytes) {
    return to_float(widened<uint8_t>(&bytes));
}

PCR_INLINE F from_i8(const uint8_t * from) {
    return to_float(widened<int8_t>(from));
}

PCR_INLINE float half(const uint8_t * from) {
    uint16_t bits;
    std::memcpy(&bits, from, 2);
#if defined(__F16C__)
    return _cvtsh_ss(bits);
#elif defined(__aarch64__)
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits))), 0);
#else
    return ggml_fp16_to_fp32(bits);
#endif
}

PCR_INLINE uint16_t half_of(float x) {
#if defined(__F16C__)
    return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__aarch64__)
    return vget_lane_u16(vreinterpret_u16_f16(vcvt_f16_f32(vdupq_n_f32(x))), 0);
#else
    return ggml_fp32_to_fp16(x);
#endif
}

PCR_INLINE float square_root(float x) {
#if defined(__SSE__)
    return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x)));
#elif defined(__aarch64__)
    return vget_lane_f32(vsqrt_f32(vdup_n_f32(x)), 0);
#else
    return __builtin_sqrtf(x);
#endif
}

constexpr uint8_t lane_numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

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
PCR_INLINE void unpack_chunk(ggml_type type, const uint8_t * from, int64_t n, float * out) {
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
            for (; i + 16 <= n; i += 16) {
                store(out + i, from_f16(from + 2 * i));
            }
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

void unpack_f32(ggml_type type, const void * row, int64_t n, float * out) {
    const uint8_t * from = static_cast<const uint8_t *>(row);
    const size_t bytes = ggml_row_size(type, ggml_blck_size(type)) * static_cast<size_t>(chunk / ggml_blck_size(type));
    for (int64_t at = 0; at < n; at += chunk, from += bytes) {
        unpack_chunk(type, from, n - at < chunk ? n - at : chunk, out + at);
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
// PackedRows of the types that matter most, straight into BF16. False for others.
PCR_INLINE bool unpack_bf16(ggml_type type, const uint8_t * from, int64_t n, uint32_t * out, int64_t out_step) {
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
        const F count = to_float(widened<uint8_t>(lane_numbers));
        for (int64_t b = 0; b < n / 256; b++, from += 144) {
            fetch_ahead(from, 144);
            alignas(64) float scales[16];
            _mm512_store_ps(scales, scales_q45_k(from));
            for (int j = 0; j < 4; j++) {
                const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from + 16 + 32 * j));
                const __m512i words = _mm512_cvtepu8_epi16(bytes);
                for (int h = 0; h < 2; h++, out += out_step) {
                    const F       numbers = count * scales[2 * j + h] - scales[8 + 2 * j + h];
                    const __m512i table = _mm512_castsi256_si512((__m256i)_mm512_cvtneps_pbh((__m512)numbers.part[0]));
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

void unpack(ComputeType to, ggml_type type, const void * row, int64_t n, uint32_t * out, int64_t out_step) {
    const uint8_t * from = static_cast<const uint8_t *>(row);
#if defined(__AVX512BF16__)
    if (to == ComputeType::bf16 && unpack_bf16(type, from, n, out, out_step)) {
        return;
    }
#endif
    const size_t bytes = ggml_row_size(type, ggml_blck_size(type)) * static_cast<size_t>(chunk / ggml_blck_size(type));
    alignas(64) float values[chunk];
    for (int64_t at = 0; at < n; at += chunk, from += bytes) {
        const int64_t count = n - at < chunk ? n - at : chunk;
        unpack_chunk(type, from, count, values);
        if (count < chunk) {
            std::memset(values + count, 0, static_cast<size_t>(chunk - count) * sizeof(float));
        }
        if (to == ComputeType::bf16) {
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

}  // namespace

}  // namespace pcr
