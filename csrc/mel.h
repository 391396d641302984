// Log-mel spectrogram: 16 kHz samples -> frames of n_mels values, 100 a second. WhisperFeatureExtractor's arithmetic
// (transformers) without its padding to 30 s.
#pragma once

#include "device/graph.h"

#include <cstdint>
#include <memory>
#include <vector>

namespace pcr {

class LogMel {
public:
    static constexpr int sample_rate = LogMelTables::sample_rate;
    static constexpr int n_fft       = LogMelTables::n_fft;
    static constexpr int n_bins      = LogMelTables::n_bins;
    static constexpr int hop         = LogMelTables::hop;
    static constexpr int pad         = LogMelTables::pad;
    static constexpr int min_samples = pad + 1;  // what reflecting needs

    LogMel() = default;

    // filters: [n_bins][n_mels]; nullptr: the Slaney bank, 0 to 8000 Hz. window: [n_fft]; nullptr: periodic Hann.
    LogMel(int n_mels, const float * filters, const float * window);

    // Frames of a clip; one whose last hop is not full is dropped.
    static int64_t frame_count(int64_t n_samples) { return n_samples / hop; }

    // What Kernels::log_mel reads; valid as long as this LogMel.
    LogMelTables tables() const;

    // The same numbers as matrices, for a device. window_of: [n_fft]. filters_of: [n_mels][n_bins].
    const std::vector<double> & window_of() const { return window; }
    const std::vector<float> &  filters_of() const { return filters; }

    // What the encoder reads, given the clip's largest log10 value: at most 8 decades below it, scaled to about -1..1.
    static float normalized(float value, float largest) {
        const float floor = largest - 8.0f;
        return ((value > floor ? value : floor) + 4.0f) / 4.0f;
    }

private:
    std::vector<double>      window;
    std::vector<ComplexRoot> roots_half;
    std::vector<ComplexRoot> roots;
    std::vector<float>       filters;  // [n_mels][n_bins]
    std::vector<BinRange>    ranges;
};

// Where a session computes its frames.
class FrontEnd {
public:
    virtual ~FrontEnd() = default;

    // As Kernels::log_mel.
    virtual void frames(const float * samples, int64_t n_samples, int64_t first, int64_t count, float * out) = 0;
};

// In double precision on the CPU; on another device by its own operations.
std::unique_ptr<FrontEnd> make_front_end(const LogMel & log_mel, int n_mels, Compute & compute);

}  // namespace pcr
