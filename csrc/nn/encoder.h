// Audio encoder and adapter: log-mel frames -> one row per 80 ms that the language model reads like an embedding.
#pragma once

#include "nn/model.h"
#include "ops/ops.h"

namespace pcr {

class Encoder {
public:
    Encoder(const Model & model, Ops & ops, Compute & compute, Importance * importance);

    // Rows of frames [n_frames][n_mels], normalized: whole attention windows, of which the clip's last one may be
    // shorter. n_layers < 0: everything, rows of output_dim; otherwise the rows after so many layers, of d_model. A
    // clip shorter than one chunk is not padded to the chunk: short_clip.
    void encode(const float * mel, int64_t n_frames, bool short_clip, int32_t n_layers, float * rows);

    // The adapter: [n_rows][output_dim] -> [n_rows][hidden].
    void adapt(const float * rows, int64_t n_rows, float * out);

    size_t bytes() const { return workspace.bytes(); }

private:
    // Conv stem of one window, with positions: rows [n][d_model].
    void stem(const float * mel, int64_t n_frames, bool short_clip, float * rows);

    const EncoderWeights & weights;
    Ops &                  ops;
    Workspace              workspace;
    std::vector<float>     chunks;     // input of the conv stem
    std::vector<float>     stem_rows;  // its output
    std::vector<KvRange>   windows;    // that rows attend to
};

}  // namespace pcr
