// A loaded model: its sizes, its weights where the device can read them, its vocabulary. Immutable.
#pragma once

#include "device/graph.h"
#include "mel.h"
#include "nn/weight_store.h"
#include "tokenizer.h"

#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace pcr {

struct Screen;

class Model;

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

    WeightStore          store;
    const Device &       device;
    const Arithmetic &   arithmetic;
    std::string          name;
    EncoderWeights       encoder;
    DecoderWeights       decoder;
    LogMel               log_mel;
    Tokenizer            tokenizer;
    std::vector<int32_t> prompt_before, prompt_after;  // tokens before the audio rows, and after them
    int32_t              eos_token = 0;

private:
    mutable std::unique_ptr<Screen> head_screen;
};

}  // namespace pcr
