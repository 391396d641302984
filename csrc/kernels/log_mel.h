// Log-mel frames in double precision.
#pragma once

#include "kernels/kernels.h"
#include "kernels/simd.h"

#include <algorithm>

namespace pcr {

namespace {

// A frame in each lane of a register: its numbers do not depend on the others.
constexpr int   mel_lanes = lanes / 2;  // longer vectors go lane by lane, as in simd.h
typedef double  Doubles __attribute__((vector_size(8 * mel_lanes)));
typedef int64_t Words __attribute__((vector_size(8 * mel_lanes)));

struct Complex {
    Doubles re, im;
};

// A root of unity times z.
inline Complex times(const ComplexRoot & root, const Complex & z) {
    return {root.re * z.re - root.im * z.im, root.re * z.im + root.im * z.re};
}

constexpr int fft_half  = LogMelTables::n_fft / 2;  // 200 = 5 * 5 * 4 * 2
constexpr int radices[] = {5, 5, 4, 2};

// Discrete Fourier transform of in[0], in[stride], ..., n of them, by decimation in time (Cooley and Tukey 1965).
// roots: exp(-2 pi i k / 200).
void fft(const Complex * in, Complex * out, int n, int stride, const int * radix, const ComplexRoot * roots) {
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
                const Complex term = times(roots[(j * q * m * stride) % fft_half], part[j]);
                sum.re += term.re;
                sum.im += term.im;
            }
            out[k + q * m] = sum;
        }
    }
}

// x > 0, normal. log10(2^e m) with m in sqrt(1/2) .. sqrt(2) by the series of 2 artanh((m - 1) / (m + 1)): within 1e-15.
inline Doubles log10_of(Doubles x) {
    const Words   bits     = (Words)x;
    const Words   above    = (bits & 0xfffffffffffffLL) > 0x6a09e667f3bcdLL;  // the fraction of sqrt(2)
    const Words   exponent = (bits >> 52) - 1023 - above;                     // a comparison's true is -1
    const Doubles m        = (Doubles)((bits & 0xfffffffffffffLL) | ((1023 + above) << 52));
    const Doubles s = (m - 1.0) / (m + 1.0), q = s * s;
    Doubles       series = q * (1.0 / 21.0) + 1.0 / 19.0;
    for (int k = 17; k >= 1; k -= 2) {
        series = series * q + 1.0 / k;
    }
    return (__builtin_convertvector(exponent, Doubles) * 0.69314718055994530942 + 2.0 * s * series) *
           0.43429448190325182765;
}

void log_mel(const LogMelTables & tables, const float * samples, int64_t n_samples, int64_t first, int64_t count,
             float * out) {
    constexpr int        n_fft = LogMelTables::n_fft, hop = LogMelTables::hop, pad = LogMelTables::pad;
    const double * const window = tables.window;
    Doubles              frame[n_fft], bins[LogMelTables::n_bins];
    Complex              packed[fft_half], spectrum[fft_half];
    for (int64_t t = first; t < first + count; t += mel_lanes) {
        const int64_t n = std::min<int64_t>(mel_lanes, first + count - t);
        for (int64_t lane = 0; lane < mel_lanes; lane++) {
            const int64_t start = (t + std::min(lane, n - 1)) * hop - pad;  // the last frame stands for those beyond it
            if (start >= 0 && start + n_fft <= n_samples) {
                for (int i = 0; i < n_fft; i++) {
                    frame[i][lane] = window[i] * double(samples[start + i]);
                }
                continue;
            }
            for (int i = 0; i < n_fft; i++) {
                int64_t at     = start + i;
                at             = at < 0 ? -at : at;
                at             = at >= n_samples ? 2 * (n_samples - 1) - at : at;
                frame[i][lane] = window[i] * double(samples[at]);
            }
        }

        // Power spectrum of 400 real values: one complex transform of 200 (even samples real, odd ones imaginary),
        // untangled.
        for (int i = 0; i < fft_half; i++) {
            packed[i] = {frame[2 * i], frame[2 * i + 1]};
        }
        fft(packed, spectrum, fft_half, 1, radices, tables.roots_half);
        for (int k = 0; k <= fft_half / 2; k++) {
            const Complex & a       = spectrum[k];
            const Complex & b       = spectrum[(fft_half - k) % fft_half];  // to be conjugated
            const Doubles   even_re = 0.5 * (a.re + b.re), even_im = 0.5 * (a.im - b.im);
            const Complex   odd     = times(tables.roots[k], {0.5 * (a.im + b.im), 0.5 * (b.re - a.re)});
            const Doubles   plus_re = even_re + odd.re, plus_im = even_im + odd.im;
            const Doubles   minus_re = even_re - odd.re, minus_im = even_im - odd.im;
            bins[k]            = plus_re * plus_re + plus_im * plus_im;
            bins[fft_half - k] = minus_re * minus_re + minus_im * minus_im;
        }

        for (int64_t m = 0; m < tables.n_mels; m++) {
            const float * const filter = tables.filters + m * LogMelTables::n_bins;
            const BinRange      range  = tables.ranges[m];
            Doubles             sum    = {};
            for (int bin = range.first; bin < range.first + range.count; bin++) {
                sum += double(filter[bin]) * bins[bin];
            }
            // A sum that is not a number becomes the floor: !(x > floor).
            const Words   above = sum > 1e-10;
            const Doubles power = (Doubles)(((Words)sum & above) | ((Words)(Doubles{} + 1e-10) & ~above));
            const Doubles value = log10_of(power);
            for (int64_t lane = 0; lane < n; lane++) {
                out[(t - first + lane) * tables.n_mels + m] = static_cast<float>(value[lane]);
            }
        }
    }
}

}  // namespace

}  // namespace pcr
