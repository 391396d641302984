// Convolutions by our GEMM: images of chunks, channels fastest, so that nine taps are nine products of strided rows and no
// patch is ever copied.

#include "ops/ops_cpu.h"

#include <algorithm>
#include <cstring>

namespace pcr {

namespace {

constexpr int64_t strip_positions = 160;  // results of all channels that a thread computes at once
constexpr int64_t channel_groups  = 4;  // of 16 output channels, whose weights stay in the cache meanwhile

int64_t halved(int64_t n) {
    return (n - 1) / 2 + 1;
}

// Words [chunks][time + 2][freq + 2][words of a pixel], a border of zeros around each chunk; F32 chunks have none.
struct Image {
    int64_t time, freq, pixel;

    int64_t row() const { return (freq + 2) * pixel; }
    int64_t chunk() const { return (time + 2) * row(); }
    // A product takes 16 positions of a line, even where the line is shorter: some words more than the chunks have.
    int64_t words(int64_t n_chunks) const { return n_chunks * chunk() + 2 * block_side * pixel + block_side; }
};

struct Node {
    Compute *        compute;
    const uint32_t * panels;
    const float *    bias;
    int64_t          channels;  // out
    Image            in, out;  // in.pixel is 0 for F32 chunks, out.pixel for the last convolution
    int64_t          n_chunks;
    int64_t          strip;  // output lines of a piece
    WorkCounter      work{};
};

// Nine values around each position of an output line, from a chunk [freq][time] without a border: [freq out][16].
void gather(const float * chunk, const Image & in, const Image & out, int64_t t, float * patches) {
    std::memset(patches, 0, static_cast<size_t>(group_count(out.freq) * block_words) * sizeof(float));
    for (int64_t f = 0; f < out.freq; f++) {
        for (int64_t df = 0; df < 3; df++) {
            for (int64_t dt = 0; dt < 3; dt++) {
                const int64_t from_f = 2 * f + df - 1, from_t = 2 * t + dt - 1;
                if (from_f >= 0 && from_f < in.freq && from_t >= 0 && from_t < in.time) {
                    patches[f * block_side + df * 3 + dt] = chunk[from_f * in.time + from_t];
                }
            }
        }
    }
}

void run(ggml_tensor * dst, int thread, int n_threads, void * user) {
    Node &             node   = *static_cast<Node *>(user);
    const Arithmetic & how    = node.compute->arithmetic;
    const Image &      in     = node.in;
    const Image &      out    = node.out;
    const int64_t      groups = group_count(node.channels), stride = groups * block_side;
    const int64_t      padded      = group_count(out.freq) * block_side;  // positions of a line that are computed
    const bool         first       = in.pixel == 0;
    const int64_t      steps       = first ? 1 : in.pixel / block_side;  // of one tap
    const int64_t      panel_group = (first ? 1 : 9) * steps * block_words;
    const int64_t      strips      = (out.time + node.strip - 1) / node.strip;

    float * const results = reinterpret_cast<float *>(node.compute->scratch(thread));
    float * const line    = results + node.strip * padded * stride;  // one line, or its patches
    const auto *  source  = static_cast<const uint8_t *>(dst->src[0]->data);

    for (int64_t piece; (piece = node.work.take(node.n_chunks * strips, n_threads)) < node.n_chunks * strips;) {
        const int64_t chunk = piece / strips, begin = piece % strips * node.strip;
        const int64_t end = std::min(begin + node.strip, out.time);
        if (first) {
            const PackedRows rows{reinterpret_cast<const uint32_t *>(line), block_words, block_side, block_words};
            for (int64_t t = begin; t < end; t++) {
                gather(reinterpret_cast<const float *>(source) + chunk * in.time * in.freq, in, out, t, line);
                how.kernels->gemm(ComputeType::f32, rows, out.freq, node.panels, panel_group, groups, 1, false,
                                  results + (t - begin) * padded * stride, stride);
            }
        } else {
            const uint32_t * image = align64(static_cast<uint32_t *>(dst->src[0]->data)) + chunk * in.chunk();
            for (int64_t g = 0; g < groups; g += channel_groups) {
                const int64_t n = std::min(channel_groups, groups - g);
                for (int64_t t = begin; t < end; t++) {
                    for (int64_t tap = 0; tap < 9; tap++) {
                        const uint32_t * from = image + (2 * t + tap % 3) * in.row() + tap / 3 * in.pixel;
                        how.kernels->gemm(how.type, {from, 32 * in.pixel, 2 * in.pixel, block_side}, padded,
                                          node.panels + g * panel_group + tap * steps * block_words, panel_group, n,
                                          steps, tap > 0, results + (t - begin) * padded * stride + g * block_side,
                                          stride);
                    }
                }
            }
        }
        for (int64_t t = begin; t < end; t++) {
            const float * result = results + (t - begin) * padded * stride;
            if (out.pixel == 0) {  // F32 [channels][freq] of this time
                for (int64_t f = 0; f < out.freq; f++) {
                    how.kernels->epilogue_words(ComputeType::f32, result + f * stride, node.channels, node.bias,
                                                Activation::gelu, reinterpret_cast<uint32_t *>(line + f * stride));
                }
                how.kernels->epilogue_rows(
                    line, stride, out.freq, node.channels, nullptr, Activation::none, nullptr,
                    static_cast<float *>(dst->data) + (chunk * out.time + t) * node.channels * out.freq, out.freq);
                continue;
            }
            uint32_t * row   = align64(static_cast<uint32_t *>(dst->data)) + chunk * out.chunk() + (t + 1) * out.row();
            const auto blank = [](uint32_t * words, int64_t n) { std::memset(words, 0, size_t(n) * sizeof(*words)); };
            for (int64_t f = 0; f < out.freq; f++) {
                how.kernels->epilogue_words(how.type, result + f * stride, node.channels, node.bias, Activation::gelu,
                                            row + (f + 1) * out.pixel);
            }
            blank(row, out.pixel);
            blank(row + (out.freq + 1) * out.pixel, out.pixel);
            if (t == 0) {
                blank(row - out.row(), out.row());
            }
            if (t == out.time - 1) {
                blank(row + out.row(), out.row());
            }
        }
    }
}

}  // namespace

std::vector<uint32_t> pack_conv(const Arithmetic & how, const ggml_tensor * kernel) {
    if (!how.kernels) {
        return {};
    }
    const int64_t     in = kernel->ne[2], out = kernel->ne[3];
    const bool        first = in == 1;
    const ComputeType type  = first ? ComputeType::f32 : how.type;
    const int64_t     taps = first ? 1 : 9, n = first ? 9 : in, steps = step_count(type, n);

    std::vector<float> rows(static_cast<size_t>(out * in * 9));
    how.kernels->unpack_f32(kernel->type, kernel->data, static_cast<int64_t>(rows.size()), rows.data());
    std::vector<uint32_t> panels(static_cast<size_t>(group_count(out) * taps * steps * block_words));
    std::vector<float>    tap_rows(static_cast<size_t>(block_side * n));
    for (int64_t g = 0; g < group_count(out); g++) {
        const int64_t count = std::min(block_side, out - g * block_side);
        for (int64_t tap = 0; tap < taps; tap++) {
            for (int64_t r = 0; r < count; r++) {
                const float * from = rows.data() + (g * block_side + r) * in * 9;
                for (int64_t i = 0; i < n; i++) {
                    tap_rows[static_cast<size_t>(r * n + i)] = first ? from[i] : from[i * 9 + tap];
                }
            }
            how.kernels->pack(type, tap_rows.data(), n, count, n,
                              panels.data() + (g * taps + tap) * steps * block_words);
        }
    }
    return panels;
}

ggml_tensor * CpuOps::conv_stem(Graph & graph, const EncoderWeights & w, ggml_tensor * chunks) {
    if (ggml_products) {
        return GgmlOps::conv_stem(graph, w, chunks);
    }
    const ComputeType type  = compute.arithmetic.type;
    const int64_t     pixel = step_count(type, w.conv_channels) * block_side;
    Image             in{chunks->ne[0], chunks->ne[1], 0};
    ggml_tensor *     x = chunks;
    for (int i = 0; i < 3; i++) {
        const Image   out{halved(in.time), halved(in.freq), i < 2 ? pixel : 0};
        const int64_t padded = group_count(out.freq) * block_side, stride = group_count(w.conv_channels) * block_side;
        const int64_t strip = std::min(out.time, std::max<int64_t>(1, strip_positions / padded));
        compute.reserve_scratch(strip * padded * stride + std::max(padded * stride, padded * block_side));
        Node & node =
            graph.keep<Node>(&compute, w.conv[i].packed.data(), static_cast<const float *>(w.conv[i].bias->data),
                             w.conv_channels, in, out, chunks->ne[3], strip);
        x  = i < 2 ? ggml_custom_4d(graph.ctx(), GGML_TYPE_I32, out.words(chunks->ne[3]), 1, 1, 1, &x, 1, run,
                                    GGML_N_TASKS_MAX, &node)
                   : ggml_custom_4d(graph.ctx(), GGML_TYPE_F32, w.conv_channels * out.freq, out.time, chunks->ne[3], 1,
                                    &x, 1, run, GGML_N_TASKS_MAX, &node);
        in = out;
    }
    return x;
}

}  // namespace pcr
