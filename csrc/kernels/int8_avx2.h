// AVX2, with or without AVX-VNNI: a block at a time. See int8.h.
#pragma once

#include "kernels/unpack.h"

namespace pcr {

namespace {

constexpr int int8_width = 32;
#if defined(__AVXVNNI__)
constexpr bool int8_biased = true;  // signed codes are multiplied as if they were 128 more
#else
constexpr bool int8_biased = false;
#endif

typedef uint8_t CodeLanes __attribute__((vector_size(32)));
typedef int32_t IntLanes __attribute__((vector_size(32)));
typedef float   FloatLanes __attribute__((vector_size(32)));

// 16 bytes at `first` and 16 at `second` of the turn's block.
PCR_INLINE CodeLanes code_lanes(const uint8_t * from, int64_t bytes, int first, int second, int turn) {
    const auto at = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(from + bytes * turn + i)); };
    return (CodeLanes)_mm256_inserti128_si256(_mm256_castsi128_si256(at(first)), at(second), 1);
}

// The first and the second 128 bits shifted by so many; bits of neighbouring bytes come along.
PCR_INLINE CodeLanes shifted_right(CodeLanes v, int first, int second, int) {
    return (CodeLanes)_mm256_srlv_epi64((__m256i)v, _mm256_set_epi64x(second, second, first, first));
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
    const __m128i head = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from + bytes * turn));
    const __m128i first =
        _mm_shuffle_epi8(head, _mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15));
    const __m128i top = _mm_shuffle_epi8(head, _mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11));
    const __m128i lower = _mm_and_si128(_mm_blend_epi32(first, _mm_srli_epi16(first, 4), 8),
                                        _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f));
    const __m128i codes = _mm_or_si128(lower, _mm_and_si128(_mm_srli_epi16(top, 2), _mm_set1_epi8(0x30)));
    const auto    wide  = [](__m128i v) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(v)); };
    const __m128  d     = _mm_cvtph_ps(head);
    scale               = (FloatLanes)_mm256_mul_ps(wide(codes), _mm256_broadcastss_ps(d));
    least =
        (FloatLanes)_mm256_mul_ps(wide(_mm_unpackhi_epi64(codes, codes)), _mm256_broadcastss_ps(_mm_movehdup_ps(d)));
}

// 8 numbers of the turn's block, 16-bit integers or F16; or one number.
template <typename Of> PCR_INLINE FloatLanes from_words(int turn, Of of) {
    return (FloatLanes)_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32((__m128i)of(turn)));
}

template <typename Of> PCR_INLINE FloatLanes from_halves(int turn, Of of) {
    return (FloatLanes)_mm256_cvtph_ps((__m128i)of(turn));
}

template <typename Of> PCR_INLINE FloatLanes each_block(int turn, Of of) {
    return of(turn) - FloatLanes{};
}

// a0 + a2, b0 + b2, a1 + a3, b1 + b3 of four lanes a and b, and then pairs of those: see sums_of_four().
PCR_INLINE IntLanes interleaved32(IntLanes a, IntLanes b) {
    return (IntLanes)_mm256_add_epi32(_mm256_unpacklo_epi32((__m256i)a, (__m256i)b),
                                      _mm256_unpackhi_epi32((__m256i)a, (__m256i)b));
}

PCR_INLINE IntLanes interleaved64(IntLanes a, IntLanes b) {
    return (IntLanes)_mm256_add_epi32(_mm256_unpacklo_epi64((__m256i)a, (__m256i)b),
                                      _mm256_unpackhi_epi64((__m256i)a, (__m256i)b));
}

#if defined(__AVXVNNI__)

PCR_INLINE IntLanes dot_codes(CodeLanes codes, CodeLanes x) {
    return (IntLanes)_mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), (__m256i)codes, (__m256i)x);
}

PCR_INLINE IntLanes dot_small_codes(const CodeLanes (&codes)[2], CodeLanes x0, CodeLanes x1) {
    return (IntLanes)_mm256_dpbusd_avx_epi32((__m256i)dot_codes(codes[0], x0), (__m256i)codes[1], (__m256i)x1);
}

PCR_INLINE IntLanes dot_signed(const CodeLanes (&codes)[2], CodeLanes x0, CodeLanes x1) {
    return dot_small_codes(codes, x0, x1);
}

// Sums of products of 4 values in each lane: over n_quads, of n_rows rows and n_vectors vectors of x. word(r, q): 4 codes of
// a row, for all lanes; start(r): what its sums begin with; x(v, q): 4 values of each lane. small: codes are 0..31; bytes:
// any signed byte; else -32..31.
template <bool small, bool bytes, int n_rows, int n_vectors, int n_quads, typename Word, typename Start, typename X>
PCR_INLINE void int8_products(Word word, Start start, X x, IntLanes (&sums)[n_rows][n_vectors]) {
    PCR_UNROLL
    for (int r = 0; r < n_rows; r++) {
        PCR_UNROLL
        for (int v = 0; v < n_vectors; v++) {
            sums[r][v] = (IntLanes)_mm256_set1_epi32(start(r));
        }
    }
    PCR_UNROLL
    for (int q = 0; q < n_quads; q++) {
        CodeLanes values[n_vectors];
        PCR_UNROLL
        for (int v = 0; v < n_vectors; v++) {
            values[v] = x(v, q);
        }
        PCR_UNROLL
        for (int r = 0; r < n_rows; r++) {
            const __m256i codes = _mm256_set1_epi32(word(r, q));
            PCR_UNROLL
            for (int v = 0; v < n_vectors; v++) {
                sums[r][v] = (IntLanes)_mm256_dpbusd_avx_epi32((__m256i)sums[r][v], (__m256i)values[v], codes);
            }
        }
    }
}

#else

PCR_INLINE IntLanes sums_of_pairs(__m256i pairs) {
    return (IntLanes)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

// Sums of four neighbouring products. Codes are 0..63, so that pairs stay within 16 bits.
PCR_INLINE IntLanes dot_codes(CodeLanes codes, CodeLanes x) {
    return sums_of_pairs(_mm256_maddubs_epi16((__m256i)codes, (__m256i)x));
}

// The same of both halves. Codes are 0..31, so that even two pairs do.
PCR_INLINE IntLanes dot_small_codes(const CodeLanes (&codes)[2], CodeLanes x0, CodeLanes x1) {
    return sums_of_pairs(_mm256_add_epi16(_mm256_maddubs_epi16((__m256i)codes[0], (__m256i)x0),
                                          _mm256_maddubs_epi16((__m256i)codes[1], (__m256i)x1)));
}

// Codes are -128..127: their magnitude times x with their sign, which stays within 16 bits.
PCR_INLINE IntLanes dot_signed(const CodeLanes (&codes)[2], CodeLanes x0, CodeLanes x1) {
    const auto pairs = [](CodeLanes w, CodeLanes x) {
        return _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)w), _mm256_sign_epi8((__m256i)x, (__m256i)w));
    };
    return sums_of_pairs(pairs(codes[0], x0)) + sums_of_pairs(pairs(codes[1], x1));
}

// Sums of products of 4 values in each lane: over n_quads, of n_rows rows and n_vectors vectors of x. word(r, q): 4 codes of
// a row, for all lanes; start(r): what its sums begin with; x(v, q): 4 values of each lane. small: codes are 0..31; bytes:
// any signed byte; else -32..31.
template <bool small, bool bytes, int n_rows, int n_vectors, int n_quads, typename Word, typename Start, typename X>
PCR_INLINE void int8_products(Word word, Start, X x, IntLanes (&sums)[n_rows][n_vectors]) {
    constexpr int together = bytes ? 1 : 4;  // pairs whose sum stays within 16 bits
    for (int first = 0; first < n_quads; first += together) {
        __m256i pairs[n_rows][n_vectors];
        PCR_UNROLL
        for (int q = 0; q < together; q++) {
            __m256i values[n_vectors];
            PCR_UNROLL
            for (int v = 0; v < n_vectors; v++) {
                values[v] = (__m256i)x(v, first + q);
            }
            PCR_UNROLL
            for (int r = 0; r < n_rows; r++) {
                const __m256i codes = _mm256_set1_epi32(word(r, first + q));
                const __m256i size  = small ? codes : _mm256_abs_epi8(codes);
                PCR_UNROLL
                for (int v = 0; v < n_vectors; v++) {
                    const __m256i products =
                        _mm256_maddubs_epi16(size, small ? values[v] : _mm256_sign_epi8(values[v], codes));
                    pairs[r][v] = q == 0 ? products : _mm256_add_epi16(pairs[r][v], products);
                    __asm__("" : "+x"(pairs[r][v]));  // one by one: GCC adds in a tree, for which it has no registers
                }
            }
        }
        PCR_UNROLL
        for (int r = 0; r < n_rows; r++) {
            PCR_UNROLL
            for (int v = 0; v < n_vectors; v++) {
                sums[r][v] = first == 0 ? sums_of_pairs(pairs[r][v]) : sums[r][v] + sums_of_pairs(pairs[r][v]);
            }
        }
    }
}

#endif

#define PCR_INT8_GEMM 1

}  // namespace

}  // namespace pcr
