// Operations on the CPU: our kernels (kernels/), and ggml's products where those win.
#pragma once

#include "ops/ops_ggml.h"
#include "ops/screen.h"

namespace pcr {

// GEMM reads a matrix as it lies in the file, unpacks it panel by panel into the cache, and multiplies each panel with all
// rows: a matrix costs its reading once whatever its type is, and nothing is stored beside the file.
class CpuOps final : public GgmlOps {
public:
    // model: may be null where only products are asked for.
    CpuOps(const Model * model, Compute & compute, Importance * importance);

    ggml_tensor * linear(Graph & graph, Input & x, const Linear & l, Activation activation,
                         ggml_tensor * residual) override;
    ggml_tensor * mlp(Graph & graph, Input & x, const Linear & first, const Linear & second,
                      ggml_tensor * residual) override;
    ggml_tensor * gated_mlp(Graph & graph, Input & x, const Linear & gate, const Linear & up, const Linear & down,
                            ggml_tensor * residual) override;
    ggml_tensor * conv_stem(Graph & graph, const EncoderWeights & weights, ggml_tensor * chunks) override;

    std::unique_ptr<KvView> cache_view(Graph & graph, const std::vector<KvRange> & ranges,
                                       int64_t rows_per_sequence) override;
    std::unique_ptr<KvView> window_view(Graph & graph, const std::vector<KvRange> & ranges) override;

    // As one node whose shape does not depend on how long the caches are. A token's result depends on neither its batch nor
    // the number of threads.
    ggml_tensor * attention(Graph & graph, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v,
                            const KvView & view) override;
    ggml_tensor * capture_attention(Graph & graph, ggml_tensor * q, ggml_tensor * k, const KvView & view,
                                    const std::vector<AttentionHead> & heads, int32_t layer,
                                    const std::vector<AttentionCapture> & captures, int64_t longest) override;
    void          check_capture() const override {}

    std::unique_ptr<Choosing> choose(Graph & graph, ggml_tensor * x, const Linear & head) override;

    bool      batch_invariant(Path path) const override;
    KvLayout  kv_layout() const override { return KvLayout::by_head; }
    ggml_type kv_type() const override { return compute.arithmetic.exact ? GGML_TYPE_F32 : GGML_TYPE_F16; }
    size_t    attention_nodes(int64_t) const override { return 0; }

    // The most probable token behind each of count rows [count][hidden].
    void choose_rows(const float * rows, int64_t count, Choice * out);

private:
    bool          ours(const Linear & l, Path path) const;  // by our kernels
    ComputeType   factors(const Linear & l) const;
    Path          path_of(const Input & x, std::initializer_list<const Linear *> list) const;
    ggml_tensor * packed(Graph & graph, Input & x, ComputeType type);
    ggml_tensor * hidden(Graph & graph, Input & x, const Linear & l, const Linear * gate, Activation activation,
                         const Linear & second);
    ggml_tensor * rows_out(Graph & graph, ggml_tensor * packed, int64_t n_rows, const Linear & l, Activation activation,
                           ggml_tensor * residual);
    ggml_tensor * each_row(Graph & graph, Input & x, const Linear & l, const Linear * gate, ggml_tensor * residual);

    void   logits(const float * rows, int64_t count, float * out);
    Choice choose_screened(const Screen & screen, const float * row, float * scores);
    Choice most_probable(const float * logits) const;

    const Model * const model;
    const bool          collects;  // importance, which looks at every product
    const bool          ggml_products;

    Workspace            head_workspace;
    std::vector<float>   scores;     // [count][vocab]
    std::vector<uint8_t> quantized;  // one row in 8-bit integers
    std::vector<int32_t> likely;
    std::vector<uint8_t> matrix_row;
    int64_t              chosen = 0;  // since memory was given back
};

// A kernel F32/F16/BF16 [time 3, freq 3, in, out] as packed panels: [groups of out][tap][steps of in], the taps of one
// frequency after the other. With one input channel the taps themselves are the product's only step. Empty where our
// kernels do not run.
std::vector<uint32_t> pack_conv(const Arithmetic & how, const ggml_tensor * kernel);

// What computes rows of n_in values times a matrix of this type, and in what: "avx2, 8-bit integers", or "ggml".
std::string describe_product(const Arithmetic & how, Path path, ggml_type type, int64_t n_in);

// One product by itself, to test and to measure: out [n_rows][n_out] = rows [n_rows][n_in] times the transposed matrix
// [n_out][n_in]. Gives the seconds of the fastest of so many runs.
double multiply_once(const Arithmetic & how, Path path, ggml_type type, const void * matrix, int64_t n_out,
                     int64_t n_in, const float * rows, int64_t n_rows, float * out, int threads, int repeats);

}  // namespace pcr
