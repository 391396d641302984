#include "ops/ops_cpu.h"

#include "nn/model.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>

namespace pcr {

namespace {

constexpr int64_t panel_rows     = 128;  // matrix rows that a thread decodes at once
constexpr int64_t max_gemv_panel = 512;  // that it takes at once for GEMV
constexpr int64_t max_groups     = 12;   // groups of 16 results that stay in the cache

bool is_float(ggml_type type) {
    return type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16;
}

struct Node {
    Compute *      compute;
    const Linear * linear;
    const Linear * gate;  // or null
    Activation     activation;
    int64_t        n_rows;
    WorkCounter    work{};
};

// Words of the packed panels of n_rows rows of n values.
int64_t panel_words(ComputeType compute_type, int64_t n_rows, int64_t n) {
    return group_count(n_rows) * step_count(compute_type, n) * block_words + 16;
}

uint32_t * panel_at(const ggml_tensor * packed) {
    return align64(static_cast<uint32_t *>(packed->data));
}

// F32 rows -> packed panels.
void run_pack(ggml_tensor * dst, int thread, int n_threads, void * user) {
    const Node &        node   = *static_cast<Node *>(user);
    const Arithmetic &  how    = node.compute->arithmetic;
    const ggml_tensor * x      = dst->src[0];
    const int64_t       n      = x->ne[0];
    const int64_t       stride = static_cast<int64_t>(x->nb[1] / sizeof(float));
    const int64_t       groups = group_count(node.n_rows), words = step_count(how.type, n) * block_words;
    for (int64_t g = groups * thread / n_threads; g < groups * (thread + 1) / n_threads; g++) {
        how.kernels->pack(how.type, static_cast<const float *>(x->data) + g * block_side * stride, stride,
                          std::min(block_side, node.n_rows - g * block_side), n, panel_at(dst) + g * words);
    }
}

// One panel of a matrix, decoded: rows in groups of 16, the last one filled up with zeros.
PackedRows unpack_panel(const Arithmetic & how, const ggml_tensor * weight, int64_t first, int64_t count,
                        uint32_t * panel) {
    const int64_t    steps = step_count(how.type, weight->ne[0]);
    const PackedRows rows{panel, steps * block_words, block_side, block_words};
    const auto *     data = static_cast<const uint8_t *>(weight->data);
    for (int64_t r = 0; r < count; r++) {
        how.kernels->unpack(how.type, weight->type, data + static_cast<size_t>(first + r) * weight->nb[1],
                            weight->ne[0], panel + r / block_side * rows.group + r % block_side * rows.row, rows.step);
    }
    for (int64_t r = count; r < group_count(count) * block_side; r++) {
        uint32_t * row = panel + r / block_side * rows.group + r % block_side * rows.row;
        for (int64_t s = 0; s < steps; s++) {
            std::memset(row + s * rows.step, 0, block_side * sizeof(uint32_t));
        }
    }
    return rows;
}

// Words of scratch that a thread needs: panels, and results of all their rows for max_groups groups of columns.
int64_t scratch_words(ComputeType compute_type, int64_t in, int n_matrices) {
    return n_matrices * panel_rows * (step_count(compute_type, in) * block_side + max_groups * block_side) + 64;
}

// Packed panels -> rows or, for an I32 dst, packed panels.
void run_gemm(ggml_tensor * dst, int thread, int n_threads, void * user) {
    Node &              node   = *static_cast<Node *>(user);
    const Arithmetic &  how    = node.compute->arithmetic;
    const ggml_tensor * weight = node.linear->weight;
    const int64_t       in = weight->ne[0], out = weight->ne[1];
    const int64_t       steps    = step_count(how.type, in);
    const int64_t       groups   = group_count(node.n_rows);
    const int64_t       n_blocks = (groups + max_groups - 1) / max_groups;
    const int64_t       n_panels = (out + panel_rows - 1) / panel_rows;
    const uint32_t *    panels   = panel_at(dst->src[0]);
    const float *       bias     = node.linear->bias ? static_cast<const float *>(node.linear->bias->data) : nullptr;
    const float *       residual = dst->src[1] ? static_cast<const float *>(dst->src[1]->data) : nullptr;

    uint32_t *    panel      = node.compute->scratch(thread);
    uint32_t *    gate_panel = panel + panel_rows * steps * block_side;
    float *       results = reinterpret_cast<float *>(gate_panel + (node.gate ? panel_rows * steps * block_side : 0));
    float *       gate_result = results + panel_rows * max_groups * block_side;
    const int64_t out_steps   = step_count(how.type, out);

    for (int64_t p; (p = node.work.take(n_panels, n_threads)) < n_panels;) {
        const int64_t    first = p * panel_rows, count = std::min(panel_rows, out - first);
        const int64_t    padded = group_count(count) * block_side;
        const PackedRows rows   = unpack_panel(how, weight, first, count, panel);
        PackedRows       gates  = rows;
        if (node.gate) {
            gates = unpack_panel(how, node.gate->weight, first, count, gate_panel);
        }
        for (int64_t b = 0; b < n_blocks; b++) {
            const int64_t g = groups * b / n_blocks, n = groups * (b + 1) / n_blocks - g, stride = n * block_side;
            const uint32_t * const block = panels + g * steps * block_words;
            how.kernels->gemm(how.type, rows, padded, block, steps * block_words, n, steps, false, results, stride);
            if (node.gate) {
                how.kernels->gemm(how.type, gates, padded, block, steps * block_words, n, steps, false, gate_result,
                                  stride);
            }
            if (dst->type == GGML_TYPE_I32) {
                how.kernels->epilogue_panel(how.type, results, node.gate ? gate_result : nullptr, stride, count, n,
                                            bias ? bias + first : nullptr, node.activation,
                                            panel_at(dst) + g * out_steps * block_words, out_steps * block_words,
                                            first);
            } else {
                const int64_t at = g * block_side * out + first;
                how.kernels->epilogue_rows(results, stride, count, std::min(stride, node.n_rows - g * block_side),
                                           bias ? bias + first : nullptr, node.activation,
                                           residual ? residual + at : nullptr, static_cast<float *>(dst->data) + at,
                                           out);
            }
        }
        if (dst->type == GGML_TYPE_I32 && first + count == out) {  // zeros behind the last value
            const int64_t line = out / word_values(how.type), lines = out_steps * block_side;
            for (int64_t g = 0; g < groups; g++) {
                std::memset(panel_at(dst) + g * out_steps * block_words + line * block_side, 0,
                            static_cast<size_t>((lines - line) * block_side) * sizeof(uint32_t));
            }
        }
    }
}

bool takes_int8(const Arithmetic & how, const ggml_tensor * weight) {
    return !how.exact && how.kernels->int8_takes && how.kernels->int8_takes(weight->type, weight->ne[0]);
}

// GEMV: each row by itself, quantised matrices with rows in 8-bit integers, others with rows as they are.
void run_gemv(ggml_tensor * dst, int thread, int n_threads, void * user) {
    Node &              node   = *static_cast<Node *>(user);
    const Arithmetic &  how    = node.compute->arithmetic;
    const ggml_tensor * weight = node.linear->weight;
    const float *       x      = static_cast<const float *>(dst->src[0]->data);
    const int64_t       in = weight->ne[0], out = weight->ne[1];
    // Long runs of memory are read faster, but no thread shall wait long for another.
    const int64_t   gemv_panel = std::clamp<int64_t>(out / (2 * n_threads), 16, max_gemv_panel);
    const int64_t   n_panels   = (out + gemv_panel - 1) / gemv_panel;
    uint8_t * const bytes      = reinterpret_cast<uint8_t *>(node.compute->scratch(thread));
    const bool      integers   = takes_int8(how, weight);
    for (int64_t j = 0; integers && j < node.n_rows; j++) {  // by every thread for itself: cheaper than waiting
        how.kernels->int8_quantize(x + j * in, in, bytes + static_cast<size_t>(j) * int8_bytes(in));
    }
    float * const gates    = reinterpret_cast<float *>(bytes + static_cast<size_t>(node.n_rows) * int8_bytes(in));
    const float * residual = dst->src[1] ? static_cast<const float *>(dst->src[1]->data) : nullptr;
    const auto    dot      = [&](const ggml_tensor * matrix, int64_t first, int64_t count, float * to, int64_t stride) {
        const auto * rows = static_cast<const uint8_t *>(matrix->data) + static_cast<size_t>(first) * matrix->nb[1];
        if (integers) {
            how.kernels->int8_gemv(matrix->type, rows, matrix->nb[1], count, in, bytes, node.n_rows, to, stride);
        } else {
            how.kernels->gemv(matrix->type, rows, matrix->nb[1], count, in, x, node.n_rows, to, stride);
        }
    };
    for (int64_t p; (p = node.work.take(n_panels, n_threads)) < n_panels;) {
        const int64_t first = p * gemv_panel, count = std::min(gemv_panel, out - first);
        float * const to = static_cast<float *>(dst->data) + first;
        dot(weight, first, count, to, out);
        if (node.gate) {
            dot(node.gate->weight, first, count, gates, gemv_panel);
        }
        for (int64_t j = 0; j < node.n_rows; j++) {
            if (node.gate) {
                how.kernels->silu_multiply(to + j * out, gates + j * gemv_panel, count);
            }
            if (residual) {
                how.kernels->add(to + j * out, residual + j * out + first, count);
            }
        }
    }
}

}  // namespace

CpuOps::CpuOps(const Model * model_, Compute & compute_, Importance * importance)
    : GgmlOps(compute_, /*asks_for_f32 =*/false),
      model(model_),
      collects(importance != nullptr),
      ggml_products(collects || !compute_.arithmetic.products),
      head_workspace(compute_, 16, importance) {}

bool CpuOps::ours(const Linear & l, Path path) const {
    const Arithmetic & how = compute.arithmetic;
    return !ggml_products &&
           (is_float(l.weight->type) || (path == Path::gemm ? how.quantised : how.exact || takes_int8(how, l.weight)));
}

bool CpuOps::batch_invariant(Path path) const {
    const auto all_ours = [&](std::initializer_list<const Linear *> list) {
        return std::all_of(list.begin(), list.end(), [&](const Linear * l) { return ours(*l, path); });
    };
    const EncoderWeights & e = model->encoder;
    const DecoderWeights & d = model->decoder;
    return (path == Path::gemv ? all_ours({&d.head})
                               : all_ours({&e.conv_out, &e.proj1, &e.proj2, &e.gate, &e.up, &e.down}) &&
                                     std::all_of(e.layers.begin(), e.layers.end(),
                                                 [&](const EncoderLayer & l) {
                                                     return all_ours({&l.q, &l.k, &l.v, &l.o, &l.fc1, &l.fc2});
                                                 })) &&
           std::all_of(d.layers.begin(), d.layers.end(), [&](const DecoderLayer & l) {
               return all_ours({&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down});
           });
}

ggml_tensor * CpuOps::packed(Graph & graph, Input & x) {
    if (!x.packed) {
        const int64_t n_rows = x.rows->ne[1];
        Node &        node   = graph.keep<Node>(&compute, nullptr, nullptr, Activation::none, n_rows);
        x.packed =
            ggml_custom_4d(graph.ctx(), GGML_TYPE_I32, panel_words(compute.arithmetic.type, n_rows, x.rows->ne[0]), 1,
                           1, 1, &x.rows, 1, run_pack, GGML_N_TASKS_MAX, &node);
    }
    return x.packed;
}

ggml_tensor * CpuOps::rows_out(Graph & graph, ggml_tensor * packed_, int64_t n_rows, const Linear & l,
                               Activation activation, ggml_tensor * residual) {
    compute.reserve_scratch(scratch_words(compute.arithmetic.type, l.weight->ne[0], 1));
    Node &        node   = graph.keep<Node>(&compute, &l, nullptr, activation, n_rows);
    ggml_tensor * args[] = {packed_, residual};
    return ggml_custom_4d(graph.ctx(), GGML_TYPE_F32, l.weight->ne[1], n_rows, 1, 1, args, residual ? 2 : 1, run_gemm,
                          GGML_N_TASKS_MAX, &node);
}

ggml_tensor * CpuOps::each_row(Graph & graph, Input & x, const Linear & l, const Linear * gate,
                               ggml_tensor * residual) {
    const int64_t n_rows = x.rows->ne[1];
    const int64_t bytes  = static_cast<int64_t>(int8_bytes(l.weight->ne[0]) / sizeof(uint32_t)) * n_rows;
    compute.reserve_scratch(bytes + (gate ? max_gemv_panel * n_rows : 0));
    Node &        node   = graph.keep<Node>(&compute, &l, gate, Activation::none, n_rows);
    ggml_tensor * args[] = {x.rows, residual};
    return ggml_custom_4d(graph.ctx(), GGML_TYPE_F32, l.weight->ne[1], n_rows, 1, 1, args, residual ? 2 : 1, run_gemv,
                          GGML_N_TASKS_MAX, &node);
}

// The hidden values of an MLP, packed for its second product.
ggml_tensor * CpuOps::hidden(Graph & graph, Input & x, const Linear & l, const Linear * gate, Activation activation) {
    const ComputeType type   = compute.arithmetic.type;
    const int64_t     n_rows = x.rows->ne[1];
    compute.reserve_scratch(scratch_words(type, l.weight->ne[0], gate ? 2 : 1));
    Node &        node   = graph.keep<Node>(&compute, &l, gate, activation, n_rows);
    ggml_tensor * panels = packed(graph, x);
    return ggml_custom_4d(graph.ctx(), GGML_TYPE_I32, panel_words(type, n_rows, l.weight->ne[1]), 1, 1, 1, &panels, 1,
                          run_gemm, GGML_N_TASKS_MAX, &node);
}

ggml_tensor * CpuOps::linear(Graph & graph, Input & x, const Linear & l, Activation activation,
                             ggml_tensor * residual) {
    if (!ours(l, x.path)) {
        return GgmlOps::linear(graph, x, l, activation, residual);
    }
    if (x.path == Path::gemm) {
        return rows_out(graph, packed(graph, x), x.rows->ne[1], l, activation, residual);
    }
    if (!l.bias && activation == Activation::none) {
        return each_row(graph, x, l, nullptr, residual);
    }
    ggml_context * ctx = graph.ctx();
    ggml_tensor *  y   = each_row(graph, x, l, nullptr, nullptr);
    y                  = l.bias ? ggml_add(ctx, y, l.bias) : y;
    y                  = activation == Activation::gelu ? ggml_gelu_erf(ctx, y) : y;
    return residual ? ggml_add(ctx, residual, y) : y;
}

ggml_tensor * CpuOps::mlp(Graph & graph, Input & x, const Linear & first, const Linear & second,
                          ggml_tensor * residual) {
    const bool fused = x.path == Path::gemm && ours(first, x.path) && ours(second, x.path);
    if (fused && first.weight->ne[1] % 2 == 0) {
        ggml_tensor * y = hidden(graph, x, first, nullptr, Activation::gelu);
        return rows_out(graph, y, x.rows->ne[1], second, Activation::none, residual);
    }
    return GgmlOps::mlp(graph, x, first, second, residual);
}

ggml_tensor * CpuOps::gated_mlp(Graph & graph, Input & x, const Linear & gate, const Linear & up, const Linear & down,
                                ggml_tensor * residual) {
    const bool both = ours(gate, x.path) && ours(up, x.path);
    if (x.path == Path::gemm && both && ours(down, x.path) && up.weight->ne[1] % 2 == 0) {
        ggml_tensor * y = hidden(graph, x, up, &gate, Activation::none);
        return rows_out(graph, y, x.rows->ne[1], down, Activation::none, residual);
    }
    if (x.path == Path::gemv && both && gate.weight->type == up.weight->type) {
        Input y{each_row(graph, x, up, &gate, nullptr), x.path};
        return linear(graph, y, down, Activation::none, residual);
    }
    return GgmlOps::gated_mlp(graph, x, gate, up, down, residual);
}

std::unique_ptr<Ops> make_ops(const Model & model, Compute & compute, Importance * importance) {
    if (compute.arithmetic.kernels) {
        return std::make_unique<CpuOps>(&model, compute, importance);
    }
    return std::make_unique<GgmlOps>(compute);
}

double multiply_once(const Arithmetic & how, Path path, ggml_type type, const void * matrix, int64_t n_out,
                     int64_t n_in, const float * rows, int64_t n_rows, float * out, int threads, int repeats) {
    Compute   compute(find_devices("cpu").front(), threads, how);
    Workspace workspace(compute, 16, nullptr);
    Graph     graph("product", 16);

    ggml_context_ptr context(ggml_init({ggml_tensor_overhead() * 2, nullptr, /*.no_alloc =*/true}));
    if (!context) {
        throw std::bad_alloc();
    }
    Linear linear;
    linear.weight      = ggml_new_tensor_2d(context.get(), type, n_in, n_out);
    const size_t bytes = ggml_nbytes(linear.weight);
    // ggml wants its matrices aligned.
    std::vector<uint8_t> held(bytes + 64);
    void * const         aligned = align64(reinterpret_cast<uint32_t *>(held.data()));
    std::memcpy(aligned, matrix, bytes);
    const ggml_backend_buffer_ptr buffer(ggml_backend_cpu_buffer_from_ptr(aligned, bytes));
    if (!buffer || ggml_backend_tensor_alloc(buffer.get(), linear.weight, aligned) != GGML_STATUS_SUCCESS) {
        throw std::bad_alloc();
    }

    const std::unique_ptr<Ops> ops   = how.kernels ? std::unique_ptr<Ops>(new CpuOps(nullptr, compute, nullptr))
                                                   : std::unique_ptr<Ops>(new GgmlOps(compute));
    ggml_tensor *              input = graph.input(GGML_TYPE_F32, n_in, n_rows);
    Input                      x{input, path};
    ggml_tensor *              y = ops->linear(graph, x, linear);
    graph.output(y);
    workspace.place(graph);
    set(input, rows);
    double best = std::numeric_limits<double>::infinity();
    for (int i = 0; i < repeats; i++) {
        const auto start = std::chrono::steady_clock::now();
        workspace.run(graph);
        best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    get(y, out);
    return best;
}

}  // namespace pcr
