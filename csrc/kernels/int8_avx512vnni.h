// Products of few rows with quantised matrices in 8-bit integers, for AVX-512 with VNNI.
#pragma once

#include "kernels/unpack.h"

namespace pcr {

namespace {

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

void int8_quantize(const float * x, int64_t n, uint8_t * out) {
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

// The length of what int8_quantize took away from x, or a little more.
float int8_error(const float * x, int64_t n, const uint8_t * at) {
    const Column quantized = column(at, n);
    double       sum       = 0.0;
    for (int64_t i = 0; i < n; i++) {
        const float scale = quantized.scales[i / 256 * 16 + i / 32 % 8];
        const float rest  = x[i] - static_cast<float>(quantized.ordered[i]) * scale;
        sum += double(rest) * double(rest);
    }
    return static_cast<float>(_mm_cvtsd_f64(_mm_sqrt_pd(_mm_set_sd(sum))) * 1.0001);
}

void quantize_q8_0(const float * row, int64_t n, uint8_t * out, float * error, float * norm) {
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
PCR_INLINE void int8_gemv_row(ggml_type type, const uint8_t * row, int64_t n, const Column (&x)[n_x], float * out,
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

bool int8_takes(ggml_type type, int64_t n) {
    return type == GGML_TYPE_Q4_K || type == GGML_TYPE_Q5_K || type == GGML_TYPE_Q6_K ||
           (type == GGML_TYPE_Q8_0 && n % 64 == 0);
}

// n_x of a row's columns, or fewer: the row is unpacked once for all of them.
template <int n_x>
void int8_gemv_row(ggml_type type, const uint8_t * row, int64_t n, const uint8_t * x, int64_t count, float * out,
                   int64_t out_stride) {
    if (count < n_x) {
        if constexpr (n_x > 1) {
            int8_gemv_row<n_x - 1>(type, row, n, x, count, out, out_stride);
        }
        return;
    }
    const size_t bytes = int8_bytes(n);
    Column       columns[n_x];
    for (int j = 0; j < n_x; j++) {
        columns[j] = column(x + static_cast<size_t>(j) * bytes, n);
    }
    int8_gemv_row<n_x>(type, row, n, columns, out, out_stride);
}

void int8_gemv(ggml_type type, const void * rows, size_t row_bytes, int64_t n_rows, int64_t n, const uint8_t * x,
               int64_t n_x, float * out, int64_t out_stride) {
    constexpr int most = 4;  // whose sums stay in registers
    for (int64_t i = 0; i < n_rows; i++) {
        const uint8_t * row = static_cast<const uint8_t *>(rows) + static_cast<size_t>(i) * row_bytes;
        for (int64_t j = 0; j < n_x; j += most) {
            int8_gemv_row<most>(type, row, n, x + static_cast<size_t>(j) * int8_bytes(n), n_x - j,
                                out + j * out_stride + i, out_stride);
        }
    }
}

}  // namespace

}  // namespace pcr
