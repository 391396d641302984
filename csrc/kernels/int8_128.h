// What 128-bit sets share: half of a block at a time. See int8.h.
#pragma once

#include "kernels/unpack.h"

namespace pcr {

namespace {

#define PCR_INT8_HALVES 1  // dot_halves(): a half is a register
constexpr int  int8_width  = 16;
constexpr bool int8_biased = false;
#if defined(__aarch64__)
constexpr bool int8_by_place = true;
#else
constexpr bool int8_by_place = false;
#endif

typedef uint8_t CodeLanes __attribute__((vector_size(16)));
typedef int32_t IntLanes __attribute__((vector_size(16)));
typedef float   FloatLanes __attribute__((vector_size(16)));

PCR_INLINE void transpose_quads(CodeLanes (&v)[4]) {
    transpose_four(v);
}

// Quads of half `part` of four sub-blocks of 32 bytes, which lie at a, b, c and d.
PCR_INLINE void load_quads(const uint8_t * from, int64_t bytes, int turn, int part, int a, int b, int c, int d,
                           CodeLanes (&out)[4]) {
    const uint8_t * const half = from + bytes * turn + 16 * part;
    out[0]                     = load<CodeLanes>(half + a);
    out[1]                     = load<CodeLanes>(half + b);
    out[2]                     = load<CodeLanes>(half + c);
    out[3]                     = load<CodeLanes>(half + d);
    if (!int8_by_place) {
        transpose_quads(out);
    }
}

// The same 32 bytes for all four.
PCR_INLINE void load_quads(const uint8_t * from, int64_t bytes, int turn, int part, int at, CodeLanes (&out)[4]) {
    const auto v = load<IntLanes>(from + bytes * turn + 16 * part + at);
    if (int8_by_place) {
        out[0] = out[1] = out[2] = out[3] = (CodeLanes)v;
        return;
    }
    out[0] = (CodeLanes)__builtin_shufflevector(v, v, 0, 0, 0, 0);
    out[1] = (CodeLanes)__builtin_shufflevector(v, v, 1, 1, 1, 1);
    out[2] = (CodeLanes)__builtin_shufflevector(v, v, 2, 2, 2, 2);
    out[3] = (CodeLanes)__builtin_shufflevector(v, v, 3, 3, 3, 3);
}

PCR_INLINE CodeLanes neighbours_swapped(CodeLanes v) {
    return (CodeLanes)__builtin_shufflevector((IntLanes)v, (IntLanes)v, 1, 0, 3, 2);
}

// The scales of each set's halves, d (F16) multiplied in.
PCR_INLINE void scales_q6_k(const uint8_t * from, int64_t bytes, int turn, FloatLanes (&out)[2][2]) {
    const auto * scales = reinterpret_cast<const int8_t *>(from + bytes * turn + 192);
    const float  d      = half(from + bytes * turn + 208);
    PCR_UNROLL
    for (int h = 0; h < 2; h++) {
        const IntLanes first  = {scales[h], scales[6 + h], scales[8 + h], scales[14 + h]};
        const IntLanes second = {scales[2 + h], scales[4 + h], scales[10 + h], scales[12 + h]};
        out[0][h]             = __builtin_convertvector(first, FloatLanes) * d;
        out[1][h]             = __builtin_convertvector(second, FloatLanes) * d;
    }
}

// 8 F16 of the turn's block.
template <typename Of> PCR_INLINE void from_halves(int turn, Of of, FloatLanes (&out)[2]) {
    const EightWords halves[2] = {of(turn), {}};
    const F          values    = from_f16(reinterpret_cast<const uint8_t *>(halves));
    std::memcpy(out, &values, sizeof(out));
}

PCR_INLINE F4 quarter(FloatLanes v, int) {
    return v;
}

// Halves of each set -> sub-blocks.
PCR_INLINE void add_halves(const IntLanes (&sums)[2][2], IntLanes (&out)[2]) {
    out[0] = sums[0][0] + sums[0][1];
    out[1] = sums[1][0] + sums[1][1];
}

// Of scales [block][set][place]: a set's, for both halves.
PCR_INLINE FloatLanes scale_of_halves(const float * scales, int set, int turn) {
    return load<FloatLanes>(scales + 8 * turn + 4 * set);
}

}  // namespace

}  // namespace pcr
