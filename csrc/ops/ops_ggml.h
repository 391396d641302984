// ggml's operations, for any device.
#pragma once

#include "ops/ops.h"

namespace pcr {

class GgmlOps : public Ops {
public:
    explicit GgmlOps(Compute & compute_, bool asks_for_f32_ = true) : compute(compute_), asks_for_f32(asks_for_f32_) {}

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

    ggml_tensor * attention(Graph & graph, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v,
                            const KvView & view) override;
    ggml_tensor * capture_attention(Graph & graph, ggml_tensor * q, ggml_tensor * k, const KvView & view,
                                    const std::vector<AttentionHead> & heads, int32_t layer,
                                    const std::vector<AttentionCapture> & captures, int64_t longest) override;
    void          check_capture() const override;

    std::unique_ptr<Choosing> choose(Graph & graph, ggml_tensor * x, const Linear & head) override;

    bool      batch_invariant(Path) const override { return false; }
    KvLayout  kv_layout() const override { return KvLayout::by_row; }
    ggml_type kv_type() const override { return GGML_TYPE_F16; }
    size_t    attention_nodes(int64_t n_sequences) const override;

protected:
    Compute &  compute;
    const bool asks_for_f32;  // for sums of thousands of terms, which some devices would keep in F16
};

// What choices say of logits that are no numbers.
Error not_finite();

}  // namespace pcr
