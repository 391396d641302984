// Audio tower: log-mel frames -> one row per 80 ms.
#pragma once

#include "device/graph.h"
#include "nn/weights.h"
#include "ops/ops.h"

#include <vector>

namespace pcr {

class Encoder {
public:
    // The workspace is for others too, between calls: see max_nodes.
    Encoder(const EncoderWeights & weights, Ops & ops, Workspace & workspace);

    // What the workspace must have room for.
    static size_t max_nodes(const EncoderWeights & weights, const Ops & ops);

    // Rows of frames [n_frames][n_mels], normalized: whole attention windows, of which the clip's last one may be
    // shorter, but for Whisper's. n_layers < 0: everything; otherwise the rows after so many layers. Their columns:
    // EncoderWeights::columns. chunk: EncoderWeights::chunk_of the clip.
    void encode(const float * mel, int64_t n_frames, int64_t chunk, int32_t n_layers, float * rows);

private:
    // Conv stem of one window, with positions: rows [n][d_model].
    void stem(const float * mel, int64_t n_frames, int64_t chunk, float * rows);
    void whisper_stem(const float * mel, float * rows);

    const EncoderWeights & weights;
    Ops &                  ops;
    Workspace &            workspace;
    std::vector<float>     chunks;     // input of the conv stem
    std::vector<float>     stem_rows;  // its output
    std::vector<KvRange>   windows;    // that rows attend to
};

}  // namespace pcr
