// Reference: Qwen3OmniMoeAudioEncoder of transformers (models/qwen3_omni_moe/modeling_qwen3_omni_moe.py), and WhisperEncoder
// (models/whisper/modeling_whisper.py).
// Shapes in comments are ggml's, fastest dimension first.

#include "nn/encoder.h"

#include <algorithm>

namespace pcr {

namespace {

ggml_tensor * layer_norm(ggml_context * ctx, const Norm & n, ggml_tensor * x, float eps) {
    return ggml_add(ctx, ggml_mul(ctx, ggml_norm(ctx, x, eps), n.weight), n.bias);
}

// [head_dim * n_heads, rows] seen as [head_dim, rows, n_heads].
ggml_tensor * by_head(ggml_context * ctx, ggml_tensor * x, int64_t n_heads) {
    const int64_t head_dim = x->ne[0] / n_heads;
    return ggml_view_3d(ctx, x, head_dim, x->ne[1], n_heads, x->nb[1], static_cast<size_t>(head_dim) * x->nb[0], 0);
}

}  // namespace

Encoder::Encoder(const EncoderWeights & weights_, Ops & ops_, Workspace & workspace_)
    : weights(weights_), ops(ops_), workspace(workspace_) {}

size_t Encoder::max_nodes(const EncoderWeights & w, const Ops & ops) {
    return 128 + (40 + 4 * ops.attention_nodes(1)) * static_cast<size_t>(w.n_layers);
}

void Encoder::stem(const float * mel, int64_t n_frames, int64_t length, float * rows) {
    const EncoderWeights & w        = weights;
    const int64_t          n_mels   = w.n_mels;
    const int64_t          d        = w.d_model;
    const int64_t          n_chunks = (n_frames + length - 1) / length;
    const int64_t          n_rows   = w.rows(n_frames);

    // [n_frames][n_mels] -> chunks [length, n_mels, 1, n_chunks], zeros behind the last frame.
    chunks.assign(static_cast<size_t>(length * n_mels * n_chunks), 0.0f);
    for (int64_t t = 0; t < n_frames; t++) {
        float * chunk = chunks.data() + t / length * length * n_mels + t % length;
        for (int64_t m = 0; m < n_mels; m++) {
            chunk[m * length] = mel[t * n_mels + m];
        }
    }

    Graph          graph("conv stem", workspace.max_nodes());
    ggml_context * ctx   = graph.ctx();
    ggml_tensor *  input = graph.input(GGML_TYPE_F32, length, n_mels, 1, n_chunks);

    ggml_tensor * x =
        ops.conv_stem(graph, w, input);  // [channels * freq, t, n_chunks]; a chunk's rows count its padding
    const int64_t t = x->ne[1];
    Input         flat{ggml_reshape_2d(ctx, x, x->ne[0], t * n_chunks), Path::gemm};
    x = ggml_reshape_3d(ctx, ops.linear(graph, flat, w.conv_out), d, t, n_chunks);
    x = ggml_add(ctx, x, ggml_view_2d(ctx, w.positions, d, t, w.positions->nb[1], 0));
    graph.output(x);

    workspace.place(graph);
    set(input, chunks.data());
    workspace.run(graph);
    ggml_backend_tensor_get(x, rows, 0, static_cast<size_t>(n_rows) * x->nb[1]);  // the last chunk's padding falls off
}

// Each convolution has kernel 3 and padding 1, and a GELU behind it; the second one's stride is 2.
void Encoder::whisper_stem(const float * mel, float * rows) {
    const EncoderWeights & w        = weights;
    const int64_t          n_frames = w.window_frames(), n_mels = w.n_mels;
    Graph                  graph("conv stem", workspace.max_nodes());
    ggml_context *         ctx   = graph.ctx();
    ggml_tensor *          input = graph.input(GGML_TYPE_F32, n_mels, n_frames);

    ggml_tensor * x = input;  // [channels, time]
    for (int i = 0; i < 2; i++) {
        const Conv &   conv    = w.conv[i];
        ggml_tensor *  signal  = ggml_cont(ctx, ggml_transpose(ctx, x));  // [time, channels]
        ggml_tensor *  patches = ggml_im2col(ctx, conv.weight, signal, i + 1, 0, 1, 0, 1, 0, /*is_2D =*/false,
                                             GGML_TYPE_F32);  // [3 * channels, time]
        const Linear & kernel =
            graph.keep<Linear>(ggml_reshape_2d(ctx, conv.weight, patches->ne[0], conv.weight->ne[2]), conv.bias);
        Input y{patches, Path::gemm};
        x = ops.linear(graph, y, kernel, Activation::gelu);  // [d_model, time]
    }
    x = ggml_add(ctx, x, w.positions);
    graph.output(x);

    workspace.place(graph);
    set(input, mel);
    workspace.run(graph);
    get(x, rows);
}

void Encoder::encode(const float * mel, int64_t n_frames, int64_t chunk, int32_t n_layers, float * rows) {
    const EncoderWeights & w      = weights;
    const int64_t          d      = w.d_model;
    const int64_t          n_rows = w.rows(n_frames) * w.merge;
    stem_rows.resize(static_cast<size_t>(n_rows * d));
    windows.resize(static_cast<size_t>(n_rows));  // rows attend to those of their own window
    for (int64_t first = 0, row = 0; first < n_frames; first += w.window_frames()) {
        const int64_t frames = std::min(w.window_frames(), n_frames - first), count = w.rows(frames) * w.merge;
        if (w.tower == Tower::whisper) {
            whisper_stem(mel + first * w.n_mels, stem_rows.data() + row * d);
        } else {
            stem(mel + first * w.n_mels, frames, chunk, stem_rows.data() + row * d);
        }
        std::fill_n(windows.begin() + row, count, KvRange{static_cast<int32_t>(row), static_cast<int32_t>(count)});
        row += count;
    }

    Graph          graph("encoder", workspace.max_nodes());
    ggml_context * ctx   = graph.ctx();
    ggml_tensor *  input = graph.input(GGML_TYPE_F32, d, n_rows);
    const auto     view  = ops.window_view(graph, windows);

    ggml_tensor * x        = input;  // [d, n_rows]
    const int64_t head_dim = d / w.n_heads;
    const int32_t stop     = n_layers < 0 ? w.n_layers : n_layers;
    for (int32_t i = 0; i < stop; i++) {
        const EncoderLayer & layer = w.layers[static_cast<size_t>(i)];

        Input         y{layer_norm(ctx, layer.attn_norm, x, w.norm_eps), Path::gemm};
        ggml_tensor * q = ggml_reshape_3d(ctx, ops.linear(graph, y, layer.q), head_dim, w.n_heads, n_rows);
        ggml_tensor * k = by_head(ctx, ops.linear(graph, y, layer.k), w.n_heads);
        ggml_tensor * v = by_head(ctx, ops.linear(graph, y, layer.v), w.n_heads);
        Input         attended{ops.attention(graph, q, k, v, *view), Path::gemm};
        x = ops.linear(graph, attended, layer.o, Activation::none, x);

        Input z{layer_norm(ctx, layer.ffn_norm, x, w.norm_eps), Path::gemm};
        x = ops.mlp(graph, z, layer.fc1, layer.fc2, x);
    }
    if (n_layers >= 0) {
        x = ggml_cont(ctx, x);
    } else if (w.tower == Tower::whisper) {
        x = layer_norm(ctx, w.ln_post, x, w.norm_eps);  // [d_model, n_rows], which is [output_dim, n_rows / merge]
    } else {
        Input y{layer_norm(ctx, w.ln_post, x, w.norm_eps), Path::gemm};
        x = ops.mlp(graph, y, w.proj1, w.proj2, nullptr);  // [output_dim, n_rows]
    }
    graph.output(x);

    workspace.place(graph);
    set(input, stem_rows.data());
    view->fill(windows);
    workspace.run(graph);
    get(x, rows);
}

}  // namespace pcr
