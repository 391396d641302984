#include "nn/projector.h"

namespace pcr {

Projector::Projector(const ProjectorWeights & weights_, Ops & ops_, Workspace & workspace_)
    : weights(weights_), ops(ops_), workspace(workspace_) {}

void Projector::project(const float * rows, int64_t n_rows, float * out) {
    Graph         graph("projector", workspace.max_nodes());
    ggml_tensor * input = graph.input(GGML_TYPE_F32, weights.gate.weight->ne[0], n_rows);
    Input         x{input, Path::gemm};
    ggml_tensor * y = ops.gated_mlp(graph, x, weights.gate, weights.up, weights.down, nullptr);  // [hidden, n_rows]
    graph.output(y);

    workspace.place(graph);
    set(input, rows);
    workspace.run(graph);
    get(y, out);
}

}  // namespace pcr
