// Qwen3 decoder with a KV cache per sequence. Rows go in (embeddings of text, or the adapter's rows); rows for the head,
// or the tokens that it chooses, come out.
#pragma once

#include "nn/kv_cache.h"
#include "nn/model.h"
#include "ops/ops.h"

#include <memory>

namespace pcr {

class Decoder {
public:
    // n_sequences caches, which grow when more is appended. The attention of `captured` heads can be read out; without
    // any, nothing is computed for it. An Error(PCR_ERROR_UNSUPPORTED) where the device cannot.
    Decoder(const Model & model, Ops & ops, Compute & compute, int32_t n_sequences, Importance * importance,
            std::vector<AttentionHead> captured);

    // Makes room for n_positions rows of a sequence, so that no append below that reallocates.
    void reserve(int32_t sequence, int64_t n_positions);

    int32_t n_sequences() const { return cache.n_sequences(); }
    int64_t length(int32_t sequence) const { return cache.length(sequence); }
    void    rewind(int32_t sequence, int64_t n_past) { cache.rewind(sequence, n_past); }
    size_t  n_captured() const { return captured.size(); }
    size_t  bytes() const { return cache.bytes() + prefill_workspace.bytes() + step_workspace.bytes(); }

    // Token embeddings: [count][hidden].
    void embed(const int32_t * tokens, int64_t count, float * out);

    // What is wanted behind appended rows; nothing where both are null.
    struct Output {
        float *  rows    = nullptr;  // [outputs][hidden]: what the head reads
        Choice * choices = nullptr;  // [outputs]: what the head chooses
    };

    // Appends n_rows rows [n_rows][hidden] to a sequence. The output is the last row's; with n_layers >= 0 that row after
    // so many layers. capture: where the last row's attention goes, if there is an output.
    void append(int32_t sequence, const float * rows, int64_t n_rows, int32_t n_layers, const Output & out,
                const AttentionCapture & capture = {});

    // As append(), with all rows of the last layer: out [n_rows][hidden], behind the final norm.
    void append_all(int32_t sequence, const float * rows, int64_t n_rows, float * out);

    // Appends count tokens to one sequence. The output is that behind each: to the last bit what step() gives for one
    // after the other, where the products are batch_invariant(Path::gemv). capture: where the first token's attention
    // goes; that of the others follows it.
    void append_tokens(int32_t sequence, const int32_t * tokens, int64_t count, const Output & out,
                       const AttentionCapture & capture = {});

    // Appends one token to each of count different sequences, as one batch. captures: null, or one for each sequence.
    void step(const int32_t * sequences, const int32_t * tokens, int32_t count, const Output & out,
              const AttentionCapture * captures = nullptr);

    // The head: rows [count][hidden] as an output has them -> logits [count][vocab].
    void logits(const float * rows, int64_t count, float * out);

    // Another head: rows, as they come out, [count][hidden] -> [count][its outputs].
    void apply(const Linear & other, const float * rows, int64_t count, float * out);

private:
    void product(const Linear & head, Path path, const float * rows, int64_t count, float * out);

    enum class Want { nothing, last_row, last_choice, rows, choices };

    struct Pass {  // a graph with the tensors to fill and to read
        Pass(const char * name, size_t max_nodes) : graph(name, max_nodes) {}

        Graph                     graph;
        Want                      want      = Want::nothing;
        int64_t                   n_tokens  = 0;
        ggml_tensor *             rows      = nullptr;  // F32 [hidden, n_tokens]
        ggml_tensor *             tokens    = nullptr;  // I32 [n_tokens], instead of rows
        ggml_tensor *             positions = nullptr;  // I32 [n_tokens]
        ggml_tensor *             places    = nullptr;  // I64 [n_tokens]: the cache's rows that are written
        std::unique_ptr<KvView>   view;  // what is read of it
        ggml_tensor *             out = nullptr;  // F32 [hidden, outputs]
        std::unique_ptr<Choosing> choosing;
    };

    // Where n tokens go that are appended to one sequence, or one to each.
    void plan(const int32_t * sequences, bool one_each, int64_t n);

    // The graph for tokens that are planned: rows or tokens in, what is wanted out.
    void build(Pass & pass, bool from_tokens, int32_t n_layers, Want want);
    void fill(Pass & pass) const;
    void read(Pass & pass, const Output & out) const;

    const DecoderWeights &           weights;
    Ops &                            ops;
    const std::vector<AttentionHead> captured;
    std::vector<AttentionCapture>    captures;  // of the tokens of the pass that runs

    KvCache               cache;
    Workspace             prefill_workspace, step_workspace;
    std::unique_ptr<Pass> step_pass;  // kept from token to token

    std::vector<int32_t> positions;  // of the tokens that are planned
    std::vector<int64_t> places;
    std::vector<KvRange> ranges;
};

}  // namespace pcr
