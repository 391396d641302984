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

    // Of a clip of so many samples.
    int64_t frame_count(int64_t n_samples) const {
        return n_samples > 0 ? LogMel::frame_count(std::max(n_samples, padded_samples)) : 0;
    }
    // The fewest samples that a clip may have.
    int64_t min_samples() const { return padded_samples > 0 ? 1 : LogMel::min_samples; }
    bool    ends_text(int32_t token) const {
        return std::find(end_tokens.begin(), end_tokens.end(), token) != end_tokens.end();
    }

    WeightStore        store;
    const Device &     device;
    const Arithmetic & arithmetic;
    std::string        architecture, name;

    // The parts, which the model's family (families/family.h) fills in.
    LogMel           log_mel;
    int64_t          padded_samples = 0;  // shorter clips are padded with silence; at least LogMel::min_samples, or 0
    EncoderWeights   encoder;
    ProjectorWeights projector;
    DecoderWeights   decoder;
    Alignment        alignment;
    Tokenizer        tokenizer;
    std::vector<int32_t> end_tokens;  // each of which ends a text; the first is told
    // language: its English name; context: what the audio may be about. Both can be null. An
    // Error(PCR_ERROR_UNSUPPORTED) for what the model does not take.
    std::function<Prompt(const char * language, const char * context)> prompt;

private:
    mutable std::unique_ptr<Screen> head_screen;
};

}  // namespace pcr
