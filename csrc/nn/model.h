// A loaded model: its sizes, its weights where the device can read them, its vocabulary. Immutable.
#pragma once

#include "device/graph.h"
#include "mel.h"
#include "nn/weight_store.h"
#include "tokenizer.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace pcr {

struct Screen;

class Model;

// The tokens before a clip's audio rows, and after them.
struct Prompt {
    std::vector<int32_t> before, after;

    int64_t size() const { return static_cast<int64_t>(before.size() + after.size()); }
};

// Tokens among the audio rows that tell how late it is: marker k = 1, 2, ... says k * seconds, in front of audio row
// k * rows(). A clip has those whose time lies within it, of which the last can stand behind all its rows.
class TimeMarkers {
public:
    TimeMarkers() = default;
    // So many seconds apart, as far as max_positions reach; 0: none.
    TimeMarkers(const Tokenizer & tokenizer, int32_t seconds, double rows_per_second, int64_t max_positions);

    bool    empty() const { return ends.empty(); }
    int64_t rows() const { return apart; }
    // Of a clip of so many rows in all.
    int64_t count(int64_t n_rows) const;
    // In front of one of a clip's first n_rows rows.
    int64_t before(int64_t n_rows) const { return empty() || n_rows <= 0 ? 0 : (n_rows - 1) / apart; }
    // Tokens of the first k markers.
    int64_t size(int64_t k) const { return k > 0 ? ends[static_cast<size_t>(k - 1)] : 0; }
    // Those of marker k: size(k) - size(k - 1).
    const int32_t * tokens_of(int64_t k) const { return tokens.data() + size(k - 1); }

private:
    int32_t              every      = 0;
    int64_t              apart      = 0;
    double               per_second = 0.0;
    std::vector<int32_t> tokens;
    std::vector<int64_t> ends;  // [k - 1]: where marker k's tokens end
};

// What tells when the words of a text were said, in models that write none themselves: at each place a classifier of the
// decoder's last rows chooses one of `bins` bins of time. No bins: the model has no such thing.
struct Alignment {
    Linear  classifier;       // [hidden, bins]
    int32_t bins   = 0;
    int32_t bin_ms = 0;
    int32_t place  = -1;      // the token that stands at each place
};

// A model on the device that a name means. Where "auto" tries a device that does not start, or has too little memory, the
// next one follows, with a warning in the log.
std::unique_ptr<Model> load_model(const std::string & path, bool map, const std::string & device,
                                  const std::string & precision, const std::string & kernels);

class Model {
public:
    // precision, kernels: see Arithmetic::choose.
    // map: see FileBytes.
    Model(const std::string & path, bool map, const Device & device, const std::string & precision,
          const std::string & kernels);
    ~Model();

    // The head's copy for choosing tokens (ops/screen.h), made by the first session that asks, with its threads.
    const Screen & screen(Compute & compute) const;

    // Samples of a clip with the silence that it is padded with.
    int64_t padded(int64_t n_samples) const {
        return window_samples > 0 ? (n_samples + window_samples - 1) / window_samples * window_samples
                                  : std::max(n_samples, padded_samples);
    }
    // Its frames.
    int64_t frame_count(int64_t n_samples) const { return n_samples > 0 ? LogMel::frame_count(padded(n_samples)) : 0; }
    // Its audio rows: what fills up a window gives none.
    int64_t row_count(int64_t n_samples) const {
        return encoder.rows(window_samples > 0 ? (n_samples + LogMel::hop - 1) / LogMel::hop : frame_count(n_samples));
    }
    // Positions that a clip's n_rows audio rows take in the decoder, with the markers among them.
    int64_t positions(int64_t n_rows) const { return n_rows + markers.size(markers.count(n_rows)); }
    // The fewest samples that a clip may have.
    int64_t min_samples() const { return padded(1) > 1 ? 1 : LogMel::min_samples; }
    bool    ends_text(int32_t token) const {
        return std::find(end_tokens.begin(), end_tokens.end(), token) != end_tokens.end();
    }

    WeightStore        store;
    const Device &     device;
    const Arithmetic & arithmetic;
    std::string        architecture, name;

    // The parts, which the model's family (families/family.h) fills in.
    LogMel log_mel;
    // Each window of so many samples has a spectrogram of its own, normalized by itself, and the last window is filled up
    // with silence; 0: a clip has one spectrogram.
    int64_t          window_samples = 0;
    int64_t          padded_samples = 0;  // shorter clips are padded with silence; at least LogMel::min_samples, or 0
    EncoderWeights   encoder;
    ProjectorWeights projector;
    DecoderWeights   decoder;
    Alignment        alignment;
    Tokenizer        tokenizer;
    TimeMarkers      markers;
    std::vector<int32_t> end_tokens;  // each of which ends a text; the first is told
    // language: its English name; context: what the audio may be about. Both can be null. An
    // Error(PCR_ERROR_UNSUPPORTED) for what the model does not take.
    std::function<Prompt(const char * language, const char * context)> prompt;

private:
    mutable std::unique_ptr<Screen> head_screen;
};

}  // namespace pcr
