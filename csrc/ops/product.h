// Products of rows with the model's matrices, as nodes of a graph: by our own kernels (kernels.h) where they are
// faster, else by ggml.
//
// Our kernels read a matrix as it lies in the file, decode it panel by panel into the cache, and multiply each panel
// with all rows, so a matrix costs its reading once whatever its type is, and nothing is stored beside the file.
#pragma once

#include "device/graph.h"
#include "nn/model.h"

namespace pcr {

// What the rows of one graph are multiplied with.
class Products {
public:
    // n_rows: rows of every product in this graph. each: compute each row by itself, which is fast for one or a few;
    // else all of them with a panel of the matrix at a time. The two round differently, so the choice is the caller's and
    // never depends on n_rows: then a row's result does not depend on what is computed beside it. ggml_only: for
    // Importance, which looks at ggml's nodes.
    Products(Graph & graph, Compute & compute, int64_t n_rows, bool each, bool ggml_only);

    // Rows of a product, F32 [n, n_rows], and their form for our kernels, made when it is first needed.
    struct Factor {
        ggml_tensor * rows    = nullptr;
        ggml_tensor * columns = nullptr;
    };

    // activation(weight x + bias) + residual: [out, n_rows]. residual may be null.
    ggml_tensor * linear(const Linear & l, Factor & x, Activation activation = Activation::none,
                         ggml_tensor * residual = nullptr);

    // second(gelu(first x)) + residual
    ggml_tensor * mlp(const Linear & first, const Linear & second, Factor & x, ggml_tensor * residual);

    // down(silu(gate x) * up x) + residual; residual may be null.
    ggml_tensor * gated_mlp(const Linear & gate, const Linear & up, const Linear & down, Factor & x,
                            ggml_tensor * residual);

private:
    bool          packed(const Linear & l) const;   // by our kernels for many rows
    bool          few(const Linear & l) const;      // by our kernels for few rows
    ggml_tensor * columns_of(Factor & x);
    ggml_tensor * hidden(const Linear & l, const Linear * gate, Factor & x, Activation activation);
    ggml_tensor * each_row(const Linear & l, const Linear * gate, Factor & x, ggml_tensor * residual);
    ggml_tensor * rows_out(const Linear & l, ggml_tensor * columns, Activation activation, ggml_tensor * residual);

    Graph &   graph;
    Compute & compute;
    int64_t   n_rows;
    bool      each, ggml_only;
};

// True where a row's result in every product of this model, each or not, is the same to the last bit whatever rows are
// computed beside it: with our kernels. ggml's may sum in another order for another number of rows.
bool rows_stand_alone(const Model & model, bool each);

// One product by itself, to test and to measure: out [n_rows][n_out] = rows [n_rows][n_in] times the transposed matrix
// [n_out][n_in]. each: see Products. Gives the seconds of the fastest of so many runs.
double multiply_once(const Arithmetic & how, bool each, ggml_type type, const void * matrix, int64_t n_out,
                     int64_t n_in, const float * rows, int64_t n_rows, float * out, int threads, int repeats);

}  // namespace pcr
