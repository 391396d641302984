// Reference: Qwen3Model of transformers (models/qwen3/modeling_qwen3.py).
// Shapes in comments are ggml's, fastest dimension first.

#include "nn/decoder.h"

#include <algorithm>

namespace pcr {

namespace {

size_t node_count(const DecoderWeights & w, const Ops & ops, int64_t n_sequences) {
    return 64 + (48 + ops.attention_nodes(n_sequences)) * static_cast<size_t>(w.n_layers);
}

ggml_tensor * rms_norm(ggml_context * ctx, const Norm & n, ggml_tensor * x, float eps) {
    return ggml_mul(ctx, ggml_rms_norm(ctx, x, eps), n.weight);
}

// The last of n columns.
ggml_tensor * last_of(ggml_context * ctx, ggml_tensor * x) {
    const int dim = x->ne[2] > 1 ? 2 : 1;
    return ggml_view_3d(ctx, x, x->ne[0], dim == 2 ? x->ne[1] : 1, 1, x->nb[1], x->nb[2],
                        size_t(x->ne[dim] - 1) * x->nb[dim]);
}

}  // namespace

Decoder::Decoder(const Model & model, Ops & ops_, Compute & compute, int32_t n_sequences, Importance * importance,
                 std::vector<AttentionHead> captured_)
    : weights(model.decoder),
      ops(ops_),
      captured(std::move(captured_)),
      cache(model.decoder, ops_, compute, n_sequences),
      prefill_workspace(compute, node_count(model.decoder, ops_, 1), importance),
      step_workspace(compute, node_count(model.decoder, ops_, n_sequences), importance) {
    if (!captured.empty()) {
        ops.check_capture();
    }
}

void Decoder::reserve(int32_t sequence, int64_t n_positions) {
    if (cache.reserve(sequence, n_positions)) {
        step_pass.reset();  // it points at the old cache
    }
}

void Decoder::embed(const int32_t * tokens, int64_t count, float * out) {
    Graph         graph("embed", 8);
    ggml_tensor * ids  = graph.input(GGML_TYPE_I32, count);
    ggml_tensor * rows = ggml_get_rows(graph.ctx(), weights.embed, ids);
    graph.output(rows);
    prefill_workspace.place(graph);
    set(ids, tokens);
    prefill_workspace.run(graph);
    get(rows, out);
}

void Decoder::logits(const float * rows, int64_t count, float * out) {
    product(weights.head, Path::gemv, rows, count, out);
}

void Decoder::apply(const Linear & other, const float * rows, int64_t count, float * out) {
    product(other, Path::gemm, rows, count, out);
}

void Decoder::product(const Linear & head, Path path, const float * rows, int64_t count, float * out) {
    Graph         graph("head", 16);
    ggml_tensor * input = graph.input(GGML_TYPE_F32, weights.hidden, count);
    Input         x{input, path};
    ggml_tensor * y = ops.linear(graph, x, head);  // [outputs, count]
    graph.output(y);
    prefill_workspace.place(graph);
    set(input, rows);
    prefill_workspace.run(graph);
    get(y, out);
}

void Decoder::plan(const int32_t * sequences, bool one_each, int64_t n) {
    for (int64_t i = 0; i < (one_each ? n : 1); i++) {
        reserve(sequences[i], length(sequences[i]) + (one_each ? 1 : n));
    }
    positions.resize(static_cast<size_t>(n));
    places.resize(static_cast<size_t>(n));
    ranges.resize(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; i++) {
        const size_t  at       = static_cast<size_t>(i);
        const int32_t sequence = sequences[one_each ? i : 0];
        const int64_t position = length(sequence) + (one_each ? 0 : i), first = sequence * cache.capacity();
        positions[at] = static_cast<int32_t>(position);
        places[at]    = first + position;
        ranges[at]    = {static_cast<int32_t>(first), static_cast<int32_t>(position + 1)};
    }
}

void Decoder::build(Pass & pass, bool from_tokens, int32_t n_layers, Want want) {
    const DecoderWeights & w     = weights;
    Graph &                graph = pass.graph;
    ggml_context *         ctx   = graph.ctx();
    const int64_t          n     = static_cast<int64_t>(ranges.size());
    const Path             path  = from_tokens ? Path::gemv : Path::gemm;

    pass.want      = want;
    pass.n_tokens  = n;
    pass.positions = graph.input(GGML_TYPE_I32, n);
    pass.places    = graph.input(GGML_TYPE_I64, n);
    pass.view      = ops.cache_view(graph, ranges, cache.capacity());
    ggml_tensor * x;  // [hidden, n]
    if (from_tokens) {
        pass.tokens = graph.input(GGML_TYPE_I32, n);
        x           = ggml_get_rows(ctx, w.embed, pass.tokens);
    } else {
        pass.rows = graph.input(GGML_TYPE_F32, w.hidden, n);
        x         = pass.rows;
    }

    const auto rope = [&](ggml_tensor * t) {
        return ggml_rope_ext(ctx, t, pass.positions, nullptr, w.head_dim, GGML_ROPE_TYPE_NEOX, 0, w.rope_theta, 1.0f,
                             0.0f, 1.0f, 32.0f, 1.0f);
    };
    const bool    last_only = want == Want::last_row || want == Want::last_choice;
    const int32_t stop      = n_layers < 0 ? w.n_layers : n_layers;
    for (int32_t i = 0; i < stop; i++) {
        const DecoderLayer & layer = w.layers[static_cast<size_t>(i)];

        Input         y{rms_norm(ctx, layer.attn_norm, x, w.norm_eps), path};
        ggml_tensor * q = ggml_reshape_3d(ctx, ops.linear(graph, y, layer.q), w.head_dim, w.n_heads, n);
        ggml_tensor * k = ggml_reshape_3d(ctx, ops.linear(graph, y, layer.k), w.head_dim, w.n_kv_heads, n);
        ggml_tensor * v = ggml_reshape_3d(ctx, ops.linear(graph, y, layer.v), w.head_dim, w.n_kv_heads, n);
        q               = rope(rms_norm(ctx, layer.q_norm, q, w.norm_eps));
        k               = rope(rms_norm(ctx, layer.k_norm, k, w.norm_eps));

        const KvCache::Layer held = cache.write(graph, static_cast<size_t>(i), k, v, pass.places);
        if (i == stop - 1 && want == Want::nothing) {
            graph.also(held.keys);
            graph.also(held.values);
            return;
        }
        if (std::any_of(captured.begin(), captured.end(),
                        [i](const AttentionHead & head) { return head.layer == i; })) {
            graph.also(ops.capture_attention(graph, q, held.keys, *pass.view, captured, i, captures, cache.capacity()));
        }
        ggml_tensor * attended;  // [head_dim * n_heads, n or 1]
        if (i == stop - 1 && last_only && n > 1) {
            // Behind the last layer's cache only the last row matters.
            q        = last_of(ctx, q);
            x        = last_of(ctx, x);
            attended = ops.attention(graph, q, held.keys, held.values, *pass.view->last(graph));
        } else {
            attended = ops.attention(graph, q, held.keys, held.values, *pass.view);
        }
        Input a{attended, path};
        x = ops.linear(graph, a, layer.o, Activation::none, x);

        Input z{rms_norm(ctx, layer.ffn_norm, x, w.norm_eps), path};
        x = ops.gated_mlp(graph, z, layer.gate, layer.up, layer.down, x);
    }
    if (stop == 0) {
        x = last_of(ctx, x);
    }
    x = n_layers < 0 ? rms_norm(ctx, w.final_norm, x, w.norm_eps) : ggml_cont(ctx, x);  // [hidden, outputs]
    if (want == Want::choices || want == Want::last_choice) {
        pass.choosing = ops.choose(graph, x, w.head);
    } else {
        pass.out = x;
        graph.output(x);
    }
}

void Decoder::fill(Pass & pass) const {
    // Inputs that no node of a shortened graph reads have no memory.
    if (pass.positions->buffer) {
        set(pass.positions, positions.data());
    }
    if (pass.places->buffer) {
        set(pass.places, places.data());
    }
    pass.view->fill(ranges);
}

void Decoder::read(Pass & pass, const Output & out) const {
    if (out.choices) {
        pass.choosing->read(out.choices);
    } else if (out.rows) {
        get(pass.out, out.rows);
    }
}

void Decoder::append(int32_t sequence, const float * rows, int64_t n_rows, int32_t n_layers, const Output & out,
                     const AttentionCapture & capture) {
    plan(&sequence, /*one_each =*/false, n_rows);
    Pass pass("prefill", prefill_workspace.max_nodes());
    build(pass, /*from_tokens =*/false, n_layers,
          out.choices ? Want::last_choice
          : out.rows  ? Want::last_row
                      : Want::nothing);
    prefill_workspace.place(pass.graph);
    set(pass.rows, rows);
    fill(pass);
    captures.assign(static_cast<size_t>(n_rows), {});
    captures.back() = capture;
    prefill_workspace.run(pass.graph);
    cache.extend(sequence, n_rows);
    read(pass, out);
}

void Decoder::append_all(int32_t sequence, const float * rows, int64_t n_rows, float * out) {
    plan(&sequence, /*one_each =*/false, n_rows);
    Pass pass("prefill", prefill_workspace.max_nodes());
    build(pass, /*from_tokens =*/false, -1, Want::rows);
    prefill_workspace.place(pass.graph);
    set(pass.rows, rows);
    fill(pass);
    captures.assign(static_cast<size_t>(n_rows), {});
    prefill_workspace.run(pass.graph);
    cache.extend(sequence, n_rows);
    get(pass.out, out);
}

void Decoder::append_tokens(int32_t sequence, const int32_t * tokens, int64_t count, const Output & out,
                            const AttentionCapture & capture) {
    plan(&sequence, /*one_each =*/false, count);
    Pass pass("draft", prefill_workspace.max_nodes());
    build(pass, /*from_tokens =*/true, -1, out.choices ? Want::choices : Want::rows);
    prefill_workspace.place(pass.graph);
    set(pass.tokens, tokens);
    fill(pass);
    captures.assign(static_cast<size_t>(count), capture);
    for (size_t i = 1; capture.weights && i < captures.size(); i++) {
        captures[i].weights = captures[i - 1].weights + static_cast<int64_t>(captured.size()) * capture.count;
    }
    prefill_workspace.run(pass.graph);
    cache.extend(sequence, count);
    read(pass, out);
}

void Decoder::step(const int32_t * sequences, const int32_t * tokens, int32_t count, const Output & out,
                   const AttentionCapture * captures_) {
    plan(sequences, /*one_each =*/true, count);
    const Want want = out.choices ? Want::choices : Want::rows;
    if (step_pass && (step_pass->n_tokens != count || step_pass->want != want || !step_pass->view->fits(ranges))) {
        step_pass.reset();
    }
    try {
        if (!step_pass) {
            step_pass = std::make_unique<Pass>("step", step_workspace.max_nodes());
            build(*step_pass, /*from_tokens =*/true, -1, want);
            step_workspace.place(step_pass->graph);
        }
        set(step_pass->tokens, tokens);
        fill(*step_pass);
        captures.assign(static_cast<size_t>(count), {});
        if (captures_) {
            std::copy_n(captures_, count, captures.begin());
        }
        step_workspace.run(step_pass->graph);
    } catch (...) {
        step_pass.reset();
        throw;
    }
    for (int32_t i = 0; i < count; i++) {
        cache.extend(sequences[i], 1);
    }
    read(*step_pass, out);
}

}  // namespace pcr
