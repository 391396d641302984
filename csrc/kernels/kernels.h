// The arithmetic that takes the time, written for the vector instructions of several processors and chosen at run time.
//
// Factors of a product are held in blocks of 16 x 16 words. A word is one F32, or two BF16 of neighbouring columns.
//   rows:    16 rows of 16 words each, so a block covers 16 (F32) or 32 (BF16) columns of 16 rows: a "step"
//   columns: the same block transposed, word k of all 16 rows behind each other
// A sum over k is taken one word after the other, whatever the size of the product: a result depends on its own row and
// its own column only.
#pragma once

#include "ggml.h"

#include <cstdint>
#include <vector>

namespace pcr {

enum class Number { f32, bf16 };

constexpr int64_t block_side  = 16;
constexpr int64_t block_words = block_side * block_side;

// Values in a word.
constexpr int64_t word_values(Number number) {
    return number == Number::bf16 ? 2 : 1;
}

// Blocks that n values of a row take; the last one is filled up with zeros.
constexpr int64_t step_count(Number number, int64_t n) {
    const int64_t values = block_side * word_values(number);
    return (n + values - 1) / values;
}

constexpr int64_t group_count(int64_t n) {
    return (n + block_side - 1) / block_side;
}

// Rows of a product's left factor, wherever they lie; strides in words.
struct Rows {
    const uint32_t * words;
    int64_t          group;  // from 16 rows to the next 16
    int64_t          row;  // from row to row of one group
    int64_t          step;  // from 16 words of a row to the next 16
};

// What happens to a product's results on their way out.
enum class Activation { none, gelu };

struct Kernels {
    const char * name;
    bool         bf16;  // multiplies BF16
    bool         tiles;  // in tiles (AMX), several times as fast as anything else

    // out[r * out_stride + c] (+)= sum over k of rows[r][k] * columns[k][c], for n_rows rows and n_groups groups of 16
    // columns, which are column_group words apart. A multiple of 16 rows for BF16.
    void (*multiply)(Number number, const Rows & rows, int64_t n_rows, const uint32_t * columns, int64_t column_group,
                     int64_t n_groups, int64_t n_steps, bool add, float * out, int64_t out_stride);

    // One matrix row of n values of any type -> words of a row, 16 at each step, zeros behind the last.
    void (*decode)(Number number, ggml_type type, const void * row, int64_t n, uint32_t * out, int64_t out_step);

    // The same as F32 [n].
    void (*to_float)(ggml_type type, const void * row, int64_t n, float * out);

    // 16 rows of n values (those from n_rows on are zero), stride apart -> columns.
    void (*pack)(Number number, const float * rows, int64_t stride, int64_t n_rows, int64_t n, uint32_t * columns);

    // Transposed results [n][stride] of n_columns columns -> rows of out, out_stride apart: activation(x + bias)
    // + residual. bias and residual may be null.
    void (*put_rows)(const float * results, int64_t stride, int64_t n, int64_t n_columns, const float * bias,
                     Activation activation, const float * residual, float * out, int64_t out_stride);

    // Transposed results of n (even for BF16) values -> columns for the next product, beginning at its value "first".
    // gate may be null; otherwise silu(gate) * results.
    void (*put_columns)(Number number, const float * results, const float * gate, int64_t stride, int64_t n,
                        int64_t n_groups, const float * bias, Activation activation, uint32_t * columns,
                        int64_t column_group, int64_t first);

    // Results [n] -> words of a row, activation(x + bias), zeros behind the last.
    void (*put_words)(Number number, const float * results, int64_t n, const float * bias, Activation activation,
                      uint32_t * words);

    // out[j * out_stride + i] = sum over k of row i of the matrix * x[j * n + k]. For few x: the rows are read once.
    void (*dot_rows)(ggml_type type, const void * rows, size_t row_bytes, int64_t n_rows, int64_t n, const float * x,
                     int64_t n_x, float * out, int64_t out_stride);

    // The same for some quantised types in 8-bit integers; null where the processor has no instructions for it. x:
    // columns of column_bytes(n) bytes each, by to_bytes: each 32 values scaled to -127..127.
    bool (*takes_bytes)(ggml_type type, int64_t n);
    void (*to_bytes)(const float * x, int64_t n, uint8_t * out);
    void (*dot_bytes)(ggml_type type, const void * rows, size_t row_bytes, int64_t n_rows, int64_t n, const uint8_t * x,
                      int64_t n_x, float * out, int64_t out_stride);
    // A row of n values as Q8_0, with at least the lengths |row - what it stands for| and |what it stands for|.
    void (*to_q8_0)(const float * row, int64_t n, uint8_t * out, float * error, float * norm);

    // x = x * silu(gate) and x = x + y, n values each.
    void (*multiply_gate)(float * x, const float * gate, int64_t n);
    void (*add)(float * x, const float * y, int64_t n);

    // softmax(q k^T) v of up to attention_rows queries over one cache, query r over its first counts[r] >= 1 rows. q:
    // [n_rows][16 * groups], groups = group_count(head_dim), scaled and padded with zeros; out: the same shape. keys and
    // values: F32 or F16, row_bytes from row to row. scratch: attention_scratch(head_dim) floats.
    void (*attend)(const float * q, const int32_t * counts, int64_t n_rows, ggml_type type, const void * keys,
                   const void * values, size_t row_bytes, int64_t head_dim, float * scratch, float * out);

    // The largest of n values, and the sum of exp(x - minus). A value that is not a number is never the largest.
    float (*most)(const float * x, int64_t n);
    double (*sum_of_exponentials)(const float * x, int64_t n, float minus);
};

// Bytes of a column of n values in 8-bit integers, n a multiple of 64.
constexpr size_t column_bytes(int64_t n) {
    return static_cast<size_t>(3 * n + (n + 255) / 256 * 64);
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
