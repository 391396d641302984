// The weights of a model file where a device can read them: mapped, for the CPU; copies of them, for other devices.
#pragma once

#include "device/arithmetic.h"
#include "gguf_file.h"
#include "nn/weights.h"

#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

namespace pcr {

class WeightStore {
public:
    WeightStore(const std::string & path, bool map, const Device & device, const Arithmetic & arithmetic);

    // Weights by name; the shape is ggml's (fastest first), checked together with the type.
    ggml_tensor * vector(const std::string & name, int64_t n);
    ggml_tensor * matrix(const std::string & name, int64_t in, int64_t out);
    Norm          norm(const std::string & name, int64_t n, bool bias);
    Linear        linear(const std::string & name, int64_t in, int64_t out, bool bias);
    Conv          conv(const std::string & name, int64_t in, int64_t out);
    Conv          conv_1d(const std::string & name, int64_t in, int64_t out);
    // F32 values as they lie in the file.
    const float * values(const std::string & name, std::initializer_list<int64_t> shape);
    // A matrix in F32, whatever it is in the file.
    std::vector<float> unpacked(const std::string & name, int64_t in, int64_t out);

    // Brings the weights that were asked for to the device, some at a time, so that the file's pages need not stay in
    // memory.
    void fill_device();

    // A table [columns, rows] that is computed at load.
    ggml_tensor * table(const std::vector<float> & content, int64_t columns, int64_t rows);

    // Copies a row of a weight of the file, without bringing its neighbours into memory.
    void read_row(const ggml_tensor * weight, int64_t row, void * out) const {
        file.read(static_cast<const uint8_t *>(weight->data) + static_cast<size_t>(row) * weight->nb[1], weight->nb[1],
                  out);
    }

    // Gives back the memory that a weight of the file takes.
    void release(const ggml_tensor * weight) const {
        file.release(static_cast<const uint8_t *>(weight->data), ggml_nbytes(weight));
    }

    // As FileBytes', where the weights are those of the file itself.
    void require_unchanged() const {
        if (arithmetic.kernels) {
            file.require_unchanged();
        }
    }

    const GgufFile   file;
    const Device     device;
    const Arithmetic arithmetic;
    uint64_t         weight_bytes = 0;  // of the tensors in use
    uint64_t         parameters   = 0;

private:
    ggml_tensor * weight(const std::string & name, std::initializer_list<int64_t> shape);

    // A weight of the file where it is computed with: a copy on a device, in its own type or one that the device has.
    ggml_tensor * placed(ggml_tensor * weight);

    ggml_backend_buffer_ptr                                    mapped;  // the file's weights
    ggml_context_ptr                                           device_context;  // their copies, ...
    ggml_backend_buffer_ptr                                    device_buffer;
    std::vector<std::pair<const ggml_tensor *, ggml_tensor *>> copies;  // ... and whose they are
    ggml_context_ptr                                           table_context;
    ggml_backend_buffer_ptr                                    table_buffer;
};

}  // namespace pcr
