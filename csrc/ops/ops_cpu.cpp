#include "ops/ops_cpu.h"

#include "nn/model.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>

namespace pcr {

namespace {

constexpr int64_t panel_rows         = 128;  // matrix rows that a thread decodes at once
constexpr int64_t max_gemv_panel     = 512;  // that it takes at once for GEMV
constexpr int64_t max_groups         = 12;   // groups of 16 results that stay in the cache
constexpr int64_t min_int8_gemm_rows = 48;  // from which on unpacking the matrix pays

bool is_float(ggml_type type) {
    return type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16;
}

struct Node {
    Compute *      compute;
    const Linear * linear;
    const Linear * gate;  // or null
    Activation     activation;
    int64_t        n_rows;
    ComputeType    in, out;  // of panels
    WorkCounter    work{};
};

// Words of the packed panels of n_rows rows of n values, in a tensor.
int64_t tensor_words(ComputeType type, int64_t n_rows, int64_t n) {
    return group_count(n_rows) * panel_words(type, n) + 16;
}

uint32_t * panel_at(const ggml_tensor * packed) {
    return align64(static_cast<uint32_t *>(packed->data));
}

// F32 rows -> packed panels.
void run_pack(ggml_tensor * dst, int /*thread*/, int n_threads, void * user) {
    Node &              node    = *static_cast<Node *>(user);
    const Kernels &     kernels = *node.compute->arithmetic.kernels;
    const ggml_tensor * x       = dst->src[0];
    const int64_t       n       = x->ne[0];
    const int64_t       stride  = static_cast<int64_t>(x->nb[1] / sizeof(float));
    const int64_t       groups = group_count(node.n_rows), words = panel_words(node.in, n);
    for (int64_t g; (g = node.work.take(groups, n_threads)) < groups;) {
        const float * const rows   = static_cast<const float *>(x->data) + g * block_side * stride;
        const int64_t       n_rows = std::min(block_side, node.n_rows - g * block_side);
        uint32_t * const    panel  = panel_at(dst) + g * words;
        if (node.in == ComputeType::int8) {
            kernels.int8_pack(rows, stride, n_rows, n, panel);
        } else {
            kernels.pack(node.in, rows, stride, n_rows, n, panel);
        }
    }
}

// One panel of a matrix, decoded: rows in groups of 16, the last one filled up with zeros; in 8-bit integers row by row.
PackedRows unpack_panel(const Kernels & kernels, ComputeType type, const ggml_tensor * weight, int64_t first,
                        int64_t count, uint32_t * panel) {
    const auto *  data   = static_cast<const uint8_t *>(weight->data);
    const auto    row_at = [&](int64_t r) { return data + static_cast<size_t>(first + r) * weight->nb[1]; };
    const int64_t n = weight->ne[0], words = row_words(type, n);
    if (type == ComputeType::int8) {
        for (int64_t r = 0; r < count; r++) {
            kernels.int8_unpack(weight->type, row_at(r), n, panel + r * words);
        }
        return {panel, 0, words, 0};
    }
    const PackedRows rows{panel, words * block_side, block_side, block_words};
    for (int64_t r = 0; r < count; r++) {
        kernels.unpack(type, weight->type, row_at(r), n,
                       panel + r / block_side * rows.group + r % block_side * rows.row, rows.step);
    }
    for (int64_t r = count; r < group_count(count) * block_side; r++) {
        uint32_t * row = panel + r / block_side * rows.group + r % block_side * rows.row;
        for (int64_t s = 0; s < step_count(type, n); s++) {
            std::memset(row + s * rows.step, 0, block_side * sizeof(uint32_t));
        }
    }
    return rows;
}

// results [count][stride] of n groups of columns.
void multiply(const Kernels & kernels, ComputeType type, const ggml_tensor * weight, const PackedRows & rows,
              int64_t count, const uint32_t * panels, int64_t n, float * results) {
    const int64_t in = weight->ne[0];
    if (type == ComputeType::int8) {
        kernels.int8_gemm(weight->type, rows.words, count, panels, n, in, results, n * block_side);
    } else {
        kernels.gemm(type, rows, group_count(count) * block_side, panels, panel_words(type, in), n,
                     step_count(type, in), false, results, n * block_side);
    }
}

// Words of scratch that a thread needs: panels, and results of all their rows for max_groups groups of columns.
int64_t scratch_words(ComputeType type, int64_t in, int n_matrices) {
    return n_matrices * panel_rows * (row_words(type, in) + max_groups * block_side) + 64;
}

// Zeros behind the last of n values.
void clear_rest(ComputeType type, uint32_t * panels, int64_t groups, int64_t n) {
    const int64_t words = panel_words(type, n);
    if (type == ComputeType::int8) {
        for (int64_t i = n; i < (n + 255) / 256 * 256; i += 32) {
            for (int64_t g = 0; g < groups; g++) {
                std::memset(panels + g * words + int8_step(n, i) * int8_panel_step, 0,
                            int8_panel_step * sizeof(uint32_t));
            }
        }
        return;
    }
    const int64_t used = n / word_values(type) * block_side;
    for (int64_t g = 0; g < groups; g++) {
        std::memset(panels + g * words + used, 0, static_cast<size_t>(words - used) * sizeof(uint32_t));
    }
}

// Packed panels -> rows or, for an I32 dst, packed panels.
void run_gemm(ggml_tensor * dst, int thread, int n_threads, void * user) {
    Node &              node    = *static_cast<Node *>(user);
    const Kernels &     kernels = *node.compute->arithmetic.kernels;
    const ggml_tensor * weight  = node.linear->weight;
    const int64_t       in = weight->ne[0], out = weight->ne[1];
    const int64_t       words    = panel_words(node.in, in);
    const int64_t       groups   = group_count(node.n_rows);
    const int64_t       n_blocks = (groups + max_groups - 1) / max_groups;
    const int64_t       n_panels = (out + panel_rows - 1) / panel_rows;
    const uint32_t *    panels   = panel_at(dst->src[0]);
    const float *       bias     = node.linear->bias ? static_cast<const float *>(node.linear->bias->data) : nullptr;
    const float *       residual = dst->src[1] ? static_cast<const float *>(dst->src[1]->data) : nullptr;

    const int64_t decoded     = panel_rows * row_words(node.in, in);
    uint32_t *    panel       = node.compute->scratch(thread);
    uint32_t *    gate_panel  = panel + decoded;
    float *       results     = reinterpret_cast<float *>(gate_panel + (node.gate ? decoded : 0));
    float *       gate_result = results + panel_rows * max_groups * block_side;
    const int64_t out_words   = panel_words(node.out, out);

    for (int64_t p; (p = node.work.take(n_panels, n_threads)) < n_panels;) {
        const int64_t    first = p * panel_rows, count = std::min(panel_rows, out - first);
        const PackedRows rows  = unpack_panel(kernels, node.in, weight, first, count, panel);
        PackedRows       gates = rows;
        if (node.gate) {
            gates = unpack_panel(kernels, node.in, node.gate->weight, first, count, gate_panel);
        }
        for (int64_t b = 0; b < n_blocks; b++) {
            const int64_t g = groups * b / n_blocks, n = groups * (b + 1) / n_blocks - g, stride = n * block_side;
            const uint32_t * const block = panels + g * words;
            multiply(kernels, node.in, weight, rows, count, block, n, results);
            if (node.gate) {
                multiply(kernels, node.in, node.gate->weight, gates, count, block, n, gate_result);
            }
            const float * const some_bias = bias ? bias + first : nullptr;
            const float * const factor    = node.gate ? gate_result : nullptr;
            if (dst->type != GGML_TYPE_I32) {
                const int64_t at = g * block_side * out + first;
                kernels.epilogue_rows(results, stride, count, std::min(stride, node.n_rows - g * block_side), some_bias,
                                      node.activation, residual ? residual + at : nullptr,
                                      static_cast<float *>(dst->data) + at, out);
            } else if (node.out == ComputeType::int8) {
                kernels.int8_epilogue_panel(results, factor, stride, count, n, some_bias, node.activation,
                                            panel_at(dst) + g * out_words, first, out);
            } else {
                kernels.epilogue_panel(node.out, results, factor, stride, count, n, some_bias, node.activation,
                                       panel_at(dst) + g * out_words, out_words, first);
            }
        }
        if (dst->type == GGML_TYPE_I32 && first + count == out) {
            clear_rest(node.out, panel_at(dst), groups, out);
        }
    }
}

bool takes_int8(const Arithmetic & how, ggml_type type, int64_t n) {
    return !how.exact && how.kernels->int8_takes(type, n);
}

// What GEMM holds the factors of a product of ours in.
ComputeType gemm_type(const Arithmetic & how, ggml_type type, int64_t n) {
    return !how.quantised && how.kernels->int8_gemm && takes_int8(how, type, n) ? ComputeType::int8 : how.type;
}

// The choice between our kernels, where these multiply at all, and ggml's for rows of n values of a matrix: docs/performance.md has what it rests on.
bool multiplies(const Arithmetic & how, Path path, ggml_type type, int64_t n) {
    if (is_float(type) || how.exact) {
        return true;
    }
    return path == Path::gemv ? takes_int8(how, type, n)
                              : how.quantised || gemm_type(how, type, n) == ComputeType::int8;
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
    const bool      integers   = takes_int8(how, weight->type, in);
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
    return !ggml_products && multiplies(compute.arithmetic, path, l.weight->type, l.weight->ne[0]);
}

// What GEMM holds the factors of a product of ours in.
ComputeType CpuOps::factors(const Linear & l) const {
    return gemm_type(compute.arithmetic, l.weight->type, l.weight->ne[0]);
}

bool CpuOps::batch_invariant(Path path) const {
    const auto all_ours = [&](std::initializer_list<const Linear *> list) {  // of which a model may lack some
        return std::all_of(list.begin(), list.end(), [&](const Linear * l) { return !l->weight || ours(*l, path); });
    };
    const EncoderWeights &   e = model->encoder;
    const ProjectorWeights & p = model->projector;
    const DecoderWeights &   d = model->decoder;
    return (path == Path::gemv ? all_ours({&d.head})
                               : all_ours({&e.conv_out, &e.proj1, &e.proj2, &p.gate, &p.up, &p.down, &p.fc1, &p.fc2}) &&
                                     std::all_of(e.layers.begin(), e.layers.end(),
                                                 [&](const EncoderLayer & l) {
                                                     return all_ours({&l.q, &l.k, &l.v, &l.o, &l.fc1, &l.fc2});
                                                 })) &&
           std::all_of(d.layers.begin(), d.layers.end(), [&](const DecoderLayer & l) {
               return all_ours({&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down});
           });
}

// Products in 8-bit integers have the same results either way: many rows take GEMM.
Path CpuOps::path_of(const Input & x, std::initializer_list<const Linear *> list) const {
    const bool free_to_choose = std::all_of(list.begin(), list.end(), [&](const Linear * l) {
        return ours(*l, x.path) && !l->bias && factors(*l) == ComputeType::int8;
    });
    return free_to_choose && x.rows->ne[1] >= min_int8_gemm_rows ? Path::gemm : x.path;
}

ggml_tensor * CpuOps::packed(Graph & graph, Input & x, ComputeType type) {
    ggml_tensor *& panels = type == ComputeType::int8 ? x.packed_int8 : x.packed;
    if (!panels) {
        const int64_t n_rows = x.rows->ne[1];
        Node &        node   = graph.keep<Node>(&compute, nullptr, nullptr, Activation::none, n_rows, type, type);
        panels = ggml_custom_4d(graph.ctx(), GGML_TYPE_I32, tensor_words(type, n_rows, x.rows->ne[0]), 1, 1, 1, &x.rows,
                                1, run_pack, GGML_N_TASKS_MAX, &node);
    }
    return panels;
}

ggml_tensor * CpuOps::rows_out(Graph & graph, ggml_tensor * panels, int64_t n_rows, const Linear & l,
                               Activation activation, ggml_tensor * residual) {
    const ComputeType type = factors(l);
    compute.reserve_scratch(scratch_words(type, l.weight->ne[0], 1));
    Node &        node   = graph.keep<Node>(&compute, &l, nullptr, activation, n_rows, type, type);
    ggml_tensor * args[] = {panels, residual};
    return ggml_custom_4d(graph.ctx(), GGML_TYPE_F32, l.weight->ne[1], n_rows, 1, 1, args, residual ? 2 : 1, run_gemm,
                          GGML_N_TASKS_MAX, &node);
}

ggml_tensor * CpuOps::each_row(Graph & graph, Input & x, const Linear & l, const Linear * gate,
                               ggml_tensor * residual) {
    const int64_t n_rows = x.rows->ne[1];
    const int64_t bytes  = static_cast<int64_t>(int8_bytes(l.weight->ne[0]) / sizeof(uint32_t)) * n_rows;
    compute.reserve_scratch(bytes + (gate ? max_gemv_panel * n_rows : 0));
    Node & node = graph.keep<Node>(&compute, &l, gate, Activation::none, n_rows, ComputeType::f32, ComputeType::f32);
    ggml_tensor * args[] = {x.rows, residual};
    return ggml_custom_4d(graph.ctx(), GGML_TYPE_F32, l.weight->ne[1], n_rows, 1, 1, args, residual ? 2 : 1, run_gemv,
                          GGML_N_TASKS_MAX, &node);
}

// The hidden values of an MLP, packed for its second product.
ggml_tensor * CpuOps::hidden(Graph & graph, Input & x, const Linear & l, const Linear * gate, Activation activation,
                             const Linear & second) {
    const ComputeType type = factors(l), next = factors(second);
    const int64_t     n_rows = x.rows->ne[1];
    compute.reserve_scratch(scratch_words(type, l.weight->ne[0], gate ? 2 : 1));
    Node &        node   = graph.keep<Node>(&compute, &l, gate, activation, n_rows, type, next);
    ggml_tensor * panels = packed(graph, x, type);
    return ggml_custom_4d(graph.ctx(), GGML_TYPE_I32, tensor_words(next, n_rows, l.weight->ne[1]), 1, 1, 1, &panels, 1,
                          run_gemm, GGML_N_TASKS_MAX, &node);
}

ggml_tensor * CpuOps::linear(Graph & graph, Input & x, const Linear & l, Activation activation,
                             ggml_tensor * residual) {
    if (!ours(l, x.path)) {
        return GgmlOps::linear(graph, x, l, activation, residual);
    }
    if (path_of(x, {&l}) == Path::gemm) {
        return rows_out(graph, packed(graph, x, factors(l)), x.rows->ne[1], l, activation, residual);
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
        ggml_tensor * y = hidden(graph, x, first, nullptr, Activation::gelu, second);
        return rows_out(graph, y, x.rows->ne[1], second, Activation::none, residual);
    }
    return GgmlOps::mlp(graph, x, first, second, residual);
}

ggml_tensor * CpuOps::gated_mlp(Graph & graph, Input & x, const Linear & gate, const Linear & up, const Linear & down,
                                ggml_tensor * residual) {
    const bool both = ours(gate, x.path) && ours(up, x.path);
    if (path_of(x, {&gate, &up, &down}) == Path::gemm && both && ours(down, x.path) && factors(gate) == factors(up) &&
        up.weight->ne[1] % 2 == 0) {
        ggml_tensor * y = hidden(graph, x, up, &gate, Activation::none, down);
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

std::string describe_product(const Arithmetic & how, Path path, ggml_type type, int64_t n_in) {
    if (!how.products || !multiplies(how, path, type, n_in)) {
        return "ggml";
    }
    const ComputeType as = path == Path::gemm              ? gemm_type(how, type, n_in)
                           : !is_float(type) && !how.exact ? ComputeType::int8
                                                           : ComputeType::f32;
    return std::string(how.kernels->name) + (as == ComputeType::int8   ? ", 8-bit integers"
                                             : as == ComputeType::bf16 ? ", BF16"
                                                                       : ", F32");
}

double multiply_once(const Arithmetic & how, Path path, ggml_type type, const void * matrix, int64_t n_out,
                     int64_t n_in, const float * rows, int64_t n_rows, float * out, int threads, int repeats) {
    Compute   compute(find_devices("cpu").front(), threads, how);
    Workspace workspace(compute, 16, nullptr);
    Graph     graph("product", 16);

    const ggml_context_ptr context = new_context(2);
    Linear                 linear;
    linear.weight      = ggml_new_tensor_2d(context.get(), type, n_in, n_out);
    const size_t bytes = ggml_nbytes(linear.weight);
    // ggml wants its matrices aligned.
    std::vector<uint8_t> held(bytes + 64);
    void * const         aligned = align64(reinterpret_cast<uint32_t *>(held.data()));
    std::memcpy(aligned, matrix, bytes);
    ggml_backend_buffer_ptr buffer;
    call_ggml([&] { buffer.reset(ggml_backend_cpu_buffer_from_ptr(aligned, bytes)); });
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
