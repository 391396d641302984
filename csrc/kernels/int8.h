// Products with quantised matrices in 8-bit integers: sums of 32 products are exact, and scaled as F32.
//
// A row is taken in pairs of blocks of 256 values; a block is 8 sub-blocks of 32, a sub-block two halves of 16. One order
// of additions serves every instruction set, one row and many, so that all of them agree to the last bit (but for fused
// multiply-add, which some have and some have not):
//   c[s]  of even blocks, one after the other: the sub-block's integer sum, times the scale of x and the matrix's, added
//         up; what the matrix's minimum takes away is subtracted each time
//   c[s]  + that of odd blocks
//   y     ((t[0] + t[1]) + t[2]) + t[3] with t[k] = c[k] + c[k + 4]
// Where halves have scales of their own (Q6_K), c[s] of the second ones is added to that of the first ones before.
//
// 512 bits hold half h of the sub-blocks k and k + 4 of a pair, 128 bits each; a narrower register takes several turns.
#pragma once

#include "kernels/gemv.h"

namespace pcr {

namespace {

constexpr int64_t int8_block = 256;

// 512 values of a row x: each 32 scaled to -127..127.
struct Int8Pair {
    int8_t  codes[4][2][2][2][16];  // [k][half][block][sub-block k, k + 4][16]
    float   scale[2][8];  // [block][sub-block]
    float   sum[2][8];  // the scale times the sum of its codes
    int32_t half_sum[2][2][8];  // [half][block][sub-block]: the sum of a half's codes
};
static_assert(sizeof(Int8Pair) == int8_bytes(2 * int8_block), "kernels.h");

constexpr int64_t int8_blocks(int64_t n) {
    return (n + int8_block - 1) / int8_block;
}

constexpr int64_t int8_pairs(int64_t n) {
    return (int8_blocks(n) + 1) / 2;
}

typedef int16_t EightWords __attribute__((vector_size(16)));

}  // namespace

}  // namespace pcr

#if defined(__AVX512VNNI__)
#  include "kernels/int8_avx512vnni.h"
#elif defined(__AVX2__)
#  include "kernels/int8_avx2.h"
#elif defined(__aarch64__)
#  include "kernels/int8_neon.h"
#else
#  include "kernels/int8_any.h"
#endif

namespace pcr {

namespace {

// int8_width bytes of codes, and as many 32-bit lanes as fit: a lane for each sub-block.
constexpr int int8_turns = 64 / int8_width;

// A turn's share of 64 bytes of x.
template <typename V> PCR_INLINE V share(const void * x, int turn) {
    return load<V>(static_cast<const uint8_t *>(x) + static_cast<size_t>(turn) * sizeof(V));
}

// Rounds to nearest, ties to even. |x| below 2^22.
PCR_INLINE I rounded(F x) {
    const F magic = all(12582912.0f);  // 1.5 * 2^23
    return to_int((x + magic) - magic);
}

PCR_INLINE F magnitude(F x) {
    return (F)((I)x & 0x7fffffff);
}

// Four sums of four lanes each -> four lanes, in every 128 bits.
PCR_INLINE IntLanes sums_of_four(const IntLanes (&a)[4]) {
    const IntLanes low = interleaved32(a[0], a[1]), high = interleaved32(a[2], a[3]);
    return interleaved64(low, high);
}

void int8_quantize(const float * x, int64_t n, uint8_t * out) {
    auto * pairs = reinterpret_cast<Int8Pair *>(out);
    std::memset(pairs + (n - 1) / (2 * int8_block), 0, sizeof(Int8Pair));
    for (int64_t first = 0; first < n; first += int8_block) {
        Int8Pair &    to      = pairs[first / (2 * int8_block)];
        const int64_t block   = first / int8_block % 2;
        const int64_t count   = (n - first < int8_block ? n - first : int8_block) / 32;  // of sub-blocks
        float         most[8] = {}, inverse[8];
        for (int64_t s = 0; s < count; s++) {
            const float * from = x + first + 32 * s;
            most[s]            = largest_lane(max(magnitude(load<F>(from)), magnitude(load<F>(from + 16))));
        }
        for (int s = 0; s < 8; s++) {
            to.scale[block][s] = most[s] / 127.0f;
            inverse[s]         = most[s] > 0.0f ? 127.0f / most[s] : 0.0f;
        }
        for (int64_t s = 0; s < count; s++) {
            PCR_UNROLL
            for (int h = 0; h < 2; h++) {
                store_bytes(to.codes[s % 4][h][block][s / 4],
                            rounded(load<F>(x + first + 32 * s + 16 * h) * inverse[s]));
            }
        }
    }
    for (int64_t i = 0; i < int8_pairs(n); i++) {
        PCR_UNROLL
        for (int turn = 0; turn < int8_turns; turn++) {
            IntLanes sums[2];
            PCR_UNROLL
            for (int h = 0; h < 2; h++) {
                const auto ones = [&](int k) PCR_LAMBDA {
                    return dot_codes(CodeLanes{} + 1, share<CodeLanes>(pairs[i].codes[k][h], turn));
                };
                const IntLanes of[4] = {ones(0), ones(1), ones(2), ones(3)};
                sums[h]              = sums_of_four(of);
                store(reinterpret_cast<uint8_t *>(pairs[i].half_sum[h]) + int8_width * turn, sums[h]);
            }
            store(reinterpret_cast<uint8_t *>(pairs[i].sum) + int8_width * turn,
                  share<FloatLanes>(pairs[i].scale, turn) * __builtin_convertvector(sums[0] + sums[1], FloatLanes));
        }
    }
}

// The length of what int8_quantize took away from x, or a little more.
float int8_error(const float * x, int64_t n, const uint8_t * at) {
    const auto * pairs = reinterpret_cast<const Int8Pair *>(at);
    double       sum   = 0.0;
    for (int64_t i = 0; i < n; i++) {
        const Int8Pair & from  = pairs[i / (2 * int8_block)];
        const int64_t    block = i / int8_block % 2, s = i / 32 % 8;
        const float      code = static_cast<float>(from.codes[s % 4][i / 16 % 2][block][s / 4][i % 16]);
        const float      rest = x[i] - code * from.scale[block][s];
        sum += double(rest) * double(rest);
    }
    return square_root(static_cast<float>(sum)) * 1.0001f;
}

void quantize_q8_0(const float * row, int64_t n, uint8_t * out, float * error, float * norm) {
    F lost = {}, kept = {};
    for (int64_t i = 0; i < n; i += 32, out += 34) {
        const F        values[2] = {load<F>(row + i), load<F>(row + i + 16)};
        const float    most      = largest_lane(max(magnitude(values[0]), magnitude(values[1])));
        const uint16_t bits      = half_of(most / 127.0f);
        std::memcpy(out, &bits, 2);
        const float scale = half(out), inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
        for (int h = 0; h < 2; h++) {
            const F limit = all(127.0f), code = -max(-max(values[h] * inverse, -limit), -limit);  // F16 may round down
            const I codes = rounded(code);
            store_bytes(out + 2 + 16 * h, codes);
            const F stands_for = to_float(codes) * scale;
            lost += (values[h] - stands_for) * (values[h] - stands_for);
            kept += stands_for * stands_for;
        }
    }
    *error = square_root(sum_lanes(lost)) * 1.001f;
    *norm  = square_root(sum_lanes(kept)) * 1.001f;
}

bool int8_takes(ggml_type type, int64_t n) {
    return type == GGML_TYPE_Q4_K || type == GGML_TYPE_Q5_K || type == GGML_TYPE_Q6_K ||
           (type == GGML_TYPE_Q8_0 && n % 32 == 0);
}

constexpr int64_t int8_block_bytes(ggml_type type) {
    return type == GGML_TYPE_Q4_K ? 144 : type == GGML_TYPE_Q5_K ? 176 : type == GGML_TYPE_Q6_K ? 210 : 272;
}

// A turn's share of a pair of blocks of the matrix.
struct Int8Weights {
    CodeLanes  codes[4][2];  // [k][half]; Q8_0: signed, and with int8_biased 128 more
    FloatLanes scale[2];  // Q6_K: of each half; else the first
    FloatLanes least;  // Q4_K, Q5_K: the minimum
};

// ggml's block_q4_K: d, dmin (F16), 12 bytes of scales and minima, 128 bytes of nibbles; block_q5_K: 32 bytes of fifth
// bits before the nibbles.
template <bool fifth> PCR_INLINE Int8Weights weights_q45_k(const uint8_t * from, int turn) {
    constexpr int64_t bytes = fifth ? 176 : 144;
    Int8Weights       w;
    scales_q45_k(from, bytes, turn, w.scale[0], w.least);
    CodeLanes nibbles[2][2];
    code_lanes_128(from + (fifth ? 48 : 16), bytes, turn, nibbles);
    PCR_UNROLL
    for (int j = 0; j < 2; j++) {
        PCR_UNROLL
        for (int h = 0; h < 2; h++) {
            CodeLanes first = nibbles[j][h] & 15, second = nibbles[j][h] >> 4;
            if (fifth) {  // bits 2j and 2j + 1 of a byte belong to the nibbles of group j of four
                const CodeLanes bits =
                    shifted_right(code_lanes(from, bytes, 16 + 16 * h, 16 + 16 * h, turn), 2 * j, 2 * j + 4, turn);
                first |= (bits & 1) << 4;
                second |= (bits & 2) << 3;
            }
            w.codes[2 * j][h]     = first;
            w.codes[2 * j + 1][h] = second;
        }
    }
    return w;
}

// ggml's block_q6_K: 128 bytes of low nibbles, 64 of upper bit pairs, 16 signed scales of 16 values each, d (F16).
PCR_INLINE Int8Weights weights_q6_k(const uint8_t * from, int turn) {
    constexpr int64_t bytes = 210;
    const FloatLanes  d     = each_block(turn, [&](int64_t b) PCR_LAMBDA { return half(from + bytes * b + 208); });

    Int8Weights w;
    CodeLanes   low[2][2];
    code_lanes_128(from, bytes, turn, low);
    PCR_UNROLL
    for (int h = 0; h < 2; h++) {
        const auto scales = [&](int64_t b) PCR_LAMBDA {
            const EightWords both = load<EightWords>(from + bytes * b + 192);  // of the first and the second half
            return (h == 0 ? both << 8 : both) >> 8;
        };
        w.scale[h]           = from_words(turn, scales) * d;
        const CodeLanes high = code_lanes(from, bytes, 128 + 16 * h, 160 + 16 * h, turn);
        w.codes[0][h]        = (low[0][h] & 15) | ((high & 3) << 4);
        w.codes[1][h]        = (low[1][h] & 15) | ((high & 12) << 2);
        w.codes[2][h]        = (low[0][h] >> 4) | (high & 48);
        w.codes[3][h]        = (low[1][h] >> 4) | ((high & 192) >> 2);
    }
    return w;
}

// 8 of ggml's block_q8_0: a scale (F16), 32 signed bytes.
PCR_INLINE Int8Weights weights_q8_0(const uint8_t * from, int turn) {
    constexpr int64_t bytes  = 272;
    const auto        scales = [&](int64_t b) PCR_LAMBDA {
        const auto at = [&](int s) PCR_LAMBDA { return load<int16_t>(from + bytes * b + 34 * s); };
        return EightWords{at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)};
    };
    Int8Weights w;
    w.scale[0] = from_halves(turn, scales);
    PCR_UNROLL
    for (int k = 0; k < 4; k++) {
        PCR_UNROLL
        for (int h = 0; h < 2; h++) {
            const int at  = 34 * k + 2 + 16 * h;
            w.codes[k][h] = code_lanes(from, bytes, at, at + 136, turn);
            if (int8_biased) {
                w.codes[k][h] ^= 128;
            }
        }
    }
    return w;
}

template <ggml_type type> PCR_INLINE Int8Weights weights_of(const uint8_t * from, int turn) {
    return type == GGML_TYPE_Q4_K   ? weights_q45_k<false>(from, turn)
           : type == GGML_TYPE_Q5_K ? weights_q45_k<true>(from, turn)
           : type == GGML_TYPE_Q6_K ? weights_q6_k(from, turn)
                                    : weights_q8_0(from, turn);
}

// sums[half] += a pair of blocks of the matrix times one of x.
template <ggml_type type>
PCR_INLINE void add_pair(const Int8Weights & w, const Int8Pair & x, int turn, FloatLanes (&sums)[2]) {
    const FloatLanes scale = share<FloatLanes>(x.scale, turn);
    const auto       codes = [&](int k, int h) PCR_LAMBDA { return share<CodeLanes>(x.codes[k][h], turn); };
    IntLanes         a[4];
    if (type == GGML_TYPE_Q6_K) {
        PCR_UNROLL
        for (int h = 0; h < 2; h++) {
            PCR_UNROLL
            for (int k = 0; k < 4; k++) {
                a[k] = dot_codes(w.codes[k][h], codes(k, h));
            }
            const IntLanes sum = sums_of_four(a) - (share<IntLanes>(x.half_sum[h], turn) << 5);
            sums[h] += __builtin_convertvector(sum, FloatLanes) * scale * w.scale[h];
        }
        return;
    }
    PCR_UNROLL
    for (int k = 0; k < 4; k++) {
        a[k] = type == GGML_TYPE_Q8_0 ? dot_signed(w.codes[k], codes(k, 0), codes(k, 1))
                                      : dot_small_codes(w.codes[k], codes(k, 0), codes(k, 1));
    }
    IntLanes sum = sums_of_four(a);
    if (type == GGML_TYPE_Q8_0 && int8_biased) {
        sum -= (share<IntLanes>(x.half_sum[0], turn) + share<IntLanes>(x.half_sum[1], turn)) << 7;
    }
    sums[0] += __builtin_convertvector(sum, FloatLanes) * scale * w.scale[0];
    if (type != GGML_TYPE_Q8_0) {
        sums[0] -= w.least * share<FloatLanes>(x.sum, turn);
    }
}

// c[block][sub-block] -> y.
PCR_INLINE float sum_of_sums(const FloatLanes (&c)[int8_turns]) {
    F4 four[4];
    std::memcpy(four, c, sizeof(c));
    const F4 t = (four[0] + four[2]) + (four[1] + four[3]);
    return ((t[0] + t[1]) + t[2]) + t[3];
}

// One row of the matrix with n_x rows x.
template <ggml_type type, int n_x>
void int8_gemv_row(const uint8_t * row, int64_t n, const uint8_t * x, float * out, int64_t out_stride) {
    constexpr int64_t bytes = 2 * int8_block_bytes(type);
    const int64_t     pairs = int8_pairs(n);
    FloatLanes        sums[n_x][int8_turns][2];
    PCR_UNROLL
    for (int j = 0; j < n_x; j++) {
        PCR_UNROLL
        for (int turn = 0; turn < int8_turns; turn++) {
            sums[j][turn][0] = sums[j][turn][1] = FloatLanes{};
        }
    }
    const auto add = [&](const uint8_t * from, int64_t i) PCR_LAMBDA {
        PCR_UNROLL
        for (int turn = 0; turn < int8_turns; turn++) {
            const Int8Weights w = weights_of<type>(from, turn);
            PCR_UNROLL
            for (int j = 0; j < n_x; j++) {
                add_pair<type>(w, reinterpret_cast<const Int8Pair *>(x)[j * pairs + i], turn, sums[j][turn]);
            }
        }
    };
    const int64_t whole = n / (2 * int8_block);
    for (int64_t i = 0; i < whole; i++) {
        fetch_ahead(row + bytes * i, bytes);
        add(row + bytes * i, i);
    }
    if (whole < pairs) {  // a part of a pair, filled up with zeros
        uint8_t       rest[bytes] = {};
        const int64_t values      = n % (2 * int8_block);
        std::memcpy(rest, row + bytes * whole, static_cast<size_t>(values * bytes / (2 * int8_block)));
        add(rest, whole);
    }
    PCR_UNROLL
    for (int j = 0; j < n_x; j++) {
        FloatLanes c[int8_turns];
        PCR_UNROLL
        for (int turn = 0; turn < int8_turns; turn++) {
            c[turn] = type == GGML_TYPE_Q6_K ? sums[j][turn][0] + sums[j][turn][1] : sums[j][turn][0];
        }
        out[j * out_stride] = sum_of_sums(c);
    }
}

// count <= most rows x.
template <ggml_type type, int most>
PCR_INLINE void int8_gemv_row(int64_t count, const uint8_t * row, int64_t n, const uint8_t * x, float * out,
                              int64_t out_stride) {
    if constexpr (most > 1) {
        if (count < most) {
            return int8_gemv_row<type, most - 1>(count, row, n, x, out, out_stride);
        }
    }
    int8_gemv_row<type, most>(row, n, x, out, out_stride);
}

template <ggml_type type>
void int8_gemv_type(const uint8_t * rows, size_t row_bytes, int64_t n_rows, int64_t n, const uint8_t * x, int64_t n_x,
                    float * out, int64_t out_stride) {
    constexpr int most  = int8_width == 64 ? 8 : 4;  // whose sums stay in registers
    const int64_t block = n_x > most ? rows_in_cache(row_bytes) : n_rows;
    for (int64_t first = 0; first < n_rows; first += block) {
        const int64_t end = n_rows - first < block ? n_rows : first + block;
        for (int64_t j = 0; j < n_x; j += most) {
            for (int64_t i = first; i < end; i++) {
                int8_gemv_row<type, most>(n_x - j < most ? n_x - j : most, rows + static_cast<size_t>(i) * row_bytes, n,
                                          x + static_cast<size_t>(j) * int8_bytes(n), out + j * out_stride + i,
                                          out_stride);
            }
        }
    }
}

void int8_gemv(ggml_type type, const void * rows, size_t row_bytes, int64_t n_rows, int64_t n, const uint8_t * x,
               int64_t n_x, float * out, int64_t out_stride) {
    const auto * from = static_cast<const uint8_t *>(rows);
    switch (type) {
        case GGML_TYPE_Q4_K: return int8_gemv_type<GGML_TYPE_Q4_K>(from, row_bytes, n_rows, n, x, n_x, out, out_stride);
        case GGML_TYPE_Q5_K: return int8_gemv_type<GGML_TYPE_Q5_K>(from, row_bytes, n_rows, n, x, n_x, out, out_stride);
        case GGML_TYPE_Q6_K: return int8_gemv_type<GGML_TYPE_Q6_K>(from, row_bytes, n_rows, n, x, n_x, out, out_stride);
        default: return int8_gemv_type<GGML_TYPE_Q8_0>(from, row_bytes, n_rows, n, x, n_x, out, out_stride);
    }
}

}  // namespace

}  // namespace pcr
