// AVX-512 with VNNI: a pair of blocks at once. See int8.h.
#pragma once

#include "kernels/unpack.h"

namespace pcr {

namespace {

constexpr int  int8_width  = 64;
constexpr bool int8_biased = true;  // signed codes are multiplied as if they were 128 more

typedef uint8_t CodeLanes __attribute__((vector_size(64)));
typedef int32_t IntLanes __attribute__((vector_size(64)));
typedef float   FloatLanes __attribute__((vector_size(64)));

// 16 bytes at `first` and 16 at `second` of both blocks.
PCR_INLINE CodeLanes code_lanes(const uint8_t * from, int64_t bytes, int first, int second, int) {
    const auto at   = [](const uint8_t * p) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(p)); };
    const auto both = [&](const uint8_t * p) {
        return _mm256_inserti128_si256(_mm256_castsi128_si256(at(p + first)), at(p + second), 1);
    };
    return (CodeLanes)_mm512_inserti64x4(_mm512_castsi256_si512(both(from)), both(from + bytes), 1);
}

// The first and the second 128 bits of each block shifted by so many; bits of neighbouring bytes come along.
PCR_INLINE CodeLanes shifted_right(CodeLanes v, int first, int second, int) {
    const __m512i by = _mm512_set_epi64(second, second, first, first, second, second, first, first);
    return (CodeLanes)_mm512_srlv_epi64((__m512i)v, by);
}

PCR_INLINE __m256i both_blocks(EightWords first, EightWords second) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256((__m128i)first), (__m128i)second, 1);
}

// 16 bytes at 32 j + 16 h of both blocks, and 16 bytes 64 behind.
PCR_INLINE void code_lanes_128(const uint8_t * from, int64_t bytes, int, CodeLanes (&out)[2][2]) {
    const __m512i a = _mm512_loadu_si512(from), b = _mm512_loadu_si512(from + 64);
    const __m512i c = _mm512_loadu_si512(from + bytes), d = _mm512_loadu_si512(from + bytes + 64);
    const __m512i ab[2] = {_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(a, b, 0xee)};
    const __m512i cd[2] = {_mm512_shuffle_i32x4(c, d, 0x44), _mm512_shuffle_i32x4(c, d, 0xee)};
    PCR_UNROLL
    for (int j = 0; j < 2; j++) {
        out[j][0] = (CodeLanes)_mm512_shuffle_i32x4(ab[j], cd[j], 0x88);
        out[j][1] = (CodeLanes)_mm512_shuffle_i32x4(ab[j], cd[j], 0xdd);
    }
}

// The scales and minima of Q4_K or Q5_K, d and dmin (F16) multiplied in. 12 bytes hold 8 scales and 8 minima of 6 bits: the
// first four of each in the lower bits of bytes 0..3 and 4..7, the others' lower bits in the nibbles of 8..11, their upper
// ones at the top of 0..3 and 4..7.
PCR_INLINE void scales_q45_k(const uint8_t * from, int64_t bytes, int, FloatLanes & scale, FloatLanes & least) {
    const auto    at    = [](const uint8_t * p) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(p)); };
    const __m256i heads = _mm256_inserti128_si256(_mm256_castsi128_si256(at(from)), at(from + bytes), 1);
    const auto    each  = [](__m128i v) { return _mm256_broadcastsi128_si256(v); };
    const __m256i first =
        _mm256_shuffle_epi8(heads, each(_mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15)));
    const __m256i top =
        _mm256_shuffle_epi8(heads, each(_mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11)));
    const __m256i lower  = _mm256_and_si256(_mm256_blend_epi32(first, _mm256_srli_epi16(first, 4), 0x88),
                                            each(_mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f)));
    const __m256i codes  = _mm256_or_si256(lower, _mm256_and_si256(_mm256_srli_epi16(top, 2), _mm256_set1_epi8(0x30)));
    const __m256i sorted = _mm256_permute4x64_epi64(codes, 0xd8);  // scales of both blocks, then minima
    const auto    wide   = [](__m128i v) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(v)); };
    const __m256i halves = _mm256_permutevar8x32_epi32(heads, _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4));
    const __m512  d      = _mm512_castps128_ps512(_mm_cvtph_ps(_mm256_castsi256_si128(halves)));
    const auto    pick   = [&](int lane) {
        return _mm512_permutexvar_ps(_mm512_mask_set1_epi32(_mm512_set1_epi32(lane), 0xff00, lane + 2), d);
    };
    scale = (FloatLanes)_mm512_mul_ps(wide(_mm256_castsi256_si128(sorted)), pick(0));
    least = (FloatLanes)_mm512_mul_ps(wide(_mm256_extracti128_si256(sorted, 1)), pick(1));
}

// 8 numbers of each block, 16-bit integers or F16; or one number.
template <typename Of> PCR_INLINE FloatLanes from_words(int, Of of) {
    return (FloatLanes)_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(both_blocks(of(0), of(1))));
}

template <typename Of> PCR_INLINE FloatLanes from_halves(int, Of of) {
    return (FloatLanes)_mm512_cvtph_ps(both_blocks(of(0), of(1)));
}

template <typename Of> PCR_INLINE FloatLanes each_block(int, Of of) {
    return (FloatLanes)_mm512_mask_broadcastss_ps(_mm512_set1_ps(of(0)), 0xff00, _mm_set_ss(of(1)));
}

// a0 + a2, b0 + b2, a1 + a3, b1 + b3 of four lanes a and b, and then pairs of those: see sums_of_four().
PCR_INLINE IntLanes interleaved32(IntLanes a, IntLanes b) {
    return (IntLanes)_mm512_add_epi32(_mm512_unpacklo_epi32((__m512i)a, (__m512i)b),
                                      _mm512_unpackhi_epi32((__m512i)a, (__m512i)b));
}

PCR_INLINE IntLanes interleaved64(IntLanes a, IntLanes b) {
    return (IntLanes)_mm512_add_epi32(_mm512_unpacklo_epi64((__m512i)a, (__m512i)b),
                                      _mm512_unpackhi_epi64((__m512i)a, (__m512i)b));
}

// Sums of four neighbouring products. Codes are 0..63.
PCR_INLINE IntLanes dot_codes(CodeLanes codes, CodeLanes x) {
    return (IntLanes)_mm512_dpbusd_epi32(_mm512_setzero_si512(), (__m512i)codes, (__m512i)x);
}

// The same of both halves. Codes are 0..31.
PCR_INLINE IntLanes dot_small_codes(const CodeLanes (&codes)[2], CodeLanes x0, CodeLanes x1) {
    return (IntLanes)_mm512_dpbusd_epi32((__m512i)dot_codes(codes[0], x0), (__m512i)codes[1], (__m512i)x1);
}

// Codes are -128..127, with 128 added.
PCR_INLINE IntLanes dot_signed(const CodeLanes (&codes)[2], CodeLanes x0, CodeLanes x1) {
    return dot_small_codes(codes, x0, x1);
}

#define PCR_INT8_GEMM 1
// Sums of products of 4 values in each lane: over n_quads, of n_rows rows and n_vectors vectors of x. word(r, q): 4 codes of
// a row, for all lanes; start(r): what its sums begin with; x(v, q): 4 values of each lane. small: codes are 0..31; bytes:
// any signed byte; else -32..31.
template <bool small, bool bytes, int n_rows, int n_vectors, int n_quads, typename Word, typename Start, typename X>
PCR_INLINE void int8_products(Word word, Start start, X x, IntLanes (&sums)[n_rows][n_vectors]) {
    PCR_UNROLL
    for (int r = 0; r < n_rows; r++) {
        PCR_UNROLL
        for (int v = 0; v < n_vectors; v++) {
            sums[r][v] = (IntLanes)_mm512_set1_epi32(start(r));
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
            const __m512i codes = _mm512_set1_epi32(word(r, q));
            PCR_UNROLL
            for (int v = 0; v < n_vectors; v++) {
                sums[r][v] = (IntLanes)_mm512_dpbusd_epi32((__m512i)sums[r][v], (__m512i)values[v], codes);
            }
        }
    }
}

}  // namespace

}  // namespace pcr
