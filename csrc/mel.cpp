#include "mel.h"

#include <algorithm>
#include <cmath>

namespace pcr {

namespace {

constexpr double pi = 3.141592653589793238462643383279502884;

using Complex = std::complex<double>;

// Plain arithmetic: operator* of std::complex checks for infinities on every product.
inline Complex times(Complex a, Complex b) {
    return {a.real() * b.real() - a.imag() * b.imag(), a.real() * b.imag() + a.imag() * b.real()};
}

constexpr int half_size = LogMel::n_fft / 2;  // 200 = 5 * 5 * 4 * 2
constexpr int radices[] = {5, 5, 4, 2};

// Discrete Fourier transform of in[0], in[stride], ..., n of them, by decimation in time (Cooley and Tukey 1965).
// roots: exp(-2 pi i k / 200).
void fft(const Complex * in, Complex * out, int n, int stride, const int * radix, const Complex * roots) {
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
            part[j] = times(out[k + j * m], roots[j * k * stride]);
        }
        for (int q = 0; q < r; q++) {
            Complex sum = part[0];
            for (int j = 1; j < r; j++) {
                sum += times(part[j], roots[(j * q * m * stride) % half_size]);
            }
            out[k + q * m] = sum;
        }
    }
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

// Power spectrum of 400 real values: one complex transform of 200 (even samples real, odd ones imaginary), untangled.
void LogMel::power(const double * frame, double * bins) const {
    Complex packed[half_size], spectrum[half_size];
    for (int i = 0; i < half_size; i++) {
        packed[i] = {frame[2 * i], frame[2 * i + 1]};
    }
    fft(packed, spectrum, half_size, 1, radices, roots_half.data());
    for (int k = 0; k <= half_size / 2; k++) {
        const Complex a = spectrum[k], b = std::conj(spectrum[(half_size - k) % half_size]);
        const Complex even  = 0.5 * (a + b);
        const Complex odd   = times(roots[size_t(k)], times(Complex(0.0, -0.5), a - b));
        bins[k]             = std::norm(even + odd);
        bins[half_size - k] = std::norm(even - odd);
    }
}

void LogMel::frames(const float * samples, int64_t n_samples, int64_t first, int64_t count, float * out) const {
    double frame[n_fft], bins[n_bins];
    for (int64_t t = first; t < first + count; t++) {
        const int64_t start = t * hop - pad;
        for (int i = 0; i < n_fft; i++) {
            int64_t at = start + i;
            at         = at < 0 ? -at : at;
            at         = at >= n_samples ? 2 * (n_samples - 1) - at : at;
            frame[i]   = window[size_t(i)] * double(samples[at]);
        }
        power(frame, bins);
        for (const Filter & mel : mels) {
            double sum = 0.0;
            for (size_t i = 0; i < mel.weights.size(); i++) {
                sum += double(mel.weights[i]) * bins[size_t(mel.first) + i];
            }
            *out++ = static_cast<float>(std::log10(std::max(sum, 1e-10)));
        }
    }
}

}  // namespace pcr
