// Products of many rows with quantised matrices in 8-bit integers: each row of the matrix is unpacked once for all of them,
// and 16 rows x lie in the lanes. The order of additions is int8.h's.
#pragma once

#include "kernels/gemm.h"
#include "kernels/int8.h"

#if PCR_INT8_GEMM

namespace pcr {

namespace {

// 32 values of a row of the matrix.
struct Int8RowStep {
    int8_t  codes[32];
    float   scale[2];  // Q6_K: of each half; Q4_K and Q5_K: the scale and the minimum
    int32_t start[2];  // what sums of a half (Q6_K) or of all begin with
};
static_assert(sizeof(Int8RowStep) == 4 * int8_row_step && offsetof(Int8RowStep, start) == 40, "kernels.h");

// 32 values of 16 rows x.
struct Int8PanelStep {
    uint32_t codes[8][16];  // 4 values each; with int8_biased 128 more, as unsigned bytes
    float    scale[16];
    float    sum[16];
};
static_assert(sizeof(Int8PanelStep) == 4 * int8_panel_step, "kernels.h");

// Lanes hold rows, values[i] their i-th of 32 values.
PCR_INLINE void int8_pack_step(const F (&values)[32], uint32_t * to) {
    auto * step = reinterpret_cast<Int8PanelStep *>(to);
    F      most = magnitude(values[0]);
    PCR_UNROLL
    for (int i = 1; i < 32; i++) {
        most = max(magnitude(values[i]), most);
    }
    const F scale = most / 127.0f, inverse = select(most > 0.0f, 127.0f / most, F{});
    I       total = {};
    for (int q = 0; q < 8; q++) {
        U word = {};
        PCR_UNROLL
        for (int i = 0; i < 4; i++) {
            const I code = rounded(values[4 * q + i] * inverse);
            total += code;
            word = word | (((U)code & 255u) << static_cast<uint32_t>(8 * i));
        }
        store(step->codes[q], int8_biased ? (word ^ 0x80808080u) : word);
    }
    store(step->scale, scale);
    store(step->sum, scale * to_float(total));
}

void int8_pack(const float * rows, int64_t stride, int64_t n_rows, int64_t n, uint32_t * panel) {
    std::memset(panel, 0, static_cast<size_t>(int8_steps(n) * int8_panel_step) * sizeof(uint32_t));
    for (int64_t at = 0; at < n; at += 32) {
        F values[32];
        for (int part = 0; part < 2; part++) {
            U v[16];
            PCR_UNROLL
            for (int r = 0; r < 16; r++) {
                v[r] = r < n_rows ? load<U>(rows + r * stride + at + 16 * part) : U{};
            }
            transpose(v);
            PCR_UNROLL
            for (int i = 0; i < 16; i++) {
                values[16 * part + i] = (F)v[i];
            }
        }
        int8_pack_step(values, panel + int8_step(n, at) * int8_panel_step);
    }
}

void int8_epilogue_panel(const float * results, const float * gate, int64_t stride, int64_t count, int64_t n_groups,
                         const float * bias, Activation activation, uint32_t * panel, int64_t first, int64_t n) {
    const int64_t group = int8_steps(n) * int8_panel_step;
    for (int64_t i = 0; i < count; i += 32) {
        for (int64_t g = 0; g < n_groups; g++) {
            F values[32];
            for (int64_t k = 0; k < 32; k++) {
                values[k] = result_at(results, gate, stride, i + k, 16 * g, bias, activation);
            }
            int8_pack_step(values, panel + g * group + int8_step(n, first + i) * int8_panel_step);
        }
    }
}

template <ggml_type type> void int8_unpack_row(const uint8_t * row, int64_t n, uint32_t * out) {
    constexpr int64_t bytes = 2 * int8_block_bytes(type);
    constexpr int     least = type == GGML_TYPE_Q6_K ? -32 : 0;  // what the smallest code stands for
    auto * const      steps = reinterpret_cast<Int8RowStep *>(out);
    std::memset(out, 0, static_cast<size_t>(int8_steps(n) * int8_row_step) * sizeof(uint32_t));
    for (int64_t at = 0; at < n; at += 2 * int8_block, row += bytes) {
        const int64_t   values      = n - at < 2 * int8_block ? n - at : 2 * int8_block;
        uint8_t         rest[bytes] = {};
        const uint8_t * from        = row;
        if (values < 2 * int8_block) {
            std::memcpy(rest, row, static_cast<size_t>(values * bytes / (2 * int8_block)));
            from = rest;
        }
        alignas(64) int8_t codes[2][4][2][2][16];  // [set][place][block][half]
        // Q6_K: [set][block][half][place]; else [scale, minimum][block][set][place].
        alignas(64) float   scale[2][2][2][4];
        alignas(64) int32_t start[2][2][2][4] = {};  // [set][block][half][place]
        PCR_UNROLL
        for (int turn = 0; turn < int8_turns; turn++) {
            Int8Weights w = weights_of<type>(from, turn);
            PCR_UNROLL
            for (int i = 0; i < 2 * int8_parts; i++) {
                const int set = i / int8_parts, part = i % int8_parts;
                CodeLanes(&of)[4] = w.codes[set][part];
                store(share_at(scale[set], turn, part), w.scale[set][part]);
                if (int8_biased) {
                    const CodeLanes one     = CodeLanes{} + 1;
                    const CodeLanes ones[4] = {one, one, one, one};
                    const int       offset  = type == GGML_TYPE_Q8_0 ? -128 : least;
                    const IntLanes  sum     = dot<codes_of(type)>(IntLanes{}, of, ones);
                    store(share_at(start[set], turn, part), (sum + 16 * offset) * -128);
                }
                if (!int8_by_place) {
                    transpose_quads(of);
                }
                PCR_UNROLL
                for (int place = 0; place < 4; place++) {
                    const bool flipped = type == GGML_TYPE_Q8_0 && int8_biased;
                    store(share_at(codes[set][place], turn, part),
                          flipped ? of[place] ^ 128 : of[place] - uint8_t(-least));
                }
            }
        }
        PCR_UNROLL
        for (int j = 0; j < 4; j++) {
            const int block = j / 2, set = j % 2;
            F4        of_places[4];  // what stands behind the codes of a step
            if (type == GGML_TYPE_Q6_K) {
                of_places[0] = load<F4>(scale[set][block][0]);
                of_places[1] = load<F4>(scale[set][block][1]);
                of_places[2] = load<F4>(start[set][block][0]);
                of_places[3] = load<F4>(start[set][block][1]);
            } else {
                typedef int32_t I4 __attribute__((vector_size(16)));
                of_places[0] = load<F4>(scale[0][block][set]);
                of_places[1] = load<F4>(scale[1][block][set]);
                of_places[2] = of_places[3] = (F4)(load<I4>(start[set][block][0]) + load<I4>(start[set][block][1]));
            }
            transpose_four(of_places);
            PCR_UNROLL
            for (int place = 0; place < 4; place++) {
                const int64_t i = int8_block * block + 32 * sub_block_of(set, place);
                if (i < values) {
                    Int8RowStep & step = steps[int8_step(n, at + i)];
                    std::memcpy(step.codes, codes[set][place][block], sizeof(step.codes));
                    store(step.scale, of_places[place]);
                }
            }
        }
    }
}

void int8_unpack(ggml_type type, const void * row, int64_t n, uint32_t * out) {
    const auto * from = static_cast<const uint8_t *>(row);
    switch (type) {
        case GGML_TYPE_Q4_K: return int8_unpack_row<GGML_TYPE_Q4_K>(from, n, out);
        case GGML_TYPE_Q5_K: return int8_unpack_row<GGML_TYPE_Q5_K>(from, n, out);
        case GGML_TYPE_Q6_K: return int8_unpack_row<GGML_TYPE_Q6_K>(from, n, out);
        default: return int8_unpack_row<GGML_TYPE_Q8_0>(from, n, out);
    }
}

#  if defined(PCR_INT8_ADD_DOT)
// Sums of products of 4 values in each lane: over n_quads, of n_rows rows and n_vectors vectors of x. word(r, q): 4 codes of
// a row, for all lanes; start(r): what its sums begin with; x(v, q): 4 values of each lane. small: codes are 0..31; bytes:
// any signed byte; else -32..31.
template <bool small, bool bytes, int n_rows, int n_vectors, int n_quads, typename Word, typename Start, typename X>
PCR_INLINE void int8_products(Word word, Start start, X x, IntLanes (&sums)[n_rows][n_vectors]) {
    PCR_UNROLL
    for (int r = 0; r < n_rows; r++) {
        PCR_UNROLL
        for (int v = 0; v < n_vectors; v++) {
            sums[r][v] = int8_biased ? IntLanes{} + start(r) : IntLanes{};
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
            const auto codes = (CodeLanes)(IntLanes{} + word(r, q));
            PCR_UNROLL
            for (int v = 0; v < n_vectors; v++) {
                sums[r][v] = add_dot(sums[r][v], values[v], codes);
            }
        }
    }
}
#  endif

// Registers for a number of each of 16 rows x.
constexpr int int8_vectors = 64 / int8_width;

// n_rows x n_vectors results, those of sub-blocks k and k + 4, added to `out` unless k is 0.
template <Codes kind, int n_rows, int n_vectors>
PCR_INLINE void int8_tile(const Int8RowStep * rows, int64_t row_steps, const Int8PanelStep * panel, int64_t group_steps,
                          int64_t blocks, int k, float * out, int64_t out_stride) {
    constexpr int passes = kind == Codes::halves ? 2 : 1, n_quads = 8 / passes;
    const auto    share_of = [](const auto & sixteen, int v) PCR_LAMBDA {
        return reinterpret_cast<const uint8_t *>(&sixteen) + v % int8_vectors * int8_width;
    };
    FloatLanes total[n_rows][n_vectors];
    for (int part = 0; part < 2; part++) {
        FloatLanes both[n_rows][n_vectors];
        for (int parity = 0; parity < 2; parity++) {
            const int64_t even = (blocks + 1) / 2, count = parity == 0 ? even : blocks / 2;
            const int64_t first = (k + 4 * part) * blocks + parity * even;
            FloatLanes    c[n_rows][n_vectors];
            for (int pass = 0; pass < passes; pass++) {
                FloatLanes sums[n_rows][n_vectors];
                PCR_UNROLL
                for (int r = 0; r < n_rows; r++) {
                    PCR_UNROLL
                    for (int v = 0; v < n_vectors; v++) {
                        sums[r][v] = FloatLanes{};
                    }
                }
                for (int64_t s = first; s < first + count; s++) {
                    const auto at = [&](int v) PCR_LAMBDA -> const Int8PanelStep & {
                        return panel[v / int8_vectors * group_steps + s];
                    };
                    IntLanes products[n_rows][n_vectors];
                    int8_products<kind == Codes::small, kind == Codes::bytes, n_rows, n_vectors, n_quads>(
                        [&](int r, int q) PCR_LAMBDA {
                            return load<int32_t>(rows[r * row_steps + s].codes + 4 * (pass * n_quads + q));
                        },
                        [&](int r) PCR_LAMBDA { return rows[r * row_steps + s].start[pass]; },
                        [&](int v, int q)
                            PCR_LAMBDA { return load<CodeLanes>(share_of(at(v).codes[pass * n_quads + q], v)); },
                        products);
                    PCR_UNROLL
                    for (int v = 0; v < n_vectors; v++) {
                        const FloatLanes scale = load<FloatLanes>(share_of(at(v).scale, v));
                        const FloatLanes sum   = load<FloatLanes>(share_of(at(v).sum, v));
                        PCR_UNROLL
                        for (int r = 0; r < n_rows; r++) {
                            const Int8RowStep & row = rows[r * row_steps + s];
                            sums[r][v] += __builtin_convertvector(products[r][v], FloatLanes) * scale * row.scale[pass];
                            if (kind == Codes::small) {
                                sums[r][v] -= row.scale[1] * sum;
                            }
                        }
                    }
                }
                PCR_UNROLL
                for (int r = 0; r < n_rows; r++) {
                    PCR_UNROLL
                    for (int v = 0; v < n_vectors; v++) {
                        c[r][v] = pass == 0 ? sums[r][v] : c[r][v] + sums[r][v];
                    }
                }
            }
            PCR_UNROLL
            for (int r = 0; r < n_rows; r++) {
                PCR_UNROLL
                for (int v = 0; v < n_vectors; v++) {
                    both[r][v] = parity == 0 ? c[r][v] : both[r][v] + c[r][v];
                }
            }
        }
        PCR_UNROLL
        for (int r = 0; r < n_rows; r++) {
            PCR_UNROLL
            for (int v = 0; v < n_vectors; v++) {
                total[r][v] = part == 0 ? both[r][v] : total[r][v] + both[r][v];
            }
        }
    }
    PCR_UNROLL
    for (int r = 0; r < n_rows; r++) {
        PCR_UNROLL
        for (int v = 0; v < n_vectors; v++) {
            float * const to = out + r * out_stride + int8_width / 4 * v;
            store(to, k == 0 ? total[r][v] : load<FloatLanes>(to) + total[r][v]);
        }
    }
}

// Results that stay in registers: so many rows of the matrix and groups of 16 rows x.
constexpr int int8_tile_rows = int8_width == 64 ? 6 : 4, int8_tile_groups = int8_width == 64 ? 2 : 1;

template <Codes kind, int n_groups>
void int8_tile_column(const Int8RowStep * rows, int64_t n_rows, int64_t row_steps, const Int8PanelStep * panel,
                      int64_t group_steps, int64_t blocks, int k, float * out, int64_t out_stride) {
    constexpr int vectors = n_groups * int8_vectors;
    int64_t       r       = 0;
    for (; r + int8_tile_rows <= n_rows; r += int8_tile_rows) {
        int8_tile<kind, int8_tile_rows, vectors>(rows + r * row_steps, row_steps, panel, group_steps, blocks, k,
                                                 out + r * out_stride, out_stride);
    }
    for (; r + 2 <= n_rows; r += 2) {
        int8_tile<kind, 2, vectors>(rows + r * row_steps, row_steps, panel, group_steps, blocks, k,
                                    out + r * out_stride, out_stride);
    }
    if (r < n_rows) {
        int8_tile<kind, 1, vectors>(rows + r * row_steps, row_steps, panel, group_steps, blocks, k,
                                    out + r * out_stride, out_stride);
    }
}

template <Codes kind>
void int8_gemm_of(const uint32_t * rows, int64_t n_rows, const uint32_t * panel, int64_t n_groups, int64_t n,
                  float * out, int64_t out_stride) {
    const int64_t steps = int8_steps(n), blocks = steps / 8;
    const auto *  from = reinterpret_cast<const Int8RowStep *>(rows);
    for (int k = 0; k < 4; k++) {
        const auto * group = reinterpret_cast<const Int8PanelStep *>(panel);
        for (int64_t g = 0; g < n_groups;) {
            if (int8_tile_groups > 1 && n_groups - g >= int8_tile_groups) {
                int8_tile_column<kind, int8_tile_groups>(from, n_rows, steps, group, steps, blocks, k, out + 16 * g,
                                                         out_stride);
                g += int8_tile_groups;
                group += int8_tile_groups * steps;
            } else {
                int8_tile_column<kind, 1>(from, n_rows, steps, group, steps, blocks, k, out + 16 * g, out_stride);
                g += 1;
                group += steps;
            }
        }
    }
}

void int8_gemm(ggml_type type, const uint32_t * rows, int64_t n_rows, const uint32_t * panel, int64_t n_groups,
               int64_t n, float * out, int64_t out_stride) {
    switch (type) {
        case GGML_TYPE_Q6_K: return int8_gemm_of<Codes::halves>(rows, n_rows, panel, n_groups, n, out, out_stride);
        case GGML_TYPE_Q8_0: return int8_gemm_of<Codes::bytes>(rows, n_rows, panel, n_groups, n, out, out_stride);
        default: return int8_gemm_of<Codes::small>(rows, n_rows, panel, n_groups, n, out, out_stride);
    }
}

}  // namespace

}  // namespace pcr

#endif
