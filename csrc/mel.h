// Log-mel spectrogram: 16 kHz samples -> frames of n_mels values, 100 a second. WhisperFeatureExtractor's arithmetic
// (transformers) without its padding to 30 s.
#pragma once

#include "device/graph.h"

#include <complex>
#include <cstdint>
#include <memory>
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

    // The same numbers as matrices, for a device. window_of: [n_fft]. filters_of: [n_mels][n_bins].
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

// Where a session computes its frames.
class FrontEnd {
public:
    virtual ~FrontEnd() = default;

    // As LogMel::frames.
    virtual void frames(const float * samples, int64_t n_samples, int64_t first, int64_t count, float * out) = 0;
};

// In double precision on the CPU; on another device by its own operations.
std::unique_ptr<FrontEnd> make_front_end(const LogMel & log_mel, int n_mels, Compute & compute);

}  // namespace pcr
