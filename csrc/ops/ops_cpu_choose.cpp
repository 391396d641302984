// The most probable token: the screen (screen.h) finds the rows of the head that are multiplied exactly.

#include "nn/model.h"
#include "ops/ops_cpu.h"

#include <algorithm>
#include <cmath>
#include <new>

#if defined(__linux__)
#  include <sys/mman.h>
#  include <time.h>
#endif

namespace pcr {

namespace {

constexpr float  slack     = 1e-5f;  // of a product's rounding in F32, relative to the lengths of its factors
constexpr float  far       = 7.0f;   // a logit so far below the largest weighs less than 0.1 % of it in the sum
constexpr size_t min_exact = 64;     // of the largest that are exact in any case, for the sum's sake
constexpr size_t max_exact = 4096;   // beyond so many, exact products of scattered rows are no gain

struct ScreenNode {
    Compute *        compute;
    Screen *         screen;
    const GgufFile * file;
    WorkCounter      work{};
};

constexpr int64_t panel = 256;  // rows that a thread takes at once

void run_screen(ggml_tensor * dst, int thread, int n_threads, void * user) {
    ScreenNode &        node = *static_cast<ScreenNode *>(user);
    const ggml_tensor * head = dst->src[0];
    const int64_t       n = head->ne[0], vocab = head->ne[1], panels = (vocab + panel - 1) / panel;
    const size_t        bytes = ggml_row_size(GGML_TYPE_Q8_0, n);
    float * const       row   = reinterpret_cast<float *>(node.compute->scratch(thread));
    const Kernels &     ours  = *node.compute->arithmetic.kernels;
    for (int64_t p; (p = node.work.take(panels, n_threads)) < panels;) {
        const int64_t end = std::min(panel * (p + 1), vocab);
        for (int64_t i = panel * p; i < end; i++) {
            const size_t at = static_cast<size_t>(i);
            ours.unpack_f32(head->type, static_cast<const uint8_t *>(head->data) + at * head->nb[1], n, row);
            ours.quantize_q8_0(row, n, node.screen->rows.get() + at * bytes, &node.screen->error[at],
                               &node.screen->norm[at]);
        }
        node.file->release(static_cast<const uint8_t *>(head->data) + static_cast<size_t>(panel * p) * head->nb[1],
                           static_cast<size_t>(end - panel * p) * head->nb[1]);
    }
}

struct ScoreNode {
    Compute *           compute;
    const Screen *      screen;
    const ggml_tensor * head;
    int64_t             count;
    WorkCounter         work{};
};

void run_screened(ggml_tensor * dst, int thread, int n_threads, void * user) {
    ScoreNode &     node = *static_cast<ScoreNode *>(user);
    const Kernels & ours = *node.compute->arithmetic.kernels;
    const int64_t   n = node.head->ne[0], vocab = node.head->ne[1], panels = (vocab + panel - 1) / panel;
    const size_t    bytes = ggml_row_size(GGML_TYPE_Q8_0, n);
    auto * const    x     = reinterpret_cast<uint8_t *>(node.compute->scratch(thread));
    for (int64_t j = 0; j < node.count; j++) {
        ours.int8_quantize(static_cast<const float *>(dst->src[0]->data) + j * n, n, x + size_t(j) * int8_bytes(n));
    }
    for (int64_t p; (p = node.work.take(panels, n_threads)) < panels;) {
        const int64_t first = panel * p;
        ours.int8_gemv(GGML_TYPE_Q8_0, node.screen->rows.get() + static_cast<size_t>(first) * bytes, bytes,
                       std::min(panel, vocab - first), n, x, node.count, static_cast<float *>(dst->data) + first,
                       vocab);
    }
}

constexpr std::align_val_t huge_page{size_t(1) << 21};

#if defined(__linux__)

// Seconds until a page is there: of processor time, which other programs do not lengthen.
double touch(volatile uint8_t * page) {
    timespec start = {}, end = {};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &start);
    *page = 0;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
    return static_cast<double>(end.tv_sec - start.tv_sec) + 1e-9 * static_cast<double>(end.tv_nsec - start.tv_nsec);
}

#endif

// Memory that is read from end to end for every token, which is faster in large pages: 3 %. A virtual machine may have to
// fetch these from its host, at 5 ms each: where that happens, small ones are taken for the rest.
uint8_t * allocate_large(size_t bytes) {
    auto * const memory = static_cast<uint8_t *>(::operator new(bytes, huge_page));
#if defined(__linux__)
    // Advice, here and below: a refusal costs time only.
    madvise(memory, bytes, MADV_HUGEPAGE);
    size_t at = 0;
    for (int slow = 0; at < bytes && slow < 2; at += size_t(huge_page)) {
        slow += touch(memory + at) > 1e-3;
    }
    if (at < bytes) {
        madvise(memory + at, bytes - at, MADV_NOHUGEPAGE);
    }
#endif
    return memory;
}

// Once it is filled: the system may gather small pages into large ones as time goes by.
void gather_pages(uint8_t * memory, size_t bytes) {
#if defined(__linux__)
    madvise(memory, bytes, MADV_HUGEPAGE);
#else
    (void)memory;
    (void)bytes;
#endif
}

float length(const float * x, int64_t n) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) {
        sum += double(x[i]) * double(x[i]);
    }
    return static_cast<float>(std::sqrt(sum) * 1.0001);
}

// The rows that a graph leaves, chosen from on the host.
class RowsChoosing : public Choosing {
public:
    RowsChoosing(CpuOps & ops_, ggml_tensor * rows_) : ops(ops_), rows(rows_) {}

    void read(Choice * out) override {
        values.resize(static_cast<size_t>(ggml_nelements(rows)));
        get(rows, values.data());
        ops.choose_rows(values.data(), rows->ne[1], out);
    }

private:
    CpuOps &           ops;
    ggml_tensor *      rows;  // F32 [hidden, count]
    std::vector<float> values;
};

}  // namespace

void Screen::Free::operator()(uint8_t * memory) const {
    ::operator delete(memory, huge_page);
}

Screen make_screen(const ggml_tensor * head, const GgufFile & file, Compute & compute) {
    Screen          screen;
    const Kernels & ours = *compute.arithmetic.kernels;
    const int64_t   n    = head->ne[0];
    if (compute.arithmetic.exact || !ours.int8_takes(GGML_TYPE_Q8_0, n) || ggml_blck_size(head->type) != 1) {
        return screen;
    }
    const size_t vocab = static_cast<size_t>(head->ne[1]);
    const size_t bytes = vocab * ggml_row_size(GGML_TYPE_Q8_0, n);
    screen.rows.reset(allocate_large(bytes));
    screen.error.resize(vocab);
    screen.norm.resize(vocab);

    compute.reserve_scratch(n);
    Graph         graph("head copy", 4);
    Workspace     workspace(compute, 4, nullptr);
    ggml_tensor * args[] = {const_cast<ggml_tensor *>(head)};
    graph.output(ggml_custom_4d(graph.ctx(), GGML_TYPE_F32, 1, 1, 1, 1, args, 1, run_screen, GGML_N_TASKS_MAX,
                                &graph.keep<ScreenNode>(&compute, &screen, &file)));
    workspace.place(graph);
    workspace.run(graph);
    gather_pages(screen.rows.get(), bytes);
    screen.max_error = *std::max_element(screen.error.begin(), screen.error.end());
    screen.max_norm  = *std::max_element(screen.norm.begin(), screen.norm.end());
    return screen;
}

void CpuOps::logits(const float * rows, int64_t count, float * out) {
    const Linear & head = model->decoder.head;
    Graph          graph("head", head_workspace.max_nodes());
    ggml_tensor *  input = graph.input(GGML_TYPE_F32, model->decoder.hidden, count);
    Input          x{input, Path::gemv};
    ggml_tensor *  y = linear(graph, x, head, Activation::none, nullptr);  // [vocab, count]
    graph.output(y);
    head_workspace.place(graph);
    set(input, rows);
    head_workspace.run(graph);
    get(y, out);
}

void CpuOps::choose_rows(const float * rows, int64_t count, Choice * out) {
    const DecoderWeights & weights = model->decoder;
    const Screen &         screen  = model->screen(compute);
    const int64_t          vocab   = weights.vocab;
    scores.resize(static_cast<size_t>(count * vocab));
    if (!screen.rows || collects) {
        logits(rows, count, scores.data());
        for (int64_t j = 0; j < count; j++) {
            out[j] = most_probable(scores.data() + j * vocab);
        }
        return;
    }
    compute.reserve_scratch(static_cast<int64_t>(int8_bytes(weights.hidden) / sizeof(uint32_t)) * count);
    Graph         graph("head", head_workspace.max_nodes());
    ggml_tensor * input = graph.input(GGML_TYPE_F32, weights.hidden, count);
    ggml_tensor * y =
        ggml_custom_4d(graph.ctx(), GGML_TYPE_F32, vocab, count, 1, 1, &input, 1, run_screened, GGML_N_TASKS_MAX,
                       &graph.keep<ScoreNode>(&compute, &screen, weights.head.weight, count));
    graph.output(y);
    head_workspace.place(graph);
    set(input, rows);
    head_workspace.run(graph);
    get(y, scores.data());
    chosen += count;
    if (chosen >= 32 && weights.head.weight == weights.embed) {
        model->store.release(weights.embed);  // every embedding that is looked up brings its neighbours into memory
        chosen = 0;
    }
    for (int64_t j = 0; j < count; j++) {
        out[j] = choose_screened(screen, rows + j * weights.hidden, scores.data() + j * vocab);
    }
}

std::unique_ptr<Choosing> CpuOps::choose(Graph & graph, ggml_tensor * x, const Linear &) {
    graph.output(x);
    return std::make_unique<RowsChoosing>(*this, x);
}

// An exact logit differs from its score by no more than, by Cauchy and Schwarz,
//   |w x - w' x'| <= |w - w'| |x| + |w'| |x - x'|,
// where w' and x' are what the 8-bit integers stand for.
Choice CpuOps::choose_screened(const Screen & screen, const float * row, float * score) {
    const Kernels & ours = *compute.arithmetic.kernels;
    const int64_t   n = model->decoder.hidden, vocab = model->decoder.vocab;

    quantized.resize(int8_bytes(n));
    ours.int8_quantize(row, n, quantized.data());
    const float size = length(row, n), lost = ours.int8_error(row, n, quantized.data()) + slack * size;
    const auto  bound = [&](float error, float norm) { return error * (size + slack * size) + norm * lost; };

    const float top = ours.max(score, vocab);
    if (!std::isfinite(size) || !std::isfinite(top)) {
        return most_probable(score);  // which says what is wrong
    }
    const float lowest = top - std::max(2.0f * bound(screen.max_error, screen.max_norm), far);
    likely.clear();
    for (int64_t i = 0; i < vocab; i++) {
        if (score[i] >= lowest) {
            likely.push_back(static_cast<int32_t>(i));
        }
    }
    float sure = -INFINITY;  // what the largest logit is at least
    for (const int32_t i : likely) {
        const size_t at = static_cast<size_t>(i);
        sure            = std::max(sure, score[at] - bound(screen.error[at], screen.norm[at]));
    }
    // Those which may be the largest, and min_exact in any case.
    const auto in_question = std::partition(likely.begin(), likely.end(), [&](int32_t i) {
        const size_t at = static_cast<size_t>(i);
        return score[at] + bound(screen.error[at], screen.norm[at]) >= sure;
    });
    const auto larger      = [&](int32_t a, int32_t b) { return score[a] > score[b]; };
    const auto wanted      = likely.begin() + static_cast<std::ptrdiff_t>(std::min(min_exact, likely.size()));
    if (wanted > in_question) {
        std::partial_sort(in_question, wanted, likely.end(), larger);
    }
    likely.erase(std::max(in_question, wanted), likely.end());
    if (likely.size() > max_exact) {
        logits(row, 1, score);
        return most_probable(score);
    }
    const ggml_tensor * head = model->decoder.head.weight;
    matrix_row.resize(head->nb[1]);
    for (const int32_t i : likely) {
        model->store.read_row(head, i, matrix_row.data());
        ours.gemv(head->type, matrix_row.data(), head->nb[1], 1, n, row, 1, score + i, vocab);
    }
    return most_probable(score);
}

Choice CpuOps::most_probable(const float * logits_) const {
    const Kernels & ours  = *compute.arithmetic.kernels;
    const int64_t   vocab = model->decoder.vocab;
    const float     top   = ours.max(logits_, vocab);
    const double    sum   = ours.sum_exp(logits_, vocab, top);
    const auto      best  = std::find(logits_, logits_ + vocab, top) - logits_;
    if (best == vocab || !std::isfinite(top) || !std::isfinite(sum)) {
        throw not_finite();
    }
    return {static_cast<int32_t>(best), static_cast<float>(1.0 / sum)};
}

}  // namespace pcr
