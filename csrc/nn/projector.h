// Between the encoder and the decoder: rows of the one -> rows that the other reads like embeddings.
#pragma once

#include "device/graph.h"
#include "nn/weights.h"
#include "ops/ops.h"

namespace pcr {

class Projector {
public:
    // The workspace is for others too, between calls, and has room for max_nodes.
    Projector(const ProjectorWeights & weights, Ops & ops, Workspace & workspace);

    static constexpr size_t max_nodes = 32;

    // [n_rows][output_dim] -> [n_rows][hidden]. Not for a model without one.
    void project(const float * rows, int64_t n_rows, float * out);

private:
    const ProjectorWeights & weights;
    Ops &                    ops;
    Workspace &              workspace;
};

}  // namespace pcr
