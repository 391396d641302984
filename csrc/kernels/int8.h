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
// A block's 8 sub-blocks are parted in two sets of four, 0, 3, 4, 7 and 1, 2, 5, 6: two whose 4-bit codes share their bytes
// (0 and 1, 2 and 3 ... in Q4_K and Q5_K; 0 and 2, 1 and 3 ... in Q6_K) are never in the same one. Registers hold 4 values
// ("a quad") of each of a set's sub-blocks, so that products add up lane by lane: 512 bits hold quads m of both halves of a
// pair's two blocks, 256 bits those of one block, 128 bits those of one half of a block. Only with int8_by_place, where
// neighbouring lanes are added up by one instruction, do registers hold what lies together in the file: a half of one place.
#pragma once

#include "kernels/gemv.h"

namespace pcr {

namespace {

constexpr int64_t int8_block = 256;

constexpr int set_of(int64_t s) {
    return static_cast<int>((s ^ s >> 1) & 1);
}

constexpr int place_of(int64_t s) {  // in its set
    return static_cast<int>(s / 2);
}

constexpr int sub_block_of(int set, int place) {
    return 2 * place + ((set ^ place) & 1);
}

// 512 values of a row x: each 32 scaled to -127..127.
struct Int8Pair {
    int8_t  codes[4][2][2][2][4][4];  // [m][set][block][half][place]: quad m of a half; see quad_of()
    float   scale[2][2][4];  // [block][set][place]
    float   sum[2][2][4];  // the scale times the sum of the sub-block's codes
    int32_t start[2][2][2][4];  // [set][block][half][place]: -32 times the sum of a half's codes
};
static_assert(sizeof(Int8Pair) == int8_bytes(2 * int8_block), "kernels.h");

// Codes of a type: unsigned below 32 with a minimum; below 64, less 32, with a scale for each half; any signed byte.
enum class Codes { small, halves, bytes };

constexpr Codes codes_of(ggml_type type) {
    return type == GGML_TYPE_Q6_K ? Codes::halves : type == GGML_TYPE_Q8_0 ? Codes::bytes : Codes::small;
}

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

#if defined(PCR_INT8_ADD_DOT) || defined(__AVX2__)
#  define PCR_INT8_GEMM 1
#endif

namespace pcr {

namespace {

// A pair is taken in so many turns, each of which takes so many registers for the quads m of a set.
constexpr int int8_turns = int8_width == 64 ? 1 : 2, int8_parts = int8_width == 16 ? 2 : 1;

// The share of a turn and part of 64 bytes.
template <typename V> PCR_INLINE V share(const void * of, int turn, int part) {
    return load<V>(static_cast<const uint8_t *>(of) + (turn * int8_parts + part) * int8_width);
}

PCR_INLINE uint8_t * share_at(void * of, int turn, int part) {
    return static_cast<uint8_t *>(of) + (turn * int8_parts + part) * int8_width;
}

// Rounds to nearest, ties to even. |x| below 2^22.
PCR_INLINE I rounded(F x) {
    const F magic = all(12582912.0f);  // 1.5 * 2^23
    return to_int((x + magic) - magic);
}

PCR_INLINE F magnitude(F x) {
    return (F)((I)x & 0x7fffffff);
}

// With int8_by_place, m and the place change places.
template <typename Pair> PCR_INLINE auto * quad_of(Pair & x, int64_t m, int64_t s, int64_t block, int64_t half) {
    const int set = set_of(s), place = place_of(s);
    return int8_by_place ? &x.codes[place][set][block][half][m][0] : &x.codes[m][set][block][half][place][0];
}

#if defined(PCR_INT8_ADD_DOT) && !defined(PCR_INT8_HALVES)
// start + sums of the four quads' products. Codes are unsigned bytes.
template <Codes> PCR_INLINE IntLanes dot(IntLanes start, const CodeLanes (&codes)[4], const CodeLanes (&x)[4]) {
    PCR_UNROLL
    for (int m = 0; m < 4; m++) {
        start = add_dot(start, codes[m], x[m]);
    }
    return start;
}
#endif

// The quads of a set.
PCR_INLINE void quads_of(const Int8Pair & x, int set, int turn, int part, CodeLanes (&out)[4]) {
    PCR_UNROLL
    for (int m = 0; m < 4; m++) {
        out[m] = share<CodeLanes>(x.codes[m][set], turn, part);
    }
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
            to.scale[block][set_of(s)][place_of(s)] = most[s] / 127.0f;
            inverse[s]                              = most[s] > 0.0f ? 127.0f / most[s] : 0.0f;
        }
        for (int64_t s = 0; s < count; s++) {
            PCR_UNROLL
            for (int h = 0; h < 2; h++) {
                int8_t codes[4][4];
                store_bytes(codes[0], rounded(load<F>(x + first + 32 * s + 16 * h) * inverse[s]));
                PCR_UNROLL
                for (int m = 0; m < 4; m++) {
                    std::memcpy(quad_of(to, m, s, block, h), codes[m], 4);
                }
            }
        }
    }
    const CodeLanes ones[4] = {CodeLanes{} + 1, CodeLanes{} + 1, CodeLanes{} + 1, CodeLanes{} + 1};
    for (int64_t i = 0; i < int8_pairs(n); i++) {
        PCR_UNROLL
        for (int turn = 0; turn < int8_turns; turn++) {
            IntLanes sums[2][int8_parts], of_sub_blocks[int8_parts];
            PCR_UNROLL
            for (int part = 0; part < int8_parts; part++) {
                PCR_UNROLL
                for (int set = 0; set < 2; set++) {
                    CodeLanes values[4];
                    quads_of(pairs[i], set, turn, part, values);
                    sums[set][part] = dot<Codes::small>(IntLanes{}, ones, values);
                    store(share_at(pairs[i].start[set], turn, part), sums[set][part] * -32);
                }
            }
            add_halves(sums, of_sub_blocks);
            PCR_UNROLL
            for (int part = 0; part < int8_parts; part++) {
                store(share_at(pairs[i].sum, turn, part), share<FloatLanes>(pairs[i].scale, turn, part) *
                                                              __builtin_convertvector(of_sub_blocks[part], FloatLanes));
            }
        }
    }
}

// The length of what int8_quantize took away from x, or a little more.
float int8_error(const float * x, int64_t n, const uint8_t * at) {
    const auto * pairs = reinterpret_cast<const Int8Pair *>(at);
    double       sum   = 0.0;
    for (int64_t i = 0; i < n; i++) {
        const Int8Pair & from  = pairs[i / (2 * int8_block)];
        const int64_t    block = i / int8_block % 2, s = i / 32 % 8, m = i / 4 % 4;
        const float      code = static_cast<float>(quad_of(from, m, s, block, i / 16 % 2)[i % 4]);
        const float      rest = x[i] - code * from.scale[block][set_of(s)][place_of(s)];
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
    CodeLanes  codes[2][int8_parts][4];  // [set][part][m]; Q8_0: signed, and with int8_biased 128 more
    FloatLanes scale[2][int8_parts];  // Q6_K: of each set's halves; else of sub-blocks, and their minima (Q4_K, Q5_K)
};

// ggml's block_q4_K: d, dmin (F16), 12 bytes of 8 scales and 8 minima of 6 bits, 128 bytes of nibbles; block_q5_K: 32 bytes
// of fifth bits before the nibbles. Of the 12 bytes the lower bits of 0..3 and 4..7 hold the first four scales and minima,
// the nibbles of 8..11 the others' lower bits, and the top of 0..3 and 4..7 their upper ones.
template <bool fifth> PCR_INLINE Int8Weights weights_q45_k(const uint8_t * from, int turn) {
    constexpr int64_t bytes = fifth ? 176 : 144;
    constexpr int     first = fifth ? 48 : 16;
    Int8Weights       w;
    scales_q45_k(from, bytes, turn, w.scale);
    PCR_UNROLL
    for (int part = 0; part < int8_parts; part++) {
        CodeLanes nibbles[4], bits[4];
        load_quads(from, bytes, turn, part, first, first + 32, first + 64, first + 96, nibbles);
        if (fifth) {  // bit s of a byte belongs to sub-block s
            load_quads(from, bytes, turn, part, 16, bits);
        }
        PCR_UNROLL
        for (int m = 0; m < 4; m++) {
            w.codes[0][part][m] = shifted_right(nibbles[m], m, 0, 4, 0, 4) & 15;
            w.codes[1][part][m] = shifted_right(nibbles[m], m, 4, 0, 4, 0) & 15;
            if (fifth) {
                w.codes[0][part][m] |= (shifted_right(bits[m], m, 0, 3, 4, 7) & 1) << 4;
                w.codes[1][part][m] |= (shifted_right(bits[m], m, 1, 2, 5, 6) & 1) << 4;
            }
        }
    }
    return w;
}

// ggml's block_q6_K: 128 bytes of low nibbles, 64 of upper bit pairs, 16 signed scales of 16 values each, d (F16).
PCR_INLINE Int8Weights weights_q6_k(const uint8_t * from, int turn) {
    constexpr int64_t bytes = 210;
    Int8Weights       w;
    scales_q6_k(from, bytes, turn, w.scale);
    PCR_UNROLL
    for (int part = 0; part < int8_parts; part++) {
        CodeLanes low[4], high[4];
        load_quads(from, bytes, turn, part, 0, 32, 64, 96, low);
        load_quads(from, bytes, turn, part, 128, 128, 160, 160, high);
        PCR_UNROLL
        for (int m = 0; m < 4; m++) {
            w.codes[0][part][m] =
                (shifted_right(low[m], m, 0, 4, 0, 4) & 15) | ((shifted_right(high[m], m, 0, 6, 0, 6) & 3) << 4);
            const int       other = int8_by_place ? m ^ 1 : m;
            const CodeLanes rest  = shifted_right(low[other], other, 4, 0, 4, 0);
            w.codes[1][part][m]   = ((int8_by_place ? rest : neighbours_swapped(rest)) & 15) |
                                    ((shifted_right(high[m], m, 2, 4, 2, 4) & 3) << 4);
        }
    }
    return w;
}

// 8 of ggml's block_q8_0: a scale (F16), 32 signed bytes.
PCR_INLINE Int8Weights weights_q8_0(const uint8_t * from, int turn) {
    constexpr int64_t bytes = 272;
    const auto        at    = [](int s) PCR_LAMBDA { return 34 * s + 2; };
    Int8Weights       w;
    from_halves(
        turn,
        [&](int64_t b) PCR_LAMBDA {
            const auto scale = [&](int s) PCR_LAMBDA { return load<int16_t>(from + bytes * b + 34 * s); };
            return EightWords{scale(0), scale(3), scale(4), scale(7), scale(1), scale(2), scale(5), scale(6)};
        },
        w.scale[0]);
    PCR_UNROLL
    for (int part = 0; part < int8_parts; part++) {
        load_quads(from, bytes, turn, part, at(0), at(3), at(4), at(7), w.codes[0][part]);
        load_quads(from, bytes, turn, part, at(1), at(2), at(5), at(6), w.codes[1][part]);
        PCR_UNROLL
        for (int i = 0; int8_biased && i < 8; i++) {
            w.codes[i / 4][part][i % 4] ^= 128;
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

// Sums of a row: Q6_K: [set][part], of halves; else of sub-blocks, [0][part].
typedef FloatLanes Int8Sums[2][int8_parts];

// sums += a turn's share of a pair of blocks of the matrix times one of x.
template <ggml_type type>
PCR_INLINE void add_pair(const Int8Weights & w, const Int8Pair & x, int turn, Int8Sums & sums) {
    constexpr bool from_start = type == GGML_TYPE_Q6_K || (type == GGML_TYPE_Q8_0 && int8_biased);
    IntLanes       products[2][int8_parts], of_sub_blocks[int8_parts];
    PCR_UNROLL
    for (int set = 0; set < 2; set++) {
        CodeLanes values[int8_parts][4];
        PCR_UNROLL
        for (int part = 0; part < int8_parts; part++) {
            quads_of(x, set, turn, part, values[part]);
            const IntLanes start = from_start ? share<IntLanes>(x.start[set], turn, part) : IntLanes{};
            if (type == GGML_TYPE_Q6_K) {
                const IntLanes sum = dot<Codes::halves>(start, w.codes[set][part], values[part]);
                sums[set][part] += __builtin_convertvector(sum, FloatLanes) *
                                   scale_of_halves(x.scale[0][0], set, turn) * w.scale[set][part];
            } else if (int8_parts == 1) {
                products[set][part] = dot<codes_of(type)>(start << 2, w.codes[set][part], values[part]);
            }
        }
#if defined(PCR_INT8_HALVES)
        if (type != GGML_TYPE_Q6_K) {
            of_sub_blocks[set] = dot_halves<codes_of(type)>(w.codes[set], values);
        }
#endif
    }
    if (type == GGML_TYPE_Q6_K) {
        return;
    }
    if (int8_parts == 1) {
        add_halves(products, of_sub_blocks);
    }
    PCR_UNROLL
    for (int part = 0; part < int8_parts; part++) {
        sums[0][part] += __builtin_convertvector(of_sub_blocks[part], FloatLanes) *
                         share<FloatLanes>(x.scale, turn, part) * w.scale[0][part];
        if (type != GGML_TYPE_Q8_0) {
            sums[0][part] -= w.scale[1][part] * share<FloatLanes>(x.sum, turn, part);
        }
    }
}

// All turns' sums -> t0, t3, t1 and t2.
template <ggml_type type> PCR_INLINE F4 last_four(const Int8Sums (&sums)[int8_turns]) {
    const auto at = [&](int set, int i) PCR_LAMBDA {  // 128 bits of a set, or of both
        constexpr int in_register = int8_width / 16;
        const int     which       = i / in_register;
        return quarter(sums[which / int8_parts][set][which % int8_parts], i % in_register);
    };
    F4 c[2][2];  // [set][block]
    PCR_UNROLL
    for (int i = 0; i < 4; i++) {
        const int set = i / 2, block = i % 2;
        c[set][block] = type == GGML_TYPE_Q6_K ? at(set, 2 * block) + at(set, 2 * block + 1) : at(0, 2 * block + set);
    }
    const F4 first = c[0][0] + c[0][1], second = c[1][0] + c[1][1];  // sub-blocks 0, 3, 4, 7 and 1, 2, 5, 6
    return __builtin_shufflevector(first, second, 0, 1, 4, 5) + __builtin_shufflevector(first, second, 2, 3, 6, 7);
}

PCR_INLINE float sum_of(F4 t) {
    return ((t[0] + t[2]) + t[3]) + t[1];
}

// Four of them.
PCR_INLINE F4 sums_of(F4 (&t)[4]) {
    transpose_four(t);
    return ((t[0] + t[2]) + t[3]) + t[1];
}

// Rows of the matrix, each with n_x rows x.
template <ggml_type type, int n_x>
void int8_gemv_rows(const uint8_t * rows, size_t row_bytes, int64_t n_rows, int64_t n, const uint8_t * x, float * out,
                    int64_t out_stride) {
    constexpr int64_t bytes = 2 * int8_block_bytes(type);
    const int64_t     pairs = int8_pairs(n), whole = n / (2 * int8_block);
    for (int64_t r = 0; r < n_rows; r++) {
        const uint8_t * const row = rows + static_cast<size_t>(r) * row_bytes;
        Int8Sums              sums[n_x][int8_turns];
        PCR_UNROLL
        for (int j = 0; j < n_x; j++) {
            PCR_UNROLL
            for (int i = 0; i < 2 * int8_turns * int8_parts; i++) {
                sums[j][i / (2 * int8_parts)][i / int8_parts % 2][i % int8_parts] = FloatLanes{};
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
        F4 last[n_x];
        PCR_UNROLL
        for (int j = 0; j < n_x; j++) {
            last[j] = last_four<type>(sums[j]);
        }
        PCR_UNROLL
        for (int j = 0; j + 4 <= n_x; j += 4) {
            F4       four[4] = {last[j], last[j + 1], last[j + 2], last[j + 3]};
            const F4 y       = sums_of(four);
            PCR_UNROLL
            for (int k = 0; k < 4; k++) {
                out[(j + k) * out_stride + r] = y[k];
            }
        }
        PCR_UNROLL
        for (int j = n_x / 4 * 4; j < n_x; j++) {
            out[j * out_stride + r] = sum_of(last[j]);
        }
    }
}

// count <= most rows x.
template <ggml_type type, int most>
void int8_gemv_rows(int64_t count, const uint8_t * rows, size_t row_bytes, int64_t n_rows, int64_t n, const uint8_t * x,
                    float * out, int64_t out_stride) {
    if constexpr (most > 1) {
        if (count < most) {
            return int8_gemv_rows<type, most - 1>(count, rows, row_bytes, n_rows, n, x, out, out_stride);
        }
    }
    int8_gemv_rows<type, most>(rows, row_bytes, n_rows, n, x, out, out_stride);
}

template <ggml_type type>
void int8_gemv_type(const uint8_t * rows, size_t row_bytes, int64_t n_rows, int64_t n, const uint8_t * x, int64_t n_x,
                    float * out, int64_t out_stride) {
    constexpr int     most    = int8_width == 16 ? 4 : 8;  // what compilers find registers for
    constexpr int64_t l1      = 48 << 10;  // wide registers would wait for rows x that do not stay in the first cache
    const int64_t     at_once = int8_width == 64 && most * static_cast<int64_t>(int8_bytes(n)) > l1 ? most / 2 : most;
    const int64_t     block   = n_x > at_once ? rows_in_cache(row_bytes) : n_rows;
    for (int64_t first = 0; first < n_rows; first += block) {
        const int64_t   count = n_rows - first < block ? n_rows - first : block;
        const uint8_t * from  = rows + static_cast<size_t>(first) * row_bytes;
        for (int64_t j = 0; j < n_x; j += at_once) {
            int8_gemv_rows<type, most>(n_x - j < at_once ? n_x - j : at_once, from, row_bytes, count, n,
                                       x + static_cast<size_t>(j) * int8_bytes(n), out + j * out_stride + first,
                                       out_stride);
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
