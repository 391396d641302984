// The arithmetic that takes the time, written for the vector instructions of several processors and chosen at run time.
//
// GEMM reads packed panels: blocks of 16 x 16 words, a word being one F32 or two BF16 of neighbouring columns.
//   packed rows:  16 rows of 16 words each, so a block covers 16 (F32) or 32 (BF16) columns of 16 rows: a "step"
//   packed panel: the same block transposed, the k-th words of all 16 rows side by side
// Fixed k-order: a result depends on its own row and column only, so results do not depend on the batch.
#pragma once

#include "ggml.h"

#include <cstdint>
#include <vector>

namespace pcr {

// What GEMM holds its factors in; sums are F32. 8-bit integers: of quantised matrices only, with a layout of their own.
enum class ComputeType { f32, bf16, int8 };

constexpr int64_t block_side  = 16;
constexpr int64_t block_words = block_side * block_side;

// Values in a word.
constexpr int64_t word_values(ComputeType type) {
    return type == ComputeType::bf16 ? 2 : 1;
}

// Blocks that n values of a row take; the last one is filled up with zeros.
constexpr int64_t step_count(ComputeType type, int64_t n) {
    const int64_t values = block_side * word_values(type);
    return (n + values - 1) / values;
}

constexpr int64_t group_count(int64_t n) {
    return (n + block_side - 1) / block_side;
}

// In 8-bit integers a step is 32 values, of a row of the matrix or of 16 rows x; in words. Blocks of 256 values have 8 of
// them: the first of all even blocks come first, then those of the odd ones, then the second ...
constexpr int64_t int8_row_step   = 12;
constexpr int64_t int8_panel_step = 160;

constexpr int64_t int8_steps(int64_t n) {
    return (n + 255) / 256 * 8;
}

// The step of value i, a multiple of 32.
constexpr int64_t int8_step(int64_t n, int64_t i) {
    const int64_t blocks = (n + 255) / 256, block = i / 256;
    return i / 32 % 8 * blocks + (block % 2 == 0 ? 0 : (blocks + 1) / 2) + block / 2;
}

// Words of a row of n values of the matrix, unpacked.
constexpr int64_t row_words(ComputeType type, int64_t n) {
    return type == ComputeType::int8 ? int8_steps(n) * int8_row_step : step_count(type, n) * block_side;
}

// Words of a packed panel of n values.
constexpr int64_t panel_words(ComputeType type, int64_t n) {
    return type == ComputeType::int8 ? int8_steps(n) * int8_panel_step : step_count(type, n) * block_words;
}

// Packed rows, wherever they lie; strides in words.
struct PackedRows {
    const uint32_t * words;
    int64_t          group;  // from 16 rows to the next 16
    int64_t          row;  // from row to row of one group
    int64_t          step;  // from 16 words of a row to the next 16
};

// What log-mel frames are computed with (mel.h).
struct ComplexRoot {
    double re, im;
};

struct BinRange {
    int first, count;
};

struct LogMelTables {
    static constexpr int sample_rate = 16000;
    static constexpr int n_fft       = 400;
    static constexpr int n_bins      = n_fft / 2 + 1;
    static constexpr int hop         = 160;
    static constexpr int pad         = n_fft / 2;  // reflected at both ends of the clip

    const double *      window;  // [n_fft]
    const ComplexRoot * roots_half;  // exp(-2 pi i k / 200), k < 200
    const ComplexRoot * roots;  // exp(-2 pi i k / 400), k <= 100
    const float *       filters;  // [n_mels][n_bins]
    const BinRange *    ranges;  // [n_mels]: where a filter is not zero
    int64_t             n_mels;
};

// What an epilogue applies to a product's results.
enum class Activation { none, gelu };

// One instruction set's kernels. Filled by name in table.cpp; one that is null there does not exist for it.
struct Kernels {
    const char * name  = nullptr;
    bool         bf16  = false;  // GEMM takes BF16
    bool         tiles = false;  // in tiles (AMX), several times as fast as anything else

    // GEMM: many rows.

    // out[r * out_stride + c] (+)= sum over k of rows[r][k] * panel[k][c], for n_rows rows and n_groups groups of 16
    // columns, which are panel_group words apart. A multiple of 16 rows for BF16.
    void (*gemm)(ComputeType type, const PackedRows & rows, int64_t n_rows, const uint32_t * panel, int64_t panel_group,
                 int64_t n_groups, int64_t n_steps, bool add, float * out, int64_t out_stride) = nullptr;

    // One matrix row of n values of any type -> words of a packed row, 16 at each step, zeros behind the last.
    void (*unpack)(ComputeType type, ggml_type from, const void * row, int64_t n, uint32_t * out,
                   int64_t out_step) = nullptr;

    // The same as F32 [n].
    void (*unpack_f32)(ggml_type from, const void * row, int64_t n, float * out) = nullptr;

    // 16 rows of n values (those from n_rows on are zero), stride apart -> a packed panel.
    void (*pack)(ComputeType type, const float * rows, int64_t stride, int64_t n_rows, int64_t n,
                 uint32_t * panel) = nullptr;

    // Transposed results [n][stride] of n_columns columns -> rows of out, out_stride apart: activation(x + bias)
    // + residual. bias and residual may be null.
    void (*epilogue_rows)(const float * results, int64_t stride, int64_t n, int64_t n_columns, const float * bias,
                          Activation activation, const float * residual, float * out, int64_t out_stride) = nullptr;

    // Transposed results of n (even for BF16) values -> a packed panel for the next product, beginning at its value
    // "first". gate may be null; otherwise silu(gate) * results.
    void (*epilogue_panel)(ComputeType type, const float * results, const float * gate, int64_t stride, int64_t n,
                           int64_t n_groups, const float * bias, Activation activation, uint32_t * panel,
                           int64_t panel_group, int64_t first) = nullptr;

    // Results [n] -> words of a packed row, activation(x + bias), zeros behind the last.
    void (*epilogue_words)(ComputeType type, const float * results, int64_t n, const float * bias,
                           Activation activation, uint32_t * words) = nullptr;

    // GEMV: few rows x, each by itself; the matrix is read once for all of them.

    // out[j * out_stride + i] = sum over k of row i of the matrix * x[j * n + k].
    void (*gemv)(ggml_type type, const void * rows, size_t row_bytes, int64_t n_rows, int64_t n, const float * x,
                 int64_t n_x, float * out, int64_t out_stride) = nullptr;

    // The same for some quantised types in 8-bit integers. x: rows of int8_bytes(n) bytes each, by int8_quantize: each 32
    // values scaled to -127..127.
    bool (*int8_takes)(ggml_type type, int64_t n)                    = nullptr;
    void (*int8_quantize)(const float * x, int64_t n, uint8_t * out) = nullptr;
    // At least the length |x - what int8_quantize's bytes stand for|.
    float (*int8_error)(const float * x, int64_t n, const uint8_t * bytes) = nullptr;
    void (*int8_gemv)(ggml_type type, const void * rows, size_t row_bytes, int64_t n_rows, int64_t n, const uint8_t * x,
                      int64_t n_x, float * out, int64_t out_stride)        = nullptr;
    // A row of n values as Q8_0, with at least the lengths |row - what it stands for| and |what it stands for|.
    void (*quantize_q8_0)(const float * row, int64_t n, uint8_t * out, float * error, float * norm) = nullptr;

    // GEMM in 8-bit integers, of the types that int8_takes, with int8_gemv's results to the last bit; null where there is
    // none. A row of the matrix -> its steps; n_rows (<= 16) rows x -> a panel; and their products, out[r * out_stride + c].
    void (*int8_unpack)(ggml_type type, const void * row, int64_t n, uint32_t * out)                   = nullptr;
    void (*int8_pack)(const float * rows, int64_t stride, int64_t n_rows, int64_t n, uint32_t * panel) = nullptr;
    void (*int8_gemm)(ggml_type type, const uint32_t * rows, int64_t n_rows, const uint32_t * panel, int64_t n_groups,
                      int64_t n, float * out, int64_t out_stride)                                      = nullptr;
    // epilogue_panel for a panel of n values, count of them from its value "first"; both are multiples of 32.
    void (*int8_epilogue_panel)(const float * results, const float * gate, int64_t stride, int64_t count,
                                int64_t n_groups, const float * bias, Activation activation, uint32_t * panel,
                                int64_t first, int64_t n) = nullptr;

    // x = x * silu(gate) and x = x + y, n values each.
    void (*silu_multiply)(float * x, const float * gate, int64_t n) = nullptr;
    void (*add)(float * x, const float * y, int64_t n)              = nullptr;

    // softmax(q k^T) v of up to attention_rows queries over one cache, query r over its first counts[r] >= 1 rows. q:
    // [n_rows][16 * groups], groups = group_count(head_dim), scaled and padded with zeros; out: the same shape. keys and
    // values: F32 or F16, row_bytes from row to row. scratch: attention_scratch(head_dim) floats.
    void (*attend)(const float * q, const int32_t * counts, int64_t n_rows, ggml_type type, const void * keys,
                   const void * values, size_t row_bytes, int64_t head_dim, float * scratch, float * out) = nullptr;

    // log10 of the mel powers, floored at 1e-10, of frames first .. first + count - 1 of a clip: [count][n_mels].
    // Frame t reads samples t*160-200 .. t*160+199, reflected where they leave the clip; n_samples > pad.
    void (*log_mel)(const LogMelTables & tables, const float * samples, int64_t n_samples, int64_t first, int64_t count,
                    float * out) = nullptr;

    // The largest of n values, and the sum of exp(x - minus). A value that is not a number is never the largest.
    float (*max)(const float * x, int64_t n)                   = nullptr;
    double (*sum_exp)(const float * x, int64_t n, float minus) = nullptr;
};

// Bytes of a row of n values in 8-bit integers with what int8_gemv needs beside them; n a multiple of 32.
constexpr size_t int8_bytes(int64_t n) {
    return static_cast<size_t>((n + 511) / 512 * 768);
}

constexpr int64_t attention_rows = 64;
constexpr int64_t attention_keys = 64;  // that are taken at once

constexpr int64_t attention_scratch(int64_t head_dim) {
    return 2 * attention_keys * group_count(head_dim) * block_side + attention_rows * attention_keys;
}

// True where products in BF16 are faster than those in F32: Intel's processors without AMX take twice as long for them.
bool bf16_pays(const Kernels & kernels);

// Those which this processor runs, the fastest last; the first runs everywhere.
const std::vector<const Kernels *> & usable_kernels();

}  // namespace pcr
