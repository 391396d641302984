// Reference: Qwen3Model of transformers (models/qwen3/modeling_qwen3.py).
// Shapes in comments are ggml's, fastest dimension first.

#include "nn/decoder.h"

#include "log.h"
#include "ops/product.h"

#include <algorithm>
#include <cmath>

namespace pcr {

namespace {

// blocks: of a Sight.
size_t node_count(const DecoderWeights & w, size_t blocks) {
    return 64 + (48 + 20 * blocks) * static_cast<size_t>(w.n_layers);
}

ggml_tensor * rms_norm(ggml_context * ctx, const Norm & n, ggml_tensor * x, float eps) {
    return ggml_mul(ctx, ggml_rms_norm(ctx, x, eps), n.weight);
}

constexpr int64_t growth = 256;  // rows: caches grow in steps of this

}  // namespace

Decoder::Decoder(const Model & model, Compute & compute_, int32_t n_sequences, Importance * importance,
                 std::vector<WatchedHead> watched_)
    : weights(model.decoder),
      compute(compute_),
      ggml_only(importance != nullptr),
      watched(std::move(watched_)),
      lengths(static_cast<size_t>(n_sequences), 0),
      prefill_workspace(compute_, node_count(model.decoder, compute_.on_device()), importance),
      step_workspace(compute_, node_count(model.decoder, compute_.on_device() ? (lengths.size() + 1) / 2 : 0),
                     importance) {}

void Decoder::reserve(int64_t n_positions) {
    if (n_positions > weights.max_positions) {
        throw Error(PCR_ERROR_AUDIO,
                    format("%lld positions are needed, the model has %d: use shorter audio or a smaller max_new_tokens",
                           static_cast<long long>(n_positions), weights.max_positions));
    }
    if (n_positions <= capacity) {
        return;
    }
    const int64_t rows = std::min<int64_t>((n_positions + growth - 1) / growth * growth, weights.max_positions);
    const int64_t n    = n_sequences();

    ggml_context_ptr context(ggml_init({ggml_tensor_overhead() * 2 * weights.layers.size(), nullptr, true}));
    if (!context) {
        throw std::bad_alloc();
    }
    std::vector<ggml_tensor *> new_keys, new_values;
    for (size_t i = 0; i < weights.layers.size(); i++) {
        new_keys.push_back(
            compute.on_device()
                ? ggml_new_tensor_3d(context.get(), cache_type(), weights.kv_dim(), rows * n, 1)
                : ggml_new_tensor_3d(context.get(), cache_type(), weights.head_dim, rows * n, weights.n_kv_heads));
        new_values.push_back(ggml_dup_tensor(context.get(), new_keys.back()));
    }
    const CollectErrors     errors;
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(context.get(), compute.backend()));
    if (!buffer) {
        throw no_memory(compute.device,
                        format("a KV cache of %lld rows (%.0f MB)", static_cast<long long>(rows * n),
                               double(rows * n * weights.kv_dim()) * 2e-6 * double(ggml_type_size(cache_type())) *
                                   double(weights.layers.size())),
                        errors.text);
    }
    if (compute.on_device()) {
        ggml_backend_buffer_clear(buffer.get(), 0);  // rows that are masked are multiplied by zero
    }
    std::vector<uint8_t> held;
    const auto           move = [&](const ggml_tensor * from, ggml_tensor * to, int32_t s, int64_t head) {
        held.resize(static_cast<size_t>(length(s)) * from->nb[1]);
        const size_t h = static_cast<size_t>(head), place = static_cast<size_t>(s) * from->nb[1];
        if (!held.empty()) {
            ggml_backend_tensor_get(from, held.data(), h * from->nb[2] + place * size_t(capacity), held.size());
            ggml_backend_tensor_set(to, held.data(), h * to->nb[2] + place * size_t(rows), held.size());
        }
    };
    for (size_t i = 0; i < keys.size(); i++) {
        for (int32_t s = 0; s < n; s++) {
            for (int64_t head = 0; head < keys[i]->ne[2]; head++) {
                move(keys[i], new_keys[i], s, head);
                move(values[i], new_values[i], s, head);
            }
        }
    }
    step_pass.reset();  // it points at the old caches
    cache_buffer  = std::move(buffer);
    cache_context = std::move(context);
    keys          = std::move(new_keys);
    values        = std::move(new_values);
    capacity      = rows;
}

void Decoder::rewind(int32_t sequence, int64_t n_past) {
    int64_t & held = lengths[static_cast<size_t>(sequence)];
    held           = std::min(held, n_past);
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

void Decoder::build(Pass & pass, int64_t n, bool from_tokens, int32_t n_layers, Want want) {
    const DecoderWeights & w     = weights;
    Graph &                graph = pass.graph;
    ggml_context *         ctx   = graph.ctx();

    pass.n_tokens  = n;
    pass.positions = graph.input(GGML_TYPE_I32, n);
    pass.places    = graph.input(GGML_TYPE_I64, n);
    if (compute.on_device()) {
        pass.mask       = graph.input(GGML_TYPE_F16, pass.sight.rows, n);
        pass.sight.mask = ggml_cont(ctx, pass.mask);  // on the device once, not once for each layer's view of it
    } else {
        pass.spans = graph.input(GGML_TYPE_I32, 2, n);
    }
    Products      products(graph, compute, n, /*each =*/from_tokens, ggml_only);
    ggml_tensor * x;
    if (from_tokens) {
        pass.tokens = graph.input(GGML_TYPE_I32, n);
        x           = ggml_get_rows(ctx, w.embed, pass.tokens);  // [hidden, n]
    } else {
        pass.rows = graph.input(GGML_TYPE_F32, w.hidden, n);
        x         = pass.rows;
    }

    const auto rope = [&](ggml_tensor * t) {
        return ggml_rope_ext(ctx, t, pass.positions, nullptr, w.head_dim, GGML_ROPE_TYPE_NEOX, 0, w.rope_theta, 1.0f,
                             0.0f, 1.0f, 32.0f, 1.0f);
    };
    // Writes rows [head_dim, n_kv_heads, n] into a cache, and gives all of it: [head_dim, all rows, n_kv_heads]. Reading
    // comes after writing: the results of set_rows are the caches themselves.
    const auto write = [&](ggml_tensor * cache, ggml_tensor * t) {
        if (!compute.on_device()) {
            return ggml_set_rows(ctx, cache, ggml_permute(ctx, t, 0, 2, 1, 3), pass.places);
        }
        ggml_tensor * held = ggml_set_rows(ctx, cache, ggml_reshape_2d(ctx, t, w.kv_dim(), n), pass.places);
        return ggml_view_3d(ctx, held, w.head_dim, held->ne[1], w.n_kv_heads, held->nb[1],
                            static_cast<size_t>(w.head_dim) * held->nb[0], 0);
    };
    const int32_t stop = n_layers < 0 ? w.n_layers : n_layers;
    for (int32_t i = 0; i < stop; i++) {
        const DecoderLayer & layer = w.layers[static_cast<size_t>(i)];

        Products::Factor y{rms_norm(ctx, layer.attn_norm, x, w.norm_eps)};
        ggml_tensor *    q = ggml_reshape_3d(ctx, products.linear(layer.q, y), w.head_dim, w.n_heads, n);
        ggml_tensor *    k = ggml_reshape_3d(ctx, products.linear(layer.k, y), w.head_dim, w.n_kv_heads, n);
        ggml_tensor *    v = products.linear(layer.v, y);  // [kv_dim, n]
        q                  = rope(rms_norm(ctx, layer.q_norm, q, w.norm_eps));
        k                  = rope(rms_norm(ctx, layer.k_norm, k, w.norm_eps));

        const size_t  at     = static_cast<size_t>(i);
        ggml_tensor * k_held = write(keys[at], k);
        ggml_tensor * v_held = write(values[at], ggml_reshape_3d(ctx, v, w.head_dim, w.n_kv_heads, n));
        if (i == stop - 1 && want == Want::nothing) {
            graph.also(k_held);
            graph.also(v_held);
            return;
        }
        if (std::any_of(watched.begin(), watched.end(), [i](const WatchedHead & head) { return head.layer == i; })) {
            graph.also(watch(graph, compute, q, k_held, pass.spans, watched, i, looks, capacity));
        }
        Products *       behind = &products;
        Products         last_row(graph, compute, 1, /*each =*/from_tokens, ggml_only);
        Products::Factor seen;
        if (i == stop - 1 && want == Want::last && n > 1) {
            // Behind the last layer's cache only the last row matters.
            behind = &last_row;
            q      = ggml_view_3d(ctx, q, w.head_dim, w.n_heads, 1, q->nb[1], q->nb[2], size_t(n - 1) * q->nb[2]);
            x      = ggml_view_2d(ctx, x, w.hidden, 1, x->nb[1], size_t(n - 1) * x->nb[1]);
            const auto last = [&](ggml_tensor * t) {
                return ggml_view_2d(ctx, t, t->ne[0], 1, t->nb[1], size_t(n - 1) * t->nb[1]);
            };
            if (compute.on_device()) {
                Sight sight  = pass.sight;
                sight.tokens = 1;
                sight.mask   = last(sight.mask);
                seen.rows    = attention(graph, compute, q, k_held, v_held, sight);
            } else {
                seen.rows = attention(graph, compute, q, k_held, v_held, last(pass.spans));
            }
        } else {
            seen.rows = compute.on_device() ? attention(graph, compute, q, k_held, v_held, pass.sight)
                                            : attention(graph, compute, q, k_held, v_held, pass.spans);
        }
        x = behind->linear(layer.o, seen, Activation::none, x);

        Products::Factor z{rms_norm(ctx, layer.ffn_norm, x, w.norm_eps)};
        x = behind->gated_mlp(layer.gate, layer.up, layer.down, z, x);
    }
    if (stop == 0) {
        x = ggml_view_2d(ctx, x, w.hidden, 1, x->nb[1], size_t(n - 1) * x->nb[1]);
    }
    x = n_layers < 0 ? rms_norm(ctx, w.final_norm, x, w.norm_eps) : ggml_cont(ctx, x);  // [hidden, outputs]
    if (want == Want::choices) {
        Products::Factor y{x};
        choose(graph, products.linear(w.head, y), &pass.ids, &pass.probabilities);
        return;
    }
    pass.out = x;
    graph.output(x);
}

void Decoder::set_sight(Pass & pass, const int32_t * sequences, bool one_each) {
    const int64_t n       = pass.n_tokens;
    int64_t       longest = 0;
    pass.sight.blocks.clear();
    for (int64_t i = 0; i < (one_each ? n : 1); i++) {
        longest = std::max(longest, length(sequences[i]) + (one_each ? 1 : n));
        if (i > 0 && sequences[i] == sequences[i - 1] + 1) {
            pass.sight.blocks.back().n_sequences++;
        } else {
            pass.sight.blocks.push_back({i, sequences[i] * capacity, 1});
        }
    }
    pass.sight.tokens = one_each ? 1 : n;
    pass.sight.rows   = std::min((longest + growth - 1) / growth * growth, capacity);
    pass.sight.apart  = capacity;
}

void Decoder::place_tokens(Pass & pass, const int32_t * sequences, bool one_each) {
    const size_t n = static_cast<size_t>(pass.n_tokens);
    positions.resize(n);
    places.resize(n);
    spans.resize(2 * n);
    for (size_t i = 0; i < n; i++) {
        const int32_t sequence = sequences[one_each ? i : 0];
        const int64_t position = length(sequence) + (one_each ? 0 : static_cast<int64_t>(i));
        const int64_t first    = sequence * capacity;
        positions[i]           = static_cast<int32_t>(position);
        places[i]              = first + position;
        spans[2 * i]           = static_cast<int32_t>(first);
        spans[2 * i + 1]       = static_cast<int32_t>(position + 1);
    }
    // Inputs that no node of a shortened graph reads have no memory.
    const auto fill = [](ggml_tensor * tensor, const void * data) {
        if (tensor->buffer) {
            set(tensor, data);
        }
    };
    fill(pass.positions, positions.data());
    fill(pass.places, places.data());
    if (!compute.on_device()) {
        fill(pass.spans, spans.data());
        return;
    }
    const size_t rows = static_cast<size_t>(pass.sight.rows);
    mask.resize(rows * n);
    for (size_t i = 0; i < n; i++) {
        const auto line = mask.begin() + static_cast<std::ptrdiff_t>(i * rows);
        std::fill_n(line, rows, ggml_fp32_to_fp16(-INFINITY));
        std::fill_n(line, spans[2 * i + 1], ggml_fp32_to_fp16(0.0f));
    }
    fill(pass.mask, mask.data());
}

void Decoder::append(int32_t sequence, const float * rows, int64_t n_rows, int32_t n_layers, float * out,
                     const Look & look) {
    reserve(length(sequence) + n_rows);
    Pass pass("prefill", prefill_workspace.max_nodes());
    pass.n_tokens = n_rows;
    set_sight(pass, &sequence, /*one_each =*/false);
    build(pass, n_rows, /*from_tokens =*/false, n_layers, out ? Want::last : Want::nothing);
    prefill_workspace.place(pass.graph);
    set(pass.rows, rows);
    place_tokens(pass, &sequence, /*one_each =*/false);
    looks.assign(static_cast<size_t>(n_rows), {});
    looks.back() = look;
    prefill_workspace.run(pass.graph);
    lengths[static_cast<size_t>(sequence)] += n_rows;
    if (out) {
        get(pass.out, out);
    }
}

void Decoder::append_tokens(int32_t sequence, const int32_t * tokens, int64_t count, float * out, const Look & look) {
    reserve(length(sequence) + count);
    Pass pass("draft", prefill_workspace.max_nodes());
    pass.n_tokens = count;
    set_sight(pass, &sequence, /*one_each =*/false);
    build(pass, count, /*from_tokens =*/true, -1, Want::all);
    prefill_workspace.place(pass.graph);
    set(pass.tokens, tokens);
    place_tokens(pass, &sequence, /*one_each =*/false);
    looks.assign(static_cast<size_t>(count), look);
    for (size_t i = 1; look.weights && i < looks.size(); i++) {
        looks[i].weights = looks[i - 1].weights + static_cast<int64_t>(watched.size()) * look.count;
    }
    prefill_workspace.run(pass.graph);
    lengths[static_cast<size_t>(sequence)] += count;
    get(pass.out, out);
}

void Decoder::run_step(const int32_t * sequences, const int32_t * tokens, int32_t count, Want want,
                       const Look * looks_) {
    for (int32_t i = 0; i < count; i++) {
        reserve(length(sequences[i]) + 1);
    }
    if (step_pass && (step_pass->n_tokens != count || step_want != want)) {
        step_pass.reset();
    }
    if (step_pass && compute.on_device()) {
        const int64_t rows = step_pass->sight.rows;
        set_sight(*step_pass, sequences, /*one_each =*/true);
        if (step_pass->sight.rows != rows ||
            !std::equal(sequences, sequences + count, step_sequences.begin(), step_sequences.end())) {
            step_pass.reset();
        }
    }
    if (!step_pass) {
        step_pass.emplace("step", step_workspace.max_nodes());
        step_pass->n_tokens = count;
        set_sight(*step_pass, sequences, /*one_each =*/true);
        build(*step_pass, count, /*from_tokens =*/true, -1, want);
        try {
            step_workspace.place(step_pass->graph);
        } catch (...) {
            step_pass.reset();
            throw;
        }
        step_sequences.assign(sequences, sequences + count);
        step_want = want;
    }
    set(step_pass->tokens, tokens);
    place_tokens(*step_pass, sequences, /*one_each =*/true);
    looks.assign(static_cast<size_t>(count), {});
    if (looks_) {
        std::copy_n(looks_, count, looks.begin());
    }
    step_workspace.run(step_pass->graph);
    for (int32_t i = 0; i < count; i++) {
        lengths[static_cast<size_t>(sequences[i])]++;
    }
}

void Decoder::step(const int32_t * sequences, const int32_t * tokens, int32_t count, float * out, const Look * looks_) {
    run_step(sequences, tokens, count, Want::all, looks_);
    get(step_pass->out, out);
}

void Decoder::step_and_choose(const int32_t * sequences, const int32_t * tokens, int32_t count, Choice * out) {
    run_step(sequences, tokens, count, Want::choices, nullptr);
    get_choices(step_pass->ids, step_pass->probabilities, out);
}

}  // namespace pcr
