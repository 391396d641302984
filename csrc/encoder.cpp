// Reference: Qwen3OmniMoeAudioEncoder of transformers (models/qwen3_omni_moe/modeling_qwen3_omni_moe.py).
// Shapes in comments are ggml's, fastest dimension first.

#include "encoder.h"

#include "attention.h"

namespace pcr {

namespace {

ggml_tensor * linear(ggml_context * ctx, const Linear & l, ggml_tensor * x) {
    x = ggml_mul_mat(ctx, l.weight, x);
    return l.bias ? ggml_add(ctx, x, l.bias) : x;
}

ggml_tensor * layer_norm(ggml_context * ctx, const Norm & n, ggml_tensor * x, float eps) {
    return ggml_add(ctx, ggml_mul(ctx, ggml_norm(ctx, x, eps), n.weight), n.bias);
}

// Convolution of kernel 3, stride 2, padding 1, then GELU: [time, freq, in, chunks] -> [out, time/2, freq/2, chunks].
ggml_tensor * conv(ggml_context * ctx, const Linear & l, ggml_tensor * x) {
    ggml_tensor * patches = ggml_im2col(ctx, l.weight, x, 2, 2, 1, 1, 1, 1, /*is_2D =*/true, GGML_TYPE_F32);
    ggml_tensor * kernel  = ggml_reshape_2d(ctx, l.weight, patches->ne[0], l.weight->ne[3]);
    x                     = ggml_mul_mat(ctx, kernel, patches);
    return ggml_gelu_erf(ctx, ggml_add(ctx, x, l.bias));
}

size_t node_count(const EncoderWeights & w) {
    return 128 + 40 * static_cast<size_t>(w.n_layers);
}

}  // namespace

Encoder::Encoder(const Model & model, Compute & compute, Importance * importance)
    : weights(model.encoder), workspace(compute, node_count(model.encoder), importance) {}

void Encoder::encode_window(const float * mel, int64_t n_frames, bool short_clip, int32_t n_layers, float * rows) {
    const EncoderWeights & w        = weights;
    const int64_t          n_mels   = w.n_mels;
    const int64_t          d        = w.d_model;
    const int64_t          length   = short_clip ? n_frames : w.chunk_frames;
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

    Graph          graph(workspace.max_nodes());
    ggml_context * ctx   = graph.ctx();
    ggml_tensor *  input = graph.input(GGML_TYPE_F32, length, n_mels, 1, n_chunks);
    ggml_tensor *  spans = graph.input(GGML_TYPE_I32, 2, n_rows);

    // Conv stem, all chunks at once. Between convolutions the channels go back behind time and frequency.
    ggml_tensor * x = conv(ctx, w.conv[0], input);                              // [C, time/2, freq/2, chunks]
    x               = conv(ctx, w.conv[1], ggml_cont(ctx, ggml_permute(ctx, x, 2, 0, 1, 3)));
    x               = conv(ctx, w.conv[2], ggml_cont(ctx, ggml_permute(ctx, x, 2, 0, 1, 3)));
    const int64_t t = x->ne[1];                                                 // rows of a chunk, padding counted
    x               = ggml_cont(ctx, ggml_permute(ctx, x, 1, 2, 0, 3));         // [freq, C, rows, chunks]
    x               = ggml_reshape_3d(ctx, x, w.conv_out.weight->ne[0], t, n_chunks);
    x               = linear(ctx, w.conv_out, x);                               // [d, rows, chunks]
    x               = ggml_add(ctx, x, ggml_view_2d(ctx, w.positions, d, t, w.positions->nb[1], 0));
    x               = ggml_view_2d(ctx, x, d, n_rows, x->nb[1], 0);             // the last chunk's padding falls off

    const int64_t head_dim = d / w.n_heads;
    const int32_t stop     = n_layers < 0 ? w.n_layers : n_layers;
    for (int32_t i = 0; i < stop; i++) {
        const EncoderLayer & layer = w.layers[static_cast<size_t>(i)];

        ggml_tensor * y = layer_norm(ctx, layer.attn_norm, x, w.norm_eps);
        ggml_tensor * q = ggml_reshape_3d(ctx, linear(ctx, layer.q, y), head_dim, w.n_heads, n_rows);
        ggml_tensor * k = linear(ctx, layer.k, y);
        ggml_tensor * v = linear(ctx, layer.v, y);
        x               = ggml_add(ctx, x, linear(ctx, layer.o, attention(ctx, q, k, v, spans)));

        y = layer_norm(ctx, layer.ffn_norm, x, w.norm_eps);
        y = linear(ctx, layer.fc2, ggml_gelu_erf(ctx, linear(ctx, layer.fc1, y)));
        x = ggml_add(ctx, x, y);
    }
    if (n_layers < 0) {
        x = layer_norm(ctx, w.ln_post, x, w.norm_eps);
        x = linear(ctx, w.proj2, ggml_gelu_erf(ctx, linear(ctx, w.proj1, x)));  // [output_dim, n_rows]
    } else {
        x = ggml_cont(ctx, x);
    }
    graph.output(x);
    graph.also(spans);  // has its place even when no layer reads it

    workspace.place(graph);
    set(input, chunks.data());
    const std::vector<Span> whole(static_cast<size_t>(n_rows), Span{0, static_cast<int32_t>(n_rows)});
    set(spans, whole.data());
    workspace.run(graph);
    get(x, rows);
}

void Encoder::adapt(const float * rows, int64_t n_rows, float * out) {
    Graph          graph(workspace.max_nodes());
    ggml_context * ctx   = graph.ctx();
    ggml_tensor *  input = graph.input(GGML_TYPE_F32, weights.output_dim, n_rows);

    ggml_tensor * gated = ggml_swiglu_split(ctx, linear(ctx, weights.gate, input), linear(ctx, weights.up, input));
    ggml_tensor * x     = linear(ctx, weights.down, gated);  // [hidden, n_rows]
    graph.output(x);

    workspace.place(graph);
    set(input, rows);
    workspace.run(graph);
    get(x, out);
}

}  // namespace pcr
