#include "mel.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed among this file's own functions only

namespace pcr {

namespace {

constexpr double pi = 3.141592653589793238462643383279502884;

// Eight frames at once, one in each lane of a vector (GCC's and Clang's): a frame's numbers do not depend on the others.
constexpr int   lanes = 8;
typedef double  D __attribute__((vector_size(8 * lanes)));
typedef int64_t I __attribute__((vector_size(8 * lanes)));

struct Complex {
    D re, im;
};

// A root of unity times z.
inline Complex times(std::complex<double> root, const Complex & z) {
    return {root.real() * z.re - root.imag() * z.im, root.real() * z.im + root.imag() * z.re};
}

constexpr int half_size = LogMel::n_fft / 2;  // 200 = 5 * 5 * 4 * 2
constexpr int radices[] = {5, 5, 4, 2};

// Discrete Fourier transform of in[0], in[stride], ..., n of them, by decimation in time (Cooley and Tukey 1965).
// roots: exp(-2 pi i k / 200).
void fft(const Complex * in, Complex * out, int n, int stride, const int * radix, const std::complex<double> * roots) {
    const int r = *radix, m = n / r;
    if (m == 1) {
        for (int j = 0; j < r; j++) {
            out[j] = in[j * stride];
        }
    } else {
        for (int j = 0; j < r; j++) {
            fft(in + j * stride, out + j * m, m, stride * r, radix + 1, roots);
        }
    }
    // Combine: out[k + q m] = sum_j exp(-2 pi i j (k + q m) / n) part_j[k]; roots step by 200 / n = stride.
    Complex part[5];
    for (int k = 0; k < m; k++) {
        part[0] = out[k];
        for (int j = 1; j < r; j++) {
            part[j] = times(roots[j * k * stride], out[k + j * m]);
        }
        for (int q = 0; q < r; q++) {
            Complex sum = part[0];
            for (int j = 1; j < r; j++) {
                const Complex term = times(roots[(j * q * m * stride) % half_size], part[j]);
                sum.re += term.re;
                sum.im += term.im;
            }
            out[k + q * m] = sum;
        }
    }
}

// x > 0, normal. log10(2^e m) with m in sqrt(1/2) .. sqrt(2) by the series of 2 artanh((m - 1) / (m + 1)): within 1e-15.
inline D log10_of(D x) {
    const I bits     = (I)x;
    const I above    = (bits & 0xfffffffffffffLL) > 0x6a09e667f3bcdLL;  // the fraction of sqrt(2)
    const I exponent = (bits >> 52) - 1023 - above;                     // a comparison's true is -1
    const D m        = (D)((bits & 0xfffffffffffffLL) | ((1023 + above) << 52));
    const D s = (m - 1.0) / (m + 1.0), q = s * s;
    D       series = q * (1.0 / 21.0) + 1.0 / 19.0;
    for (int k = 17; k >= 1; k -= 2) {
        series = series * q + 1.0 / k;
    }
    return (__builtin_convertvector(exponent, D) * 0.69314718055994530942 + 2.0 * s * series) * 0.43429448190325182765;
}

// Slaney's mel scale: linear below 1000 Hz, logarithmic above (Auditory Toolbox, 1998).
double hertz_to_mel(double f) {
    return f < 1000.0 ? f * 3.0 / 200.0 : 15.0 + std::log(f / 1000.0) * 27.0 / std::log(6.4);
}

double mel_to_hertz(double m) {
    return m < 15.0 ? m * 200.0 / 3.0 : 1000.0 * std::exp((m - 15.0) * std::log(6.4) / 27.0);
}

// Triangles of equal area between n_mels + 2 points, equally spaced in mel: [n_bins][n_mels].
std::vector<float> slaney_filters(int n_mels) {
    const double        top = LogMel::sample_rate / 2.0;
    std::vector<double> edges(static_cast<size_t>(n_mels) + 2);
    for (size_t i = 0; i < edges.size(); i++) {
        edges[i] = mel_to_hertz(hertz_to_mel(top) * static_cast<double>(i) / (n_mels + 1));
    }
    std::vector<float> filters(static_cast<size_t>(LogMel::n_bins) * static_cast<size_t>(n_mels));
    for (int bin = 0; bin < LogMel::n_bins; bin++) {
        const double f = top * bin / (LogMel::n_bins - 1);
        for (int mel = 0; mel < n_mels; mel++) {
            const double low = edges[size_t(mel)], middle = edges[size_t(mel) + 1], high = edges[size_t(mel) + 2];
            const double height = std::max(0.0, std::min((f - low) / (middle - low), (high - f) / (high - middle)));
            filters[static_cast<size_t>(bin) * size_t(n_mels) + size_t(mel)] =
                static_cast<float>(height * 2.0 / (high - low));
        }
    }
    return filters;
}

}  // namespace

LogMel::LogMel(int n_mels, const float * filters, const float * window_) {
    window.resize(n_fft);
    for (size_t i = 0; i < n_fft; i++) {
        window[i] = window_ ? double(window_[i]) : 0.5 - 0.5 * std::cos(2.0 * pi * static_cast<double>(i) / n_fft);
    }

    std::vector<float> slaney;
    if (!filters) {
        slaney  = slaney_filters(n_mels);
        filters = slaney.data();
    }
    mels.resize(static_cast<size_t>(n_mels));
    for (size_t mel = 0; mel < mels.size(); mel++) {
        int first = 0, last = -1;
        for (int bin = 0; bin < n_bins; bin++) {
            if (filters[static_cast<size_t>(bin) * mels.size() + mel] != 0.0f) {
                first = last < 0 ? bin : first;
                last  = bin;
            }
        }
        mels[mel].first = first;
        for (int bin = first; bin <= last; bin++) {
            mels[mel].weights.push_back(filters[static_cast<size_t>(bin) * mels.size() + mel]);
        }
    }

    roots_half.resize(half_size);
    for (int k = 0; k < half_size; k++) {
        roots_half[size_t(k)] = std::polar(1.0, -2.0 * pi * k / half_size);
    }
    roots.resize(half_size / 2 + 1);
    for (int k = 0; k <= half_size / 2; k++) {
        roots[size_t(k)] = std::polar(1.0, -2.0 * pi * k / n_fft);
    }
}

void LogMel::frames(const float * samples, int64_t n_samples, int64_t first, int64_t count, float * out) const {
    D       frame[n_fft], bins[n_bins];
    Complex packed[half_size], spectrum[half_size];
    for (int64_t t = first; t < first + count; t += lanes) {
        const int64_t n = std::min<int64_t>(lanes, first + count - t);
        for (int64_t lane = 0; lane < lanes; lane++) {
            const int64_t start = (t + std::min(lane, n - 1)) * hop - pad;  // the last frame stands for those beyond it
            if (start >= 0 && start + n_fft <= n_samples) {
                for (int i = 0; i < n_fft; i++) {
                    frame[i][lane] = window[size_t(i)] * double(samples[start + i]);
                }
                continue;
            }
            for (int i = 0; i < n_fft; i++) {
                int64_t at     = start + i;
                at             = at < 0 ? -at : at;
                at             = at >= n_samples ? 2 * (n_samples - 1) - at : at;
                frame[i][lane] = window[size_t(i)] * double(samples[at]);
            }
        }

        // Power spectrum of 400 real values: one complex transform of 200 (even samples real, odd ones imaginary),
        // untangled.
        for (int i = 0; i < half_size; i++) {
            packed[i] = {frame[2 * i], frame[2 * i + 1]};
        }
        fft(packed, spectrum, half_size, 1, radices, roots_half.data());
        for (int k = 0; k <= half_size / 2; k++) {
            const Complex & a       = spectrum[k];
            const Complex & b       = spectrum[(half_size - k) % half_size];  // to be conjugated
            const D         even_re = 0.5 * (a.re + b.re), even_im = 0.5 * (a.im - b.im);
            const Complex   odd     = times(roots[size_t(k)], {0.5 * (a.im + b.im), 0.5 * (b.re - a.re)});
            const D         plus_re = even_re + odd.re, plus_im = even_im + odd.im;
            const D         minus_re = even_re - odd.re, minus_im = even_im - odd.im;
            bins[k]             = plus_re * plus_re + plus_im * plus_im;
            bins[half_size - k] = minus_re * minus_re + minus_im * minus_im;
        }

        for (size_t m = 0; m < mels.size(); m++) {
            const Filter & mel = mels[m];
            D              sum = {};
            for (size_t i = 0; i < mel.weights.size(); i++) {
                sum += double(mel.weights[i]) * bins[size_t(mel.first) + i];
            }
            // A sum that is not a number becomes the floor: !(x > floor).
            const I above = sum > 1e-10;
            const D power = (D)(((I)sum & above) | ((I)(D{} + 1e-10) & ~above));
            const D value = log10_of(power);
            for (int64_t lane = 0; lane < n; lane++) {
                out[(t - first + lane) * static_cast<int64_t>(mels.size()) + static_cast<int64_t>(m)] =
                    static_cast<float>(value[lane]);
            }
        }
    }
}

std::vector<float> LogMel::filters_of() const {
    std::vector<float> all(mels.size() * n_bins);
    for (size_t m = 0; m < mels.size(); m++) {
        std::copy(mels[m].weights.begin(), mels[m].weights.end(),
                  all.begin() + static_cast<std::ptrdiff_t>(m * n_bins) + mels[m].first);
    }
    return all;
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

// LogMel::frames by ggml's operations in F32: the Fourier transform as a product with the window's cosines and sines. A
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
    explicit HostLogMel(const LogMel & log_mel_) : log_mel(log_mel_) {}

    void frames(const float * samples, int64_t n_samples, int64_t first, int64_t count, float * out) override {
        log_mel.frames(samples, n_samples, first, count, out);
    }

private:
    const LogMel & log_mel;
};

DeviceLogMel::DeviceLogMel(const LogMel & log_mel, int n_mels_, Compute & compute_)
    : compute(compute_), n_mels(n_mels_), workspace(compute_, 64, nullptr), graph("log-mel", 64) {
    constexpr int n = LogMel::n_fft, bins = LogMel::n_bins;
    context.reset(ggml_init({ggml_tensor_overhead() * 2, nullptr, /*.no_alloc =*/true}));
    if (!context) {
        throw std::bad_alloc();
    }
    waves   = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, 3 * n, 2 * bins);
    filters = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, bins, n_mels);
    buffer.reset(ggml_backend_alloc_ctx_tensors(context.get(), compute.backend()));
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
        return std::make_unique<HostLogMel>(log_mel);
    }
    return std::make_unique<DeviceLogMel>(log_mel, n_mels, compute);
}

}  // namespace pcr
