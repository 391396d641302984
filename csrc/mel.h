// Log-mel spectrogram: 16 kHz samples -> frames of n_mels values, 100 a second. WhisperFeatureExtractor's arithmetic
// (transformers) without its padding to 30 s.
#pragma once

#include "device/graph.h"

#include <complex>
#include <cstdint>
#include <vector>

namespace pcr {

class LogMel {
public:
    static constexpr int sample_rate = 16000;
    static constexpr int n_fft       = 400;
    static constexpr int n_bins      = n_fft / 2 + 1;
    static constexpr int hop         = 160;
    static constexpr int pad         = n_fft / 2;  // reflected at both ends of the clip
    static constexpr int min_samples = pad + 1;    // what reflecting needs

    LogMel() = default;

    // filters: [n_bins][n_mels]; nullptr: the Slaney bank, 0 to 8000 Hz. window: [n_fft]; nullptr: periodic Hann.
    LogMel(int n_mels, const float * filters, const float * window);

    // Frames of a clip; one whose last hop is not full is dropped.
    static int64_t frame_count(int64_t n_samples) { return n_samples / hop; }

    // log10 of the mel powers, floored at 1e-10, of frames first..first+count of a clip: [count][n_mels].
    // Frame t reads samples t*160-200 .. t*160+199, reflected where they leave the clip; n_samples >= min_samples.
    void frames(const float * samples, int64_t n_samples, int64_t first, int64_t count, float * out) const;

    // The same numbers as matrices, for DeviceLogMel. window_of: [n_fft]. filters_of: [n_mels][n_bins].
    const std::vector<double> & window_of() const { return window; }
    std::vector<float>          filters_of() const;

    // What the encoder reads, given the clip's largest log10 value: at most 8 decades below it, scaled to about -1..1.
    static float normalized(float value, float largest) {
        const float floor = largest - 8.0f;
        return ((value > floor ? value : floor) + 4.0f) / 4.0f;
    }

private:
    struct Filter {
        int                first;    // bin
        std::vector<float> weights;  // of the bins from first on
    };

    std::vector<double>               window;
    std::vector<Filter>               mels;
    std::vector<std::complex<double>> roots_half;  // exp(-2 pi i k / 200)
    std::vector<std::complex<double>> roots;       // exp(-2 pi i k / 400), k <= 100
};

// LogMel::frames on a device, by ggml's operations in F32: the Fourier transform as a product with the window's cosines and
// sines. A frame's numbers do not depend on how many are asked for.
class DeviceLogMel {
public:
    DeviceLogMel(const LogMel & log_mel, int n_mels, Compute & compute);

    void frames(const float * samples, int64_t n_samples, int64_t first, int64_t count, float * out);

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

}  // namespace pcr
