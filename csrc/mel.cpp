#include "mel.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace pcr {

namespace {

constexpr double pi = 3.141592653589793238462643383279502884;

// Slaney's mel scale: linear below 1000 Hz, logarithmic above (Auditory Toolbox, 1998).
double hertz_to_mel(double f) {
    return f < 1000.0 ? f * 3.0 / 200.0 : 15.0 + std::log(f / 1000.0) * 27.0 / std::log(6.4);
}

double mel_to_hertz(double m) {
    return m < 15.0 ? m * 200.0 / 3.0 : 1000.0 * std::exp((m - 15.0) * std::log(6.4) / 27.0);
}

// Triangles of equal area between n_mels + 2 points, equally spaced in mel: [n_mels][n_bins].
std::vector<float> slaney_filters(int n_mels) {
    constexpr int       n_bins = LogMel::n_bins;
    const double        top    = LogMel::sample_rate / 2.0;
    std::vector<double> edges(static_cast<size_t>(n_mels) + 2);
    for (size_t i = 0; i < edges.size(); i++) {
        edges[i] = mel_to_hertz(hertz_to_mel(top) * static_cast<double>(i) / (n_mels + 1));
    }
    std::vector<float> filters(static_cast<size_t>(n_bins) * static_cast<size_t>(n_mels));
    for (int mel = 0; mel < n_mels; mel++) {
        const double low = edges[size_t(mel)], middle = edges[size_t(mel) + 1], high = edges[size_t(mel) + 2];
        for (int bin = 0; bin < n_bins; bin++) {
            const double f      = top * bin / (n_bins - 1);
            const double height = std::max(0.0, std::min((f - low) / (middle - low), (high - f) / (high - middle)));
            filters[size_t(mel) * n_bins + size_t(bin)] = static_cast<float>(height * 2.0 / (high - low));
        }
    }
    return filters;
}

// exp(-2 pi i k / n), k < count.
std::vector<ComplexRoot> roots_of_unity(int n, int count) {
    std::vector<ComplexRoot> roots(static_cast<size_t>(count));
    for (int k = 0; k < count; k++) {
        const double angle = 2.0 * pi * k / n;
        roots[size_t(k)]   = {std::cos(angle), -std::sin(angle)};
    }
    return roots;
}

}  // namespace

LogMel::LogMel(int n_mels, const float * filters_, const float * window_)
    : window(n_fft),
      roots_half(roots_of_unity(n_fft / 2, n_fft / 2)),
      roots(roots_of_unity(n_fft, n_fft / 4 + 1)),
      ranges(static_cast<size_t>(n_mels)) {
    for (size_t i = 0; i < n_fft; i++) {
        window[i] = window_ ? double(window_[i]) : 0.5 - 0.5 * std::cos(2.0 * pi * static_cast<double>(i) / n_fft);
    }
    if (filters_) {
        filters.resize(ranges.size() * n_bins);
        for (size_t mel = 0; mel < ranges.size(); mel++) {
            for (size_t bin = 0; bin < n_bins; bin++) {
                filters[mel * n_bins + bin] = filters_[bin * ranges.size() + mel];
            }
        }
    } else {
        filters = slaney_filters(n_mels);
    }
    for (size_t mel = 0; mel < ranges.size(); mel++) {
        const float * const filter = filters.data() + mel * n_bins;
        const auto          is_set = [](float weight) { return weight != 0.0f; };
        const float * const first  = std::find_if(filter, filter + n_bins, is_set);
        const float *       end    = filter + n_bins;
        while (end > first && !is_set(end[-1])) {
            end--;
        }
        ranges[mel] = {static_cast<int>(first - filter), static_cast<int>(end - first)};
    }
}

LogMelTables LogMel::tables() const {
    return {window.data(),  roots_half.data(), roots.data(),
            filters.data(), ranges.data(),     static_cast<int64_t>(ranges.size())};
}

namespace {

constexpr int64_t block_frames = 256;  // that are computed at once; so many in any case

// x = high + low, where high has 11 bits: what the tensor cores of GPUs take of a float at the most. A product of two
// numbers is then the sum of three exact ones, and quiet bins are not lost beside loud ones.
float high_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    bits &= 0xffffe000u;
    std::memcpy(&x, &bits, sizeof(bits));
    return x;
}

// Kernels::log_mel by ggml's operations in F32: the Fourier transform as a product with the window's cosines and sines. A
// frame's numbers do not depend on how many are asked for.
class DeviceLogMel final : public FrontEnd {
public:
    DeviceLogMel(const LogMel & log_mel, int n_mels, Compute & compute);

    void frames(const float * samples, int64_t n_samples, int64_t first, int64_t count, float * out) override;

private:
    Compute &               compute;
    int                     n_mels;
    ggml_context_ptr        context;
    ggml_backend_buffer_ptr buffer;
    ggml_tensor *           waves   = nullptr;  // F32 [3 n_fft, 2 n_bins]
    ggml_tensor *           filters = nullptr;  // F32 [n_bins, n_mels]
    Workspace               workspace;
    Graph                   graph;
    ggml_tensor *           input  = nullptr;  // F32 [3 n_fft, frames of a block]
    ggml_tensor *           output = nullptr;  // F32 [n_mels, frames of a block]
    std::vector<float>      held;
};

class HostLogMel final : public FrontEnd {
public:
    HostLogMel(const LogMel & log_mel, const Kernels & kernels_) : tables(log_mel.tables()), kernels(kernels_) {}

    void frames(const float * samples, int64_t n_samples, int64_t first, int64_t count, float * out) override {
        kernels.log_mel(tables, samples, n_samples, first, count, out);
    }

private:
    LogMelTables    tables;
    const Kernels & kernels;
};

DeviceLogMel::DeviceLogMel(const LogMel & log_mel, int n_mels_, Compute & compute_)
    : compute(compute_), n_mels(n_mels_), workspace(compute_, 64, nullptr), graph("log-mel", 64) {
    constexpr int n = LogMel::n_fft, bins = LogMel::n_bins;
    context = new_context(2);
    waves   = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, 3 * n, 2 * bins);
    filters = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, bins, n_mels);
    buffer  = allocate(context.get(), ggml_backend_get_default_buffer_type(compute.backend()));
    if (!buffer) {
        throw no_memory(compute.device, "the log-mel matrices", "");
    }
    std::vector<float> rows(static_cast<size_t>(3 * n * 2 * bins));  // each: high, low, high
    for (int k = 0; k < 2 * bins; k++) {
        float * const row = rows.data() + k * 3 * n;
        for (int i = 0; i < n; i++) {
            const double angle = 2.0 * pi * (static_cast<int64_t>(k % bins) * i % n) / n;
            const double wave  = log_mel.window_of()[size_t(i)] * (k < bins ? std::cos(angle) : std::sin(angle));
            row[i] = row[2 * n + i] = high_of(static_cast<float>(wave));
            row[n + i]              = static_cast<float>(wave - double(row[i]));
        }
    }
    set(waves, rows.data());
    set(filters, log_mel.filters_of().data());

    ggml_context * ctx     = graph.ctx();
    input                  = graph.input(GGML_TYPE_F32, 3 * n, block_frames);
    ggml_tensor * spectrum = ggml_mul_mat(ctx, waves, input);  // [2 bins, frames]
    ggml_prec_set_acc(spectrum, GGML_PREC_F32);
    spectrum         = ggml_sqr(ctx, spectrum);
    const auto part_ = [&](int64_t part) {
        return ggml_cont(ctx, ggml_view_2d(ctx, spectrum, bins, block_frames, spectrum->nb[1],
                                           static_cast<size_t>(part * bins) * sizeof(float)));
    };
    ggml_tensor * power = ggml_mul_mat(ctx, filters, ggml_add(ctx, part_(0), part_(1)));
    ggml_prec_set_acc(power, GGML_PREC_F32);
    power  = ggml_clamp(ctx, power, 1e-10f, std::numeric_limits<float>::max());
    output = ggml_scale(ctx, ggml_log(ctx, power), static_cast<float>(1.0 / std::log(10.0)));
    graph.output(output);
    workspace.place(graph);
}

void DeviceLogMel::frames(const float * samples, int64_t n_samples, int64_t first, int64_t count, float * out) {
    constexpr int64_t n = LogMel::n_fft;
    held.assign(static_cast<size_t>(3 * n * block_frames), 0.0f);
    for (int64_t t = first; t < first + count; t += block_frames) {
        for (int64_t frame = 0; frame < std::min(block_frames, first + count - t); frame++) {
            float * const row = held.data() + frame * 3 * n;  // high, high, low
            for (int64_t i = 0; i < n; i++) {
                int64_t at = (t + frame) * LogMel::hop - LogMel::pad + i;
                at         = at < 0 ? -at : at;
                at         = at >= n_samples ? 2 * (n_samples - 1) - at : at;
                row[i] = row[n + i] = high_of(samples[at]);
                row[2 * n + i]      = samples[at] - row[i];
            }
        }
        set(input, held.data());
        workspace.run(graph);
        ggml_backend_tensor_get(
            output, out + (t - first) * n_mels, 0,
            static_cast<size_t>(std::min(block_frames, first + count - t) * n_mels) * sizeof(float));
    }
}

}  // namespace

std::unique_ptr<FrontEnd> make_front_end(const LogMel & log_mel, int n_mels, Compute & compute) {
    if (compute.arithmetic.kernels) {
        return std::make_unique<HostLogMel>(log_mel, *compute.arithmetic.kernels);
    }
    return std::make_unique<DeviceLogMel>(log_mel, n_mels, compute);
}

}  // namespace pcr
