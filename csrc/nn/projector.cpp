#include "nn/projector.h"

namespace pcr {

Projector::Projector(const ProjectorWeights & weights_, Ops & ops_, Workspace & workspace_)
    : weights(weights_), ops(ops_), workspace(workspace_) {}

void Projector::project(const float * rows, int64_t n_rows, float * out) {
    Graph          graph("projector", workspace.max_nodes());
    ggml_context * ctx   = graph.ctx();
    ggml_tensor *  input = graph.input(GGML_TYPE_F32, weights.input_dim(), n_rows);
    Input          x{input, Path::gemm};
    ggml_tensor *  y;  // [hidden, n_rows]
    if (weights.gate.weight) {
        y = ops.gated_mlp(graph, x, weights.gate, weights.up, weights.down, nullptr);
    } else {
        Input inner{ggml_silu(ctx, ops.linear(graph, x, weights.fc1)), Path::gemm};
        y = ggml_norm(ctx, ops.linear(graph, inner, weights.fc2), weights.norm_eps);
        y = ggml_add(ctx, ggml_mul(ctx, y, weights.norm.weight), weights.norm.bias);
    }
    graph.output(y);

    workspace.place(graph);
    set(input, rows);
    workspace.run(graph);
    get(y, out);
}

}  // namespace pcr
