// Reference: Qwen3OmniMoeAudioEncoder of transformers (models/qwen3_omni_moe/modeling_qwen3_omni_moe.py).
// Shapes in comments are ggml's, fastest dimension first.

#include "nn/encoder.h"

#include "ops/attention.h"
#include "ops/conv.h"
#include "ops/product.h"

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

// Convolution of kernel 3, stride 2, padding 1, then GELU: [time, freq, in, chunks] -> [out, time/2, freq/2, chunks].
ggml_tensor * conv(ggml_context * ctx, const Linear & l, ggml_tensor * x, bool on_device) {
    ggml_tensor * patches = ggml_im2col(ctx, l.weight, x, 2, 2, 1, 1, 1, 1, /*is_2D =*/true, GGML_TYPE_F32);
    ggml_tensor * kernel  = ggml_reshape_2d(ctx, l.weight, patches->ne[0], l.weight->ne[3]);
    x                     = ggml_mul_mat(ctx, kernel, patches);
    if (on_device) {
        ggml_prec_set_acc(x, GGML_PREC_F32);  // sums of thousands of terms
    }
    return ggml_gelu_erf(ctx, ggml_add(ctx, x, l.bias));
}

size_t node_count(const EncoderWeights & w) {
    return 128 + 40 * static_cast<size_t>(w.n_layers);
}

}  // namespace

Encoder::Encoder(const Model & model, Compute & compute_, Importance * importance)
    : weights(model.encoder),
      compute(compute_),
      workspace(compute_, node_count(model.encoder), importance),
      ggml_only(importance != nullptr) {}

void Encoder::stem(const float * mel, int64_t n_frames, bool short_clip, float * rows) {
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

    Graph          graph("conv stem", workspace.max_nodes());
    ggml_context * ctx   = graph.ctx();
    ggml_tensor *  input = graph.input(GGML_TYPE_F32, length, n_mels, 1, n_chunks);
    ggml_tensor *  x;  // [channels * freq, rows, chunks], freq fastest; a chunk's rows count its padding
    if (ggml_only || !compute.arithmetic.products) {
        // All chunks at once. Between convolutions the channels go back behind time and frequency.
        const bool device = compute.on_device();
        x                 = conv(ctx, w.conv[0], input, device);  // [C, time/2, freq/2, chunks]
        x                 = conv(ctx, w.conv[1], ggml_cont(ctx, ggml_permute(ctx, x, 2, 0, 1, 3)), device);
        x                 = conv(ctx, w.conv[2], ggml_cont(ctx, ggml_permute(ctx, x, 2, 0, 1, 3)), device);
        x                 = ggml_cont(ctx, ggml_permute(ctx, x, 1, 2, 0, 3));  // [freq, C, rows, chunks]
        x                 = ggml_reshape_3d(ctx, x, w.conv_out.weight->ne[0], x->ne[2], n_chunks);
    } else {
        x = conv_stem(graph, compute, w, input);
    }
    const int64_t    t = x->ne[1];
    Products         products(graph, compute, t * n_chunks, /*each =*/false, ggml_only);
    Products::Factor flat{ggml_reshape_2d(ctx, x, x->ne[0], t * n_chunks)};
    x = ggml_reshape_3d(ctx, products.linear(w.conv_out, flat), d, t, n_chunks);
    x = ggml_add(ctx, x, ggml_view_2d(ctx, w.positions, d, t, w.positions->nb[1], 0));
    graph.output(x);

    workspace.place(graph);
    set(input, chunks.data());
    workspace.run(graph);
    ggml_backend_tensor_get(x, rows, 0, static_cast<size_t>(n_rows) * x->nb[1]);  // the last chunk's padding falls off
}

void Encoder::encode(const float * mel, int64_t n_frames, bool short_clip, int32_t n_layers, float * rows) {
    const EncoderWeights & w      = weights;
    const int64_t          d      = w.d_model;
    const int64_t          n_rows = w.rows(n_frames);
    stem_rows.resize(static_cast<size_t>(n_rows * d));
    std::vector<Span> windows(static_cast<size_t>(n_rows));  // rows attend to those of their own window
    Sight             sight;  // the same for a device, which gets one window at a time
    sight.blocks = {{0, 0, 1}};
    sight.tokens = sight.rows = n_rows;
    if (compute.on_device() && n_frames > w.window_frames()) {
        throw Error(PCR_ERROR_INTERNAL, "more than one window at a time");
    }
    for (int64_t first = 0, row = 0; first < n_frames; first += w.window_frames()) {
        const int64_t frames = std::min(w.window_frames(), n_frames - first), count = w.rows(frames);
        stem(mel + first * w.n_mels, frames, short_clip, stem_rows.data() + row * d);
        std::fill_n(windows.begin() + row, count, Span{static_cast<int32_t>(row), static_cast<int32_t>(count)});
        row += count;
    }

    Graph          graph("encoder", workspace.max_nodes());
    ggml_context * ctx   = graph.ctx();
    ggml_tensor *  input = graph.input(GGML_TYPE_F32, d, n_rows);
    ggml_tensor *  spans = graph.input(GGML_TYPE_I32, 2, n_rows);
    Products       products(graph, compute, n_rows, /*each =*/false, ggml_only);

    ggml_tensor * x        = input;
    const int64_t head_dim = d / w.n_heads;
    const int32_t stop     = n_layers < 0 ? w.n_layers : n_layers;
    for (int32_t i = 0; i < stop; i++) {
        const EncoderLayer & layer = w.layers[static_cast<size_t>(i)];

        Products::Factor y{layer_norm(ctx, layer.attn_norm, x, w.norm_eps)};
        ggml_tensor *    q = ggml_reshape_3d(ctx, products.linear(layer.q, y), head_dim, w.n_heads, n_rows);
        ggml_tensor *    k = by_head(ctx, products.linear(layer.k, y), w.n_heads);
        ggml_tensor *    v = by_head(ctx, products.linear(layer.v, y), w.n_heads);
        Products::Factor seen{compute.on_device() ? attention(graph, compute, q, k, v, sight)
                                                  : attention(graph, compute, q, k, v, spans)};
        x = products.linear(layer.o, seen, Activation::none, x);

        Products::Factor z{layer_norm(ctx, layer.ffn_norm, x, w.norm_eps)};
        x = products.mlp(layer.fc1, layer.fc2, z, x);
    }
    if (n_layers < 0) {
        Products::Factor y{layer_norm(ctx, w.ln_post, x, w.norm_eps)};
        x = products.mlp(w.proj1, w.proj2, y, nullptr);  // [output_dim, n_rows]
    } else {
        x = ggml_cont(ctx, x);
    }
    graph.output(x);
    if (!compute.on_device()) {
        graph.also(spans);  // has its place even when no layer reads it
    }

    workspace.place(graph);
    set(input, stem_rows.data());
    if (spans->buffer) {
        set(spans, windows.data());
    }
    workspace.run(graph);
    get(x, rows);
}

void Encoder::adapt(const float * rows, int64_t n_rows, float * out) {
    Graph            graph("adapter", workspace.max_nodes());
    ggml_tensor *    input = graph.input(GGML_TYPE_F32, weights.output_dim, n_rows);
    Products         products(graph, compute, n_rows, /*each =*/false, ggml_only);
    Products::Factor x{input};
    ggml_tensor *    y = products.gated_mlp(weights.gate, weights.up, weights.down, x, nullptr);  // [hidden, n_rows]
    graph.output(y);

    workspace.place(graph);
    set(input, rows);
    workspace.run(graph);
    get(y, out);
}

}  // namespace pcr
