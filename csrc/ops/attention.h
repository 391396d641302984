// Attention of new tokens over KV caches, as one graph node whose shape does not depend on how long the caches are.
#pragma once

#include "device/graph.h"

#include <cstdint>
#include <vector>

namespace pcr {

// What one query token sees: rows first .. first + count - 1 of the cache.
struct Span {
    int32_t first;
    int32_t count;
};

// q:     F32 [head_dim, n_heads, n_tokens], contiguous
// k, v:  F32 or F16 [head_dim, rows, n_kv_heads], of equal strides: the caches of all sequences, one token's key or value
//        a row
// spans: I32 [2, n_tokens]: a Span for each token
// gives  F32 [head_dim * n_heads, n_tokens]: softmax(q k^T / sqrt(head_dim)) v. Query head h reads the keys and values
//        of head h / (n_heads / n_kv_heads). A token's result depends on neither its batch nor the number of threads.
ggml_tensor * attention(Graph & graph, Compute & compute, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v,
                        ggml_tensor * spans);

// A query head of a decoder layer whose attention is read out.
struct WatchedHead {
    int32_t layer;
    int32_t head;
};

// Where one query token's attention goes to.
struct Look {
    int64_t first   = 0;        // of the rows that are looked at, from the token's first one (Span::first)
    int64_t count   = 0;        // of them
    float * weights = nullptr;  // [watched heads][count], or null: nothing is computed
};

// A node without a result: token i's softmax(q k^T / sqrt(head_dim)), over all that it sees, goes to looks[i]. looks are
// read when the node runs. Only the heads of one layer are computed; head j of `heads` fills row j of the weights.
// longest: rows that a token may see.
ggml_tensor * watch(Graph & graph, Compute & compute, ggml_tensor * q, ggml_tensor * k, ggml_tensor * spans,
                    const std::vector<WatchedHead> & heads, int32_t layer, const std::vector<Look> & looks,
                    int64_t longest);

// The same for a device other than the CPU, by ggml's operations. Their shapes say what is read, so a graph serves caches
// up to a length only.
struct Sight {
    struct Block {            // of sequences that follow each other in tokens and in rows
        int64_t token, row;   // first ones
        int64_t n_sequences;
    };
    std::vector<Block> blocks;
    int64_t            tokens = 0;       // of each sequence
    int64_t            rows   = 0;       // that are read of each sequence ...
    int64_t            apart  = 0;       // ... from one sequence's first row to the next one's
    ggml_tensor *      mask   = nullptr;  // F16 [rows, all tokens]: 0 or minus infinity; null: every row is seen
};

ggml_tensor * attention(Graph & graph, Compute & compute, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v,
                        const Sight & sight);

}  // namespace pcr
