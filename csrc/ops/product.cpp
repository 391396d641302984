#include "ops/product.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>

namespace pcr {

namespace {

constexpr int64_t panel_rows  = 128;  // matrix rows that a thread decodes at once
constexpr int64_t most_few    = 512;  // that it takes at once for few rows
constexpr int64_t most_groups = 12;   // groups of 16 columns whose results stay in the cache

bool is_float(ggml_type type) {
    return type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16;
}

struct Node {
    Compute *      compute;
    const Linear * linear;
    const Linear * gate;  // or null
    Activation     activation;
    int64_t        n_rows;
    Tickets        tickets{};
};

// Columns [words] of n_rows rows of n values.
int64_t columns_words(ComputeType compute_type, int64_t n_rows, int64_t n) {
    return group_count(n_rows) * step_count(compute_type, n) * block_words + 16;
}

uint32_t * columns_at(const ggml_tensor * columns) {
    return align64(static_cast<uint32_t *>(columns->data));
}

// F32 rows -> columns.
void run_pack(ggml_tensor * dst, int thread, int n_threads, void * user) {
    const Node &        node   = *static_cast<Node *>(user);
    const Arithmetic &  how    = node.compute->arithmetic;
    const ggml_tensor * x      = dst->src[0];
    const int64_t       n      = x->ne[0];
    const int64_t       stride = static_cast<int64_t>(x->nb[1] / sizeof(float));
    const int64_t       groups = group_count(node.n_rows), words = step_count(how.type, n) * block_words;
    for (int64_t g = groups * thread / n_threads; g < groups * (thread + 1) / n_threads; g++) {
        how.kernels->pack(how.type, static_cast<const float *>(x->data) + g * block_side * stride, stride,
                          std::min(block_side, node.n_rows - g * block_side), n, columns_at(dst) + g * words);
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

// Words of scratch that a thread needs: panels, and results of all their rows for most_groups groups of columns.
int64_t scratch_words(ComputeType compute_type, int64_t in, int n_matrices) {
    return n_matrices * panel_rows * (step_count(compute_type, in) * block_side + most_groups * block_side) + 64;
}

// columns -> rows or, for an I32 dst, columns.
void run_product(ggml_tensor * dst, int thread, int n_threads, void * user) {
    Node &              node   = *static_cast<Node *>(user);
    const Arithmetic &  how    = node.compute->arithmetic;
    const ggml_tensor * weight = node.linear->weight;
    const int64_t       in = weight->ne[0], out = weight->ne[1];
    const int64_t       steps    = step_count(how.type, in);
    const int64_t       groups   = group_count(node.n_rows);
    const int64_t       n_blocks = (groups + most_groups - 1) / most_groups;
    const int64_t       n_panels = (out + panel_rows - 1) / panel_rows;
    const uint32_t *    columns  = columns_at(dst->src[0]);
    const float *       bias     = node.linear->bias ? static_cast<const float *>(node.linear->bias->data) : nullptr;
    const float *       residual = dst->src[1] ? static_cast<const float *>(dst->src[1]->data) : nullptr;

    uint32_t *    panel      = node.compute->scratch(thread);
    uint32_t *    gate_panel = panel + panel_rows * steps * block_side;
    float *       results = reinterpret_cast<float *>(gate_panel + (node.gate ? panel_rows * steps * block_side : 0));
    float *       gate_result = results + panel_rows * most_groups * block_side;
    const int64_t out_steps   = step_count(how.type, out);

    for (int64_t p; (p = node.tickets.take(n_panels, n_threads)) < n_panels;) {
        const int64_t    first = p * panel_rows, count = std::min(panel_rows, out - first);
        const int64_t    padded = group_count(count) * block_side;
        const PackedRows rows   = unpack_panel(how, weight, first, count, panel);
        PackedRows       gates  = rows;
        if (node.gate) {
            gates = unpack_panel(how, node.gate->weight, first, count, gate_panel);
        }
        for (int64_t b = 0; b < n_blocks; b++) {
            const int64_t g = groups * b / n_blocks, n = groups * (b + 1) / n_blocks - g, stride = n * block_side;
            const uint32_t * const block = columns + g * steps * block_words;
            how.kernels->gemm(how.type, rows, padded, block, steps * block_words, n, steps, false, results, stride);
            if (node.gate) {
                how.kernels->gemm(how.type, gates, padded, block, steps * block_words, n, steps, false, gate_result,
                                  stride);
            }
            if (dst->type == GGML_TYPE_I32) {
                how.kernels->epilogue_panel(how.type, results, node.gate ? gate_result : nullptr, stride, count, n,
                                            bias ? bias + first : nullptr, node.activation,
                                            columns_at(dst) + g * out_steps * block_words, out_steps * block_words,
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
                std::memset(columns_at(dst) + g * out_steps * block_words + line * block_side, 0,
                            static_cast<size_t>((lines - line) * block_side) * sizeof(uint32_t));
            }
        }
    }
}

bool takes_bytes(const Arithmetic & how, const ggml_tensor * weight) {
    return !how.exact && how.kernels->int8_takes && how.kernels->int8_takes(weight->type, weight->ne[0]);
}

// Each row by itself: quantised matrices with rows in 8-bit integers, others with rows as they are.
void run_few(ggml_tensor * dst, int thread, int n_threads, void * user) {
    Node &              node   = *static_cast<Node *>(user);
    const Arithmetic &  how    = node.compute->arithmetic;
    const ggml_tensor * weight = node.linear->weight;
    const float *       x      = static_cast<const float *>(dst->src[0]->data);
    const int64_t       in = weight->ne[0], out = weight->ne[1];
    // Long stretches of memory are read faster, but no thread shall wait long for another.
    const int64_t   few_panel = std::clamp<int64_t>(out / (2 * n_threads), 16, most_few);
    const int64_t   n_panels  = (out + few_panel - 1) / few_panel;
    uint8_t * const bytes     = reinterpret_cast<uint8_t *>(node.compute->scratch(thread));
    const bool      integers  = takes_bytes(how, weight);
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
    for (int64_t p; (p = node.tickets.take(n_panels, n_threads)) < n_panels;) {
        const int64_t first = p * few_panel, count = std::min(few_panel, out - first);
        float * const to = static_cast<float *>(dst->data) + first;
        dot(weight, first, count, to, out);
        if (node.gate) {
            dot(node.gate->weight, first, count, gates, few_panel);
        }
        for (int64_t j = 0; j < node.n_rows; j++) {
            if (node.gate) {
                how.kernels->silu_multiply(to + j * out, gates + j * few_panel, count);
            }
            if (residual) {
                how.kernels->add(to + j * out, residual + j * out + first, count);
            }
        }
    }
}

bool ours_for_many(const Arithmetic & how, const Linear & l) {
    return how.products && (is_float(l.weight->type) || how.quantised);
}

bool ours_for_few(const Arithmetic & how, const Linear & l) {
    return how.products && (is_float(l.weight->type) || how.exact || takes_bytes(how, l.weight));
}

}  // namespace

bool rows_stand_alone(const Model & model, bool each) {
    const auto ours = [&](std::initializer_list<const Linear *> list) {
        return std::all_of(list.begin(), list.end(), [&](const Linear * l) {
            return each ? ours_for_few(model.arithmetic, *l) : ours_for_many(model.arithmetic, *l);
        });
    };
    const EncoderWeights & e = model.encoder;
    const DecoderWeights & d = model.decoder;
    return (each ? ours({&d.head})
                 : ours({&e.conv_out, &e.proj1, &e.proj2, &e.gate, &e.up, &e.down}) &&
                       std::all_of(
                           e.layers.begin(), e.layers.end(),
                           [&](const EncoderLayer & l) { return ours({&l.q, &l.k, &l.v, &l.o, &l.fc1, &l.fc2}); })) &&
           std::all_of(d.layers.begin(), d.layers.end(),
                       [&](const DecoderLayer & l) { return ours({&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down}); });
}

Products::Products(Graph & graph_, Compute & compute_, int64_t n_rows_, bool each_, bool ggml_only_)
    : graph(graph_),
      compute(compute_),
      n_rows(n_rows_),
      each(each_),
      ggml_only(ggml_only_ || !compute_.arithmetic.products) {}

bool Products::packed(const Linear & l) const {
    return !ggml_only && !each && ours_for_many(compute.arithmetic, l);
}

bool Products::few(const Linear & l) const {
    return !ggml_only && each && ours_for_few(compute.arithmetic, l);
}

ggml_tensor * Products::columns_of(Factor & x) {
    if (!x.columns) {
        Node & node = graph.keep<Node>(&compute, nullptr, nullptr, Activation::none, n_rows);
        x.columns =
            ggml_custom_4d(graph.ctx(), GGML_TYPE_I32, columns_words(compute.arithmetic.type, n_rows, x.rows->ne[0]), 1,
                           1, 1, &x.rows, 1, run_pack, GGML_N_TASKS_MAX, &node);
    }
    return x.columns;
}

ggml_tensor * Products::rows_out(const Linear & l, ggml_tensor * columns, Activation activation,
                                 ggml_tensor * residual) {
    compute.reserve_scratch(scratch_words(compute.arithmetic.type, l.weight->ne[0], 1));
    Node &        node   = graph.keep<Node>(&compute, &l, nullptr, activation, n_rows);
    ggml_tensor * args[] = {columns, residual};
    return ggml_custom_4d(graph.ctx(), GGML_TYPE_F32, l.weight->ne[1], n_rows, 1, 1, args, residual ? 2 : 1,
                          run_product, GGML_N_TASKS_MAX, &node);
}

ggml_tensor * Products::each_row(const Linear & l, const Linear * gate, Factor & x, ggml_tensor * residual) {
    const int64_t bytes = static_cast<int64_t>(int8_bytes(l.weight->ne[0]) / sizeof(uint32_t)) * n_rows;
    compute.reserve_scratch(bytes + (gate ? most_few * n_rows : 0));
    Node &        node   = graph.keep<Node>(&compute, &l, gate, Activation::none, n_rows);
    ggml_tensor * args[] = {x.rows, residual};
    return ggml_custom_4d(graph.ctx(), GGML_TYPE_F32, l.weight->ne[1], n_rows, 1, 1, args, residual ? 2 : 1, run_few,
                          GGML_N_TASKS_MAX, &node);
}

ggml_tensor * Products::hidden(const Linear & l, const Linear * gate, Factor & x, Activation activation) {
    const ComputeType compute_type = compute.arithmetic.type;
    compute.reserve_scratch(scratch_words(compute_type, l.weight->ne[0], gate ? 2 : 1));
    Node &        node    = graph.keep<Node>(&compute, &l, gate, activation, n_rows);
    ggml_tensor * columns = columns_of(x);
    return ggml_custom_4d(graph.ctx(), GGML_TYPE_I32, columns_words(compute_type, n_rows, l.weight->ne[1]), 1, 1, 1,
                          &columns, 1, run_product, GGML_N_TASKS_MAX, &node);
}

ggml_tensor * Products::linear(const Linear & l, Factor & x, Activation activation, ggml_tensor * residual) {
    ggml_context * ctx = graph.ctx();
    if (packed(l)) {
        return rows_out(l, columns_of(x), activation, residual);
    }
    if (few(l) && !l.bias && activation == Activation::none) {
        return each_row(l, nullptr, x, residual);
    }
    ggml_tensor * y = few(l) ? each_row(l, nullptr, x, nullptr) : ggml_mul_mat(ctx, l.weight, x.rows);
    y               = l.bias ? ggml_add(ctx, y, l.bias) : y;
    y               = activation == Activation::gelu ? ggml_gelu_erf(ctx, y) : y;
    return residual ? ggml_add(ctx, residual, y) : y;
}

ggml_tensor * Products::mlp(const Linear & first, const Linear & second, Factor & x, ggml_tensor * residual) {
    if (packed(first) && packed(second) && first.weight->ne[1] % 2 == 0) {
        return rows_out(second, hidden(first, nullptr, x, Activation::gelu), Activation::none, residual);
    }
    Factor y{linear(first, x, Activation::gelu)};
    return linear(second, y, Activation::none, residual);
}

ggml_tensor * Products::gated_mlp(const Linear & gate, const Linear & up, const Linear & down, Factor & x,
                                  ggml_tensor * residual) {
    if (packed(gate) && packed(up) && packed(down) && up.weight->ne[1] % 2 == 0) {
        return rows_out(down, hidden(up, &gate, x, Activation::none), Activation::none, residual);
    }
    const bool both = few(gate) && few(up) && gate.weight->type == up.weight->type;
    Factor y{both ? each_row(up, &gate, x, nullptr) : ggml_swiglu_split(graph.ctx(), linear(gate, x), linear(up, x))};
    return linear(down, y, Activation::none, residual);
}

double multiply_once(const Arithmetic & how, bool each, ggml_type type, const void * matrix, int64_t n_out,
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

    ggml_tensor *    input = graph.input(GGML_TYPE_F32, n_in, n_rows);
    Products         products(graph, compute, n_rows, each, /*ggml_only =*/false);
    Products::Factor x{input};
    ggml_tensor *    y = products.linear(linear, x);
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
