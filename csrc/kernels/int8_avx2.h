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
constexpr bool int8_by_place = false;

typedef uint8_t CodeLanes __attribute__((vector_size(32)));
typedef int32_t IntLanes __attribute__((vector_size(32)));
typedef float   FloatLanes __attribute__((vector_size(32)));

// 4 x 4 words in every 128 bits.
PCR_INLINE void transpose_quads(CodeLanes (&v)[4]) {
    const __m256i low[2]  = {_mm256_unpacklo_epi32((__m256i)v[0], (__m256i)v[1]),
                             _mm256_unpacklo_epi32((__m256i)v[2], (__m256i)v[3])};
    const __m256i high[2] = {_mm256_unpackhi_epi32((__m256i)v[0], (__m256i)v[1]),
                             _mm256_unpackhi_epi32((__m256i)v[2], (__m256i)v[3])};
    v[0]                  = (CodeLanes)_mm256_unpacklo_epi64(low[0], low[1]);
    v[1]                  = (CodeLanes)_mm256_unpackhi_epi64(low[0], low[1]);
    v[2]                  = (CodeLanes)_mm256_unpacklo_epi64(high[0], high[1]);
    v[3]                  = (CodeLanes)_mm256_unpackhi_epi64(high[0], high[1]);
}

// Quads of four sub-blocks of 32 bytes, which lie at a, b, c and d.
PCR_INLINE void load_quads(const uint8_t * from, int64_t bytes, int turn, int, int a, int b, int c, int d,
                           CodeLanes (&out)[4]) {
    out[0] = load<CodeLanes>(from + bytes * turn + a);
    out[1] = load<CodeLanes>(from + bytes * turn + b);
    out[2] = load<CodeLanes>(from + bytes * turn + c);
    out[3] = load<CodeLanes>(from + bytes * turn + d);
    transpose_quads(out);
}

// The same 32 bytes for all four.
PCR_INLINE void load_quads(const uint8_t * from, int64_t bytes, int turn, int, int at, CodeLanes (&out)[4]) {
    const auto v = (__m256i)load<CodeLanes>(from + bytes * turn + at);
    out[0]       = (CodeLanes)_mm256_shuffle_epi32(v, 0x00);
    out[1]       = (CodeLanes)_mm256_shuffle_epi32(v, 0x55);
    out[2]       = (CodeLanes)_mm256_shuffle_epi32(v, 0xaa);
    out[3]       = (CodeLanes)_mm256_shuffle_epi32(v, 0xff);
}

// Words of the four places shifted by so many bits; bits of neighbouring bytes come along.
PCR_INLINE CodeLanes shifted_right(CodeLanes v, int, int a, int b, int c, int d) {
    return (CodeLanes)_mm256_srlv_epi32((__m256i)v, _mm256_setr_epi32(a, b, c, d, a, b, c, d));
}

PCR_INLINE CodeLanes neighbours_swapped(CodeLanes v) {
    return (CodeLanes)_mm256_shuffle_epi32((__m256i)v, 0xb1);
}

// The scales and minima of Q4_K or Q5_K, d and dmin (F16) multiplied in.
PCR_INLINE void scales_q45_k(const uint8_t * from, int64_t bytes, int turn, FloatLanes (&out)[2][1]) {
    const __m128i head = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from + bytes * turn));
    const __m128i first =
        _mm_shuffle_epi8(head, _mm_setr_epi8(4, 7, 12, 15, 5, 6, 13, 14, 8, 11, 12, 15, 9, 10, 13, 14));
    const __m128i top = _mm_shuffle_epi8(head, _mm_setr_epi8(-1, -1, 4, 7, -1, -1, 5, 6, -1, -1, 8, 11, -1, -1, 9, 10));
    const __m128i lower =
        _mm_and_si128(_mm_blend_epi16(first, _mm_srli_epi16(first, 4), 0xa0), _mm_set1_epi32(0x0f0f3f3f));
    const __m128i codes = _mm_or_si128(lower, _mm_and_si128(_mm_srli_epi16(top, 2), _mm_set1_epi8(0x30)));
    const auto    wide  = [](__m128i v) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(v)); };
    const __m128  d     = _mm_cvtph_ps(head);
    out[0][0]           = (FloatLanes)_mm256_mul_ps(wide(codes), _mm256_broadcastss_ps(d));
    out[1][0] =
        (FloatLanes)_mm256_mul_ps(wide(_mm_unpackhi_epi64(codes, codes)), _mm256_broadcastss_ps(_mm_movehdup_ps(d)));
}

// The scales of each set's halves, d (F16) multiplied in.
PCR_INLINE void scales_q6_k(const uint8_t * from, int64_t bytes, int turn, FloatLanes (&out)[2][1]) {
    const __m128i scales = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from + bytes * turn + 192));
    const __m128i picked =
        _mm_shuffle_epi8(scales, _mm_setr_epi8(0, 6, 8, 14, 1, 7, 9, 15, 2, 4, 10, 12, 3, 5, 11, 13));
    const __m256 d    = _mm256_set1_ps(half(from + bytes * turn + 208));
    const auto   wide = [](__m128i v) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)); };
    out[0][0]         = (FloatLanes)_mm256_mul_ps(wide(picked), d);
    out[1][0]         = (FloatLanes)_mm256_mul_ps(wide(_mm_unpackhi_epi64(picked, picked)), d);
}

// 8 F16 of the turn's block.
template <typename Of> PCR_INLINE void from_halves(int turn, Of of, FloatLanes (&out)[1]) {
    out[0] = (FloatLanes)_mm256_cvtph_ps((__m128i)of(turn));
}

// 128 of its bits.
PCR_INLINE F4 quarter(FloatLanes v, int i) {
    return (F4)(i == 0 ? _mm256_castps256_ps128((__m256)v) : _mm256_extractf128_ps((__m256)v, 1));
}

// Halves of each set -> sub-blocks.
PCR_INLINE void add_halves(const IntLanes (&sums)[2][1], IntLanes (&out)[1]) {
    const __m256i a = (__m256i)sums[0][0], b = (__m256i)sums[1][0];
    out[0] = (IntLanes)_mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

// Of scales [block][set][place]: a set's, for both halves.
PCR_INLINE FloatLanes scale_of_halves(const float * scales, int set, int turn) {
    return (FloatLanes)_mm256_broadcast_ps(reinterpret_cast<const __m128 *>(scales + 8 * turn + 4 * set));
}

#if defined(__AVXVNNI__)

#  define PCR_INT8_ADD_DOT 1
// sum + sums of four neighbouring products of unsigned codes and signed ones.
PCR_INLINE IntLanes add_dot(IntLanes sum, CodeLanes codes, CodeLanes x) {
    return (IntLanes)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)codes, (__m256i)x);
}

#else

PCR_INLINE IntLanes sums_of_pairs(__m256i pairs) {
    return (IntLanes)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

// start + sums of the four quads' products. small: codes are 0..31, so that the sum of all four stays within 16 bits; halves:
// 0..63, and that of two does; bytes: any signed byte: its magnitude times x with its sign.
template <Codes kind> PCR_INLINE IntLanes dot(IntLanes start, const CodeLanes (&codes)[4], const CodeLanes (&x)[4]) {
    __m256i pairs[4];
    PCR_UNROLL
    for (int m = 0; m < 4; m++) {
        const auto w = (__m256i)codes[m], y = (__m256i)x[m];
        pairs[m] = kind == Codes::bytes ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(y, w))
                                        : _mm256_maddubs_epi16(w, y);
    }
    if (kind == Codes::bytes) {
        return start + ((sums_of_pairs(pairs[0]) + sums_of_pairs(pairs[1])) +
                        (sums_of_pairs(pairs[2]) + sums_of_pairs(pairs[3])));
    }
    const __m256i first = _mm256_add_epi16(pairs[0], pairs[1]), second = _mm256_add_epi16(pairs[2], pairs[3]);
    return start + (kind == Codes::small ? sums_of_pairs(_mm256_add_epi16(first, second))
                                         : sums_of_pairs(first) + sums_of_pairs(second));
}

// See int8_gemm.h.
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

}  // namespace

}  // namespace pcr
