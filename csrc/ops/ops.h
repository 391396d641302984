// The operations that encoder and decoder are written with: nodes of a graph, whatever computes them. ops_cpu.cpp has
// them for the CPU, by our kernels and by ggml's products where those win; ops_ggml.cpp for all other devices.
// Shapes are ggml's, fastest dimension first.
#pragma once

#include "device/graph.h"
#include "nn/weights.h"

#include <memory>
#include <vector>

namespace pcr {

class Model;

// How a product treats its rows. The two round differently, so the choice is the caller's and never depends on the number
// of rows: a row's result then does not depend on the batch.
enum class Path {
    gemm,  // all rows with a panel of the matrix at a time
    gemv,  // each row by itself, which is fast for one or a few
};

// Rows F32 [n, n_rows] on their way into products, and their packed forms, made when they are first needed.
struct Input {
    ggml_tensor * rows;
    Path          path;
    ggml_tensor * packed      = nullptr;
    ggml_tensor * packed_int8 = nullptr;
};

// The rows of keys and values that one token attends to: first .. first + count - 1.
struct KvRange {
    int32_t first;
    int32_t count;
};

// What the tokens of a graph attend to, as inputs of that graph.
class KvView {
public:
    virtual ~KvView() = default;

    // True where the graph can run for these ranges, too.
    virtual bool fits(const std::vector<KvRange> & ranges) const = 0;
    // Fills the inputs, once the graph has its place.
    virtual void fill(const std::vector<KvRange> & ranges) = 0;
    // What the last token attends to. It is filled with all of it.
    virtual std::unique_ptr<KvView> last(Graph & graph) const = 0;
};

// How a cache lies in memory: [head_dim, rows, heads], or [head_dim * heads, rows].
enum class KvLayout { by_head, by_row };

// A query head of a decoder layer.
struct AttentionHead {
    int32_t layer;
    int32_t head;
};

// Where one query token's attention goes to is written.
struct AttentionCapture {
    int64_t first   = 0;        // of the rows that are captured, from the token's first one (KvRange::first)
    int64_t count   = 0;        // of them
    float * weights = nullptr;  // [heads][count], or null: nothing is computed
};

struct Choice {
    int32_t token;
    float   probability;  // softmax of the logits at this token
};

// Tokens that a graph chooses, to be read once it has run.
class Choosing {
public:
    virtual ~Choosing() = default;

    // A choice for each row. An Error(PCR_ERROR_INTERNAL) where a logit is no number.
    virtual void read(Choice * out) = 0;
};

class Ops {
public:
    virtual ~Ops() = default;

    // activation(weight x + bias) + residual: [out, n_rows]. residual may be null.
    virtual ggml_tensor * linear(Graph & graph, Input & x, const Linear & l, Activation activation = Activation::none,
                                 ggml_tensor * residual = nullptr) = 0;

    // second(gelu(first x)) + residual
    virtual ggml_tensor * mlp(Graph & graph, Input & x, const Linear & first, const Linear & second,
                              ggml_tensor * residual) = 0;

    // down(silu(gate x) * up x) + residual
    virtual ggml_tensor * gated_mlp(Graph & graph, Input & x, const Linear & gate, const Linear & up,
                                    const Linear & down, ggml_tensor * residual) = 0;

    // Chunks F32 [time, freq, 1, chunks] -> F32 [channels * freq / 8, time / 8, chunks], freq fastest: three convolutions
    // of kernel 3, stride 2, padding 1, each with GELU behind it.
    virtual ggml_tensor * conv_stem(Graph & graph, const EncoderWeights & weights, ggml_tensor * chunks) = 0;

    // What tokens attend to in a cache of so many rows per sequence: a range for each, those of one sequence behind each
    // other.
    virtual std::unique_ptr<KvView> cache_view(Graph & graph, const std::vector<KvRange> & ranges,
                                               int64_t rows_per_sequence) = 0;
    // What rows attend to among themselves: each to its whole window.
    virtual std::unique_ptr<KvView> window_view(Graph & graph, const std::vector<KvRange> & ranges) = 0;

    // q:    F32 [head_dim, n_heads, n_tokens], contiguous
    // k, v: F32 or F16 [head_dim, rows, n_kv_heads], of equal strides, one token's key or value a row
    // gives F32 [head_dim * n_heads, n_tokens]: softmax(q k^T / sqrt(head_dim)) v. Query head h reads the keys and values
    //       of head h / (n_heads / n_kv_heads).
    virtual ggml_tensor * attention(Graph & graph, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v,
                                    const KvView & view) = 0;

    // A node without a result: token i's softmax(q k^T / sqrt(head_dim)), over all that it attends to, goes to captures[i],
    // which are read when the node runs. Only the heads of one layer are computed; head j of `heads` fills row j of the
    // weights. longest: rows that a token may attend to.
    virtual ggml_tensor * capture_attention(Graph & graph, ggml_tensor * q, ggml_tensor * k, const KvView & view,
                                            const std::vector<AttentionHead> & heads, int32_t layer,
                                            const std::vector<AttentionCapture> & captures, int64_t longest) = 0;
    // An Error(PCR_ERROR_UNSUPPORTED) where capture_attention cannot be.
    virtual void check_capture() const = 0;

    // The most probable token behind each row x [hidden, n_rows], normalized.
    virtual std::unique_ptr<Choosing> choose(Graph & graph, ggml_tensor * x, const Linear & head) = 0;

    // True where a row's result in every product of this model is the same to the last bit whatever rows are computed
    // beside it.
    virtual bool batch_invariant(Path path) const = 0;

    virtual KvLayout kv_layout() const = 0;
    // F16 holds keys and values to 3 digits more than 8-bit products leave; F32 where nothing may be rounded.
    virtual ggml_type kv_type() const = 0;
    // Nodes that the attention of a layer takes, for tokens of so many sequences.
    virtual size_t attention_nodes(int64_t n_sequences) const = 0;
};

// Those for a session's device. With importance every product is one of ggml's nodes, which is what it looks at.
std::unique_ptr<Ops> make_ops(const Model & model, Compute & compute, Importance * importance);

}  // namespace pcr
