// The head: rows of the last layer -> logits, and the most probable token.
//
// A float head is the largest matrix by far, and is read in full for every token. Most of its rows are out of the
// question: so a copy in 8-bit integers, half as large as F16, gives each logit within a bound, and only rows that could
// be the largest, or weigh in the sum, are multiplied exactly. Token and probability are those of the exact head.
#pragma once

#include "device/graph.h"
#include "nn/model.h"

#include <memory>

namespace pcr {

struct Choice {
    int32_t token;
    float   probability;  // softmax of the logits at this token
};

// The copy. Rows of Q8_0, and for each the length of what its rounding took away and its own.
struct Screen {
    struct Free {
        void operator()(uint8_t * memory) const;
    };
    std::unique_ptr<uint8_t[], Free> rows;  // or null: the head is read in full
    std::vector<float>               error, norm;
    float                            most_error = 0.0f, most_norm = 0.0f;
};

// The same as nodes of a graph for a device: of logits [vocab, count] the choices I32 and their probabilities F32, both
// outputs of count values; and what they hold once the graph ran, checked.
void choose(Graph & graph, ggml_tensor * logits, ggml_tensor ** ids, ggml_tensor ** probabilities);
void get_choices(const ggml_tensor * ids, const ggml_tensor * probabilities, Choice * out);

class Head {
public:
    Head(const Model & model, Compute & compute, Importance * importance);

    // rows: [count][hidden], normalized. logits: [count][vocab].
    void logits(const float * rows, int64_t count, float * out);

    // The most probable token of each row. An Error(PCR_ERROR_INTERNAL) where a logit is no number.
    void choose(const float * rows, int64_t count, Choice * out);

private:
    Choice choose_screened(const float * row, float * scores);
    Choice most_probable(const float * logits) const;

    const DecoderWeights & weights;
    const Model &          model;
    Compute &              compute;
    const bool             ggml_only;
    Workspace              workspace;
    std::vector<float>     scores;  // [count][vocab]
    std::vector<uint8_t>   quantized;  // one row in 8-bit integers
    std::vector<int32_t>   likely;
    std::vector<uint8_t>   matrix_row;
    int64_t                chosen = 0;  // since memory was given back
};

// Makes the copy with a session's threads and gives the matrix's memory back to its file meanwhile. Without rows where
// this processor has no use for it.
Screen make_screen(const ggml_tensor * head, const GgufFile & file, Compute & compute);

}  // namespace pcr
