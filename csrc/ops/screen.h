// A copy of the head in 8-bit integers, which finds the few tokens whose exact logits matter.
//
// A float head is the largest matrix by far, and is read in full for every token. Most of its rows are out of the
// question: a copy in 8-bit integers, half as large as F16, gives each logit within a bound, and only rows that could be
// the largest, or weigh in the sum, are multiplied exactly. Token and probability are those of the exact head.
#pragma once

#include "device/compute.h"
#include "gguf_file.h"

#include <memory>
#include <vector>

namespace pcr {

// Rows of Q8_0, and for each the length of what its rounding took away and its own.
struct Screen {
    struct Free {
        void operator()(uint8_t * memory) const;
    };
    std::unique_ptr<uint8_t[], Free> rows;  // or null: the head is read in full
    std::vector<float>               error, norm;
    float                            max_error = 0.0f, max_norm = 0.0f;
};

// Makes the copy with a session's threads and gives the matrix's memory back to its file meanwhile. Without rows where
// this processor has no use for it.
Screen make_screen(const ggml_tensor * head, const GgufFile & file, Compute & compute);

}  // namespace pcr
