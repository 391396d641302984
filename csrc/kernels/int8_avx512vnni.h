// AVX-512 with VNNI: a pair of blocks at once. See int8.h.
#pragma once

#include "kernels/unpack.h"

namespace pcr {

namespace {

constexpr int  int8_width  = 64;
constexpr bool int8_biased = true;  // signed codes are multiplied as if they were 128 more

constexpr bool int8_by_place = false;

typedef uint8_t CodeLanes __attribute__((vector_size(64)));
typedef int32_t IntLanes __attribute__((vector_size(64)));
typedef float   FloatLanes __attribute__((vector_size(64)));

// 4 x 4 words in every 128 bits.
PCR_INLINE void transpose_quads(CodeLanes (&v)[4]) {
    const __m512i low[2]  = {_mm512_unpacklo_epi32((__m512i)v[0], (__m512i)v[1]),
                             _mm512_unpacklo_epi32((__m512i)v[2], (__m512i)v[3])};
    const __m512i high[2] = {_mm512_unpackhi_epi32((__m512i)v[0], (__m512i)v[1]),
                             _mm512_unpackhi_epi32((__m512i)v[2], (__m512i)v[3])};
    v[0]                  = (CodeLanes)_mm512_unpacklo_epi64(low[0], low[1]);
    v[1]                  = (CodeLanes)_mm512_unpackhi_epi64(low[0], low[1]);
    v[2]                  = (CodeLanes)_mm512_unpacklo_epi64(high[0], high[1]);
    v[3]                  = (CodeLanes)_mm512_unpackhi_epi64(high[0], high[1]);
}

// 32 bytes at `at` of both blocks.
PCR_INLINE __m512i both_at(const uint8_t * from, int64_t bytes, int at) {
    const auto half = [&](int64_t i) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from + i)); };
    return _mm512_inserti64x4(_mm512_castsi256_si512(half(at)), half(at + bytes), 1);
}

// Quads of four sub-blocks of 32 bytes, which lie at a, b, c and d.
PCR_INLINE void load_quads(const uint8_t * from, int64_t bytes, int, int, int a, int b, int c, int d,
                           CodeLanes (&out)[4]) {
    out[0] = (CodeLanes)both_at(from, bytes, a);
    out[1] = (CodeLanes)both_at(from, bytes, b);
    out[2] = (CodeLanes)both_at(from, bytes, c);
    out[3] = (CodeLanes)both_at(from, bytes, d);
    transpose_quads(out);
}

// The same 32 bytes for all four.
PCR_INLINE void load_quads(const uint8_t * from, int64_t bytes, int, int, int at, CodeLanes (&out)[4]) {
    const __m512i v = both_at(from, bytes, at);
    out[0]          = (CodeLanes)_mm512_shuffle_epi32(v, _MM_PERM_AAAA);
    out[1]          = (CodeLanes)_mm512_shuffle_epi32(v, _MM_PERM_BBBB);
    out[2]          = (CodeLanes)_mm512_shuffle_epi32(v, _MM_PERM_CCCC);
    out[3]          = (CodeLanes)_mm512_shuffle_epi32(v, _MM_PERM_DDDD);
}

// Words of the four places shifted by so many bits; bits of neighbouring bytes come along.
PCR_INLINE CodeLanes shifted_right(CodeLanes v, int, int a, int b, int c, int d) {
    return (CodeLanes)_mm512_srlv_epi32((__m512i)v, _mm512_broadcast_i32x4(_mm_setr_epi32(a, b, c, d)));
}

PCR_INLINE CodeLanes neighbours_swapped(CodeLanes v) {
    return (CodeLanes)_mm512_shuffle_epi32((__m512i)v, _MM_PERM_CDAB);
}

PCR_INLINE __m256i both_blocks(EightWords first, EightWords second) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256((__m128i)first), (__m128i)second, 1);
}

// The scales and minima of Q4_K or Q5_K, d and dmin (F16) multiplied in.
PCR_INLINE void scales_q45_k(const uint8_t * from, int64_t bytes, int, FloatLanes (&out)[2][1]) {
    const auto    at    = [](const uint8_t * p) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(p)); };
    const __m256i heads = _mm256_inserti128_si256(_mm256_castsi128_si256(at(from)), at(from + bytes), 1);
    const auto    each  = [](__m128i v) { return _mm256_broadcastsi128_si256(v); };
    const __m256i first =
        _mm256_shuffle_epi8(heads, each(_mm_setr_epi8(4, 7, 12, 15, 5, 6, 13, 14, 8, 11, 12, 15, 9, 10, 13, 14)));
    const __m256i top =
        _mm256_shuffle_epi8(heads, each(_mm_setr_epi8(-1, -1, 4, 7, -1, -1, 5, 6, -1, -1, 8, 11, -1, -1, 9, 10)));
    const __m256i lower =
        _mm256_and_si256(_mm256_blend_epi16(first, _mm256_srli_epi16(first, 4), 0xa0), _mm256_set1_epi32(0x0f0f3f3f));
    const __m256i codes  = _mm256_or_si256(lower, _mm256_and_si256(_mm256_srli_epi16(top, 2), _mm256_set1_epi8(0x30)));
    const __m256i sorted = _mm256_permute4x64_epi64(codes, 0xd8);  // scales of both blocks, then minima
    const auto    wide   = [](__m128i v) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(v)); };
    const __m256i halves = _mm256_permutevar8x32_epi32(heads, _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4));
    const __m512  d      = _mm512_castps128_ps512(_mm_cvtph_ps(_mm256_castsi256_si128(halves)));
    const auto    pick   = [&](int lane) {
        return _mm512_permutexvar_ps(_mm512_mask_set1_epi32(_mm512_set1_epi32(lane), 0xff00, lane + 2), d);
    };
    out[0][0] = (FloatLanes)_mm512_mul_ps(wide(_mm256_castsi256_si128(sorted)), pick(0));
    out[1][0] = (FloatLanes)_mm512_mul_ps(wide(_mm256_extracti128_si256(sorted, 1)), pick(1));
}

// The scales of each set's halves, d (F16) multiplied in.
PCR_INLINE void scales_q6_k(const uint8_t * from, int64_t bytes, int, FloatLanes (&out)[2][1]) {
    const auto    at     = [&](int64_t i) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(from + i)); };
    const __m256i scales = _mm256_inserti128_si256(_mm256_castsi128_si256(at(192)), at(192 + bytes), 1);
    const __m256i picked = _mm256_shuffle_epi8(
        scales, _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 6, 8, 14, 1, 7, 9, 15, 2, 4, 10, 12, 3, 5, 11, 13)));
    const __m256i sets = _mm256_permute4x64_epi64(picked, 0xd8);
    const __m512  d =
        _mm512_mask_broadcastss_ps(_mm512_set1_ps(half(from + 208)), 0xff00, _mm_set_ss(half(from + bytes + 208)));
    const auto wide = [](__m128i v) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(v)); };
    out[0][0]       = (FloatLanes)_mm512_mul_ps(wide(_mm256_castsi256_si128(sets)), d);
    out[1][0]       = (FloatLanes)_mm512_mul_ps(wide(_mm256_extracti128_si256(sets, 1)), d);
}

// 8 F16 of each block.
template <typename Of> PCR_INLINE void from_halves(int, Of of, FloatLanes (&out)[1]) {
    out[0] = (FloatLanes)_mm512_cvtph_ps(both_blocks(of(0), of(1)));
}

#define PCR_INT8_ADD_DOT 1
// sum + sums of four neighbouring products of unsigned codes and signed ones.
PCR_INLINE IntLanes add_dot(IntLanes sum, CodeLanes codes, CodeLanes x) {
    return (IntLanes)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, (__m512i)x);
}

// 128 of its bits.
PCR_INLINE F4 quarter(FloatLanes v, int i) {
    switch (i) {
        case 0: return (F4)_mm512_castps512_ps128((__m512)v);
        case 1: return (F4)_mm512_extractf32x4_ps((__m512)v, 1);
        case 2: return (F4)_mm512_extractf32x4_ps((__m512)v, 2);
        default: return (F4)_mm512_extractf32x4_ps((__m512)v, 3);
    }
}

// Halves of each set -> sub-blocks.
PCR_INLINE void add_halves(const IntLanes (&sums)[2][1], IntLanes (&out)[1]) {
    const __m512i a = (__m512i)sums[0][0], b = (__m512i)sums[1][0];
    const __m512i first  = _mm512_permutex2var_epi64(a, _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), b);
    const __m512i second = _mm512_permutex2var_epi64(a, _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15), b);
    out[0]               = (IntLanes)_mm512_add_epi32(first, second);
}

// Of scales [block][set][place]: a set's, for both halves.
PCR_INLINE FloatLanes scale_of_halves(const float * scales, int set, int) {
    const __m512 all = _mm512_loadu_ps(scales);
    return (FloatLanes)(set == 0 ? _mm512_shuffle_f32x4(all, all, 0xa0) : _mm512_shuffle_f32x4(all, all, 0xf5));
}

}  // namespace

}  // namespace pcr
