// Audio encoder and adapter: log-mel frames -> one row per 80 ms that the language model reads like an embedding.
#pragma once

#include "compute.h"
#include "model.h"

namespace pcr {

class Encoder {
public:
    Encoder(const Model & model, Compute & compute, Importance * importance);

    // Rows of one attention window: n_frames frames [n_frames][n_mels], normalized, at most window_frames() of them.
    // n_layers < 0: everything, rows of output_dim; otherwise the rows after so many layers, of d_model.
    // A window that is the whole clip and shorter than one chunk is not padded to the chunk: short_clip.
    void encode_window(const float * mel, int64_t n_frames, bool short_clip, int32_t n_layers, float * rows);

    // The adapter: [n_rows][output_dim] -> [n_rows][hidden].
    void adapt(const float * rows, int64_t n_rows, float * out);

private:
    const EncoderWeights & weights;
    Workspace              workspace;
    std::vector<float>     chunks;  // input of the conv stem
};

}  // namespace pcr
