// A loaded model: its sizes, its weights where the device can read them, its vocabulary. Immutable.
#pragma once

#include "device/graph.h"
#include "gguf_file.h"
#include "mel.h"
#include "nn/weights.h"
#include "tokenizer.h"

#include <initializer_list>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace pcr {

struct Screen;

class Model;

// A model on the device that a name means. Where "auto" tries a device that does not start, or has too little memory, the
// next one follows, with a warning in the log.
std::unique_ptr<Model> load_model(const std::string & path, const std::string & device, const std::string & precision,
                                  const std::string & kernels);

class Model {
public:
    // precision, kernels: see Arithmetic::choose.
    Model(const std::string & path, const Device & device, const std::string & precision, const std::string & kernels);

    ~Model();

    // The head's copy for choosing tokens (head.h), made by the first session that asks, with its threads.
    const Screen & screen(Compute & compute) const;

    // Copies a row of a weight of the file, without bringing its neighbours into memory.
    void read_row(const ggml_tensor * weight, int64_t row, void * out) const {
        file.read(static_cast<const uint8_t *>(weight->data) + static_cast<size_t>(row) * weight->nb[1], weight->nb[1],
                  out);
    }

    // Gives back the memory that a weight of the file takes.
    void release(const ggml_tensor * weight) const {
        file.release(static_cast<const uint8_t *>(weight->data), ggml_nbytes(weight));
    }

    // The prompt: tokens before the audio rows, tokens after them.
    std::vector<int32_t> prompt_before, prompt_after;

    const Device     device;
    const Arithmetic arithmetic;
    std::string      name;
    EncoderWeights   encoder{};
    DecoderWeights   decoder{};
    LogMel           log_mel;
    Tokenizer        tokenizer;
    int32_t          eos_token    = 0;
    uint64_t         file_bytes   = 0;
    uint64_t         weight_bytes = 0;
    uint64_t         parameters   = 0;

private:
    void load_encoder();
    void load_decoder();
    void load_log_mel();
    void load_vocabulary();
    void make_positions();

    // Weights by name; the shape is ggml's (fastest first), checked together with the type.
    ggml_tensor * vector(const std::string & name, int64_t n);
    ggml_tensor * matrix(const std::string & name, int64_t in, int64_t out);
    Norm          norm(const std::string & name, int64_t n, bool bias);
    Linear        linear(const std::string & name, int64_t in, int64_t out, bool bias);
    ggml_tensor * weight(const std::string & name, std::initializer_list<int64_t> shape);

    // A weight of the file where it is computed with: a copy on a device, in its own type or one that the device has.
    ggml_tensor * placed(ggml_tensor * weight);
    void          fill_device();

    GgufFile                                                   file;
    ggml_backend_buffer_ptr                                    mapped;  // the file's weights
    ggml_context_ptr                                           device_context;  // their copies, ...
    ggml_backend_buffer_ptr                                    device_buffer;
    std::vector<std::pair<const ggml_tensor *, ggml_tensor *>> copies;  // ... and whose they are
    ggml_context_ptr                                           computed_context;  // what is computed once at load
    ggml_backend_buffer_ptr                                    computed;

    mutable std::mutex              screen_mutex;
    mutable std::unique_ptr<Screen> head_screen;
};

}  // namespace pcr
