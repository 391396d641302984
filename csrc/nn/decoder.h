// Qwen3 decoder with a KV cache per sequence. Rows go in (embeddings of text, or the adapter's rows), rows for the head
// come out.
#pragma once

#include "device/graph.h"
#include "nn/head.h"
#include "nn/model.h"
#include "ops/attention.h"

#include <optional>

namespace pcr {

class Decoder {
public:
    // n_sequences caches of at least n_positions rows each; they grow when more is appended. The attention of watched
    // heads can be read out; without any, nothing is computed for it.
    Decoder(const Model & model, Compute & compute, int32_t n_sequences, Importance * importance,
            std::vector<WatchedHead> watched);

    // Makes room for n_positions rows per sequence, so that no append below that reallocates. What is cached stays.
    // An Error(PCR_ERROR_AUDIO) beyond the model's positions.
    void reserve(int64_t n_positions);

    int32_t n_sequences() const { return static_cast<int32_t>(lengths.size()); }
    int64_t length(int32_t sequence) const { return lengths[static_cast<size_t>(sequence)]; }

    // Forgets what a sequence holds from position n_past on.
    void rewind(int32_t sequence, int64_t n_past);

    // Token embeddings: [count][hidden].
    void embed(const int32_t * tokens, int64_t count, float * out);

    // Appends n_rows rows [n_rows][hidden] to a sequence. out, unless null, receives the last row [hidden]: what the head
    // reads, or with n_layers >= 0 the row after so many layers. look: where the last row's attention goes, if out is
    // not null.
    void append(int32_t sequence, const float * rows, int64_t n_rows, int32_t n_layers, float * out,
                const Look & look = {});

    // Appends count tokens to one sequence. out: [count][hidden], what the head reads behind each: to the last bit what
    // step() gives for one after the other, where rows_stand_alone(model, true). look: where the first token's attention
    // goes; that of the others follows it.
    void append_tokens(int32_t sequence, const int32_t * tokens, int64_t count, float * out, const Look & look = {});

    // Appends one token to each of count different sequences, as one batch. out: [count][hidden], what the head reads.
    // looks: null, or one for each sequence.
    void step(const int32_t * sequences, const int32_t * tokens, int32_t count, float * out,
              const Look * looks = nullptr);

    size_t n_watched() const { return watched.size(); }

    // The same on a device, where the head is computed along: nothing but its choices is copied.
    void step_and_choose(const int32_t * sequences, const int32_t * tokens, int32_t count, Choice * out);

private:
    struct Pass {  // a graph with the tensors to fill and to read
        Pass(const char * name, size_t max_nodes) : graph(name, max_nodes) {}

        Graph         graph;
        int64_t       n_tokens  = 0;
        ggml_tensor * rows      = nullptr;  // F32 [hidden, n_tokens]
        ggml_tensor * tokens    = nullptr;  // I32 [n_tokens], instead of rows
        ggml_tensor * positions = nullptr;  // I32 [n_tokens]
        ggml_tensor * places    = nullptr;  // I64 [n_tokens]: the caches' rows that are written
        ggml_tensor * spans     = nullptr;  // I32 [2, n_tokens]: the caches' rows that are read
        Sight         sight;  // the same for a device, ...
        ggml_tensor * mask = nullptr;  // ... and its mask, to be filled
        ggml_tensor * ids  = nullptr;  // I32 [outputs]: what the head chooses, with F32 probabilities, if asked
        ggml_tensor * probabilities = nullptr;
        ggml_tensor * out           = nullptr;  // F32 [hidden, outputs]
    };

    // rows or tokens in; the last row or all rows out, or what the head makes of them, or none.
    enum class Want { nothing, last, all, choices };
    void build(Pass & pass, int64_t n_tokens, bool from_tokens, int32_t n_layers, Want want);

    // For a device: what tokens see that go to these sequences, of which pass.n_tokens go to one or one to each.
    void set_sight(Pass & pass, const int32_t * sequences, bool one_each);

    // Brings step_pass to these sequences, and runs it.
    void run_step(const int32_t * sequences, const int32_t * tokens, int32_t count, Want want, const Look * looks_);

    // Fills the inputs that say where token i goes: behind what sequence_of(i) holds.
    void place_tokens(Pass & pass, const int32_t * sequences, bool one_each);

    // F16 holds keys and values to 3 digits more than 8-bit products leave; F32 where nothing may be rounded.
    ggml_type cache_type() const { return compute.arithmetic.exact ? GGML_TYPE_F32 : GGML_TYPE_F16; }

    const DecoderWeights & weights;
    Compute &              compute;
    bool                   ggml_only;

    const std::vector<WatchedHead> watched;
    std::vector<Look>              looks;  // of the tokens of the pass that runs

    std::vector<int64_t>    lengths;  // rows held, per sequence
    int64_t                 capacity = 0;  // rows per sequence
    ggml_context_ptr        cache_context;
    ggml_backend_buffer_ptr cache_buffer;
    // Per layer: [head_dim, capacity * n_sequences, n_kv_heads]; on a device [head_dim * n_kv_heads, all rows, 1], since
    // rows of one stride are what its operations are made for.
    std::vector<ggml_tensor *> keys, values;

    Workspace           prefill_workspace, step_workspace;
    std::optional<Pass> step_pass;  // kept from token to token

    std::vector<int32_t>     step_sequences;  // that step_pass is for, on a device
    Want                     step_want = Want::all;
    std::vector<ggml_fp16_t> mask;

    std::vector<int32_t> positions;
    std::vector<int64_t> places;
    std::vector<int32_t> spans;
};

}  // namespace pcr
