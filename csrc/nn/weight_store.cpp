#include "nn/weight_store.h"

#include "log.h"
#include "ops/ops_cpu.h"
#include "quantize.h"

#include <algorithm>

namespace pcr {

namespace {

std::string shape_text(const int64_t * ne) {
    int n = GGML_MAX_DIMS;
    while (n > 1 && ne[n - 1] == 1) {
        n--;
    }
    std::string text = "[";
    for (int i = n - 1; i >= 0; i--) {
        text += std::to_string(ne[i]) + (i ? ", " : "]");
    }
    return text;  // as PyTorch writes it: slowest first
}

}  // namespace

WeightStore::WeightStore(const std::string & path, bool map, const Device & device_, const Arithmetic & arithmetic_)
    : file(path, map), device(device_), arithmetic(arithmetic_) {
    // For the CPU the weights stay where the file lies in memory. ggml takes a pointer to non-const but never writes to them.
    const ggml_backend_dev_t cpu = find_devices("cpu").front().handle;
    call_ggml([&] {
        mapped.reset(
            ggml_backend_dev_buffer_from_host_ptr(cpu, const_cast<void *>(file.base()), file.size(), file.size()));
    });
    if (!mapped) {
        throw Error(PCR_ERROR_DEVICE, "the CPU cannot read mapped memory");
    }
    ggml_backend_buffer_set_usage(mapped.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    if (!arithmetic.kernels) {
        device_context = new_context(file.n_tensors() + 1);
    }
}

ggml_tensor * WeightStore::placed(ggml_tensor * weight) {
    if (arithmetic.kernels) {
        return weight;
    }
    const auto known =
        std::find_if(copies.begin(), copies.end(), [weight](const auto & pair) { return pair.first == weight; });
    if (known != copies.end()) {
        return known->second;
    }
    ggml_type type = weight->type;
    if (ggml_n_dims(weight) == 2) {
        // Matrices are multiplied with, and rows of one are looked up, as they stand or as floats.
        const ggml_context_ptr trial = new_context(5);
        ggml_tensor *          like  = ggml_dup_tensor(trial.get(), weight);
        ggml_tensor *          ids   = ggml_new_tensor_1d(trial.get(), GGML_TYPE_I32, 1);
        ggml_tensor *          rows  = ggml_new_tensor_2d(trial.get(), GGML_TYPE_F32, weight->ne[0], 1);
        if (!ggml_backend_dev_supports_op(device.handle, ggml_mul_mat(trial.get(), like, rows)) ||
            !ggml_backend_dev_supports_op(device.handle, ggml_get_rows(trial.get(), like, ids))) {
            type = type == GGML_TYPE_BF16 ? GGML_TYPE_F32 : GGML_TYPE_F16;  // BF16 goes beyond F16's range
        }
    }
    ggml_tensor * copy = ggml_new_tensor(device_context.get(), type, GGML_MAX_DIMS, weight->ne);
    ggml_set_name(copy, weight->name);
    copies.emplace_back(weight, copy);
    return copy;
}

void WeightStore::fill_device() {
    if (arithmetic.kernels) {
        return;
    }
    constexpr int64_t piece = int64_t(1) << 24;  // bytes

    const CollectErrors errors;
    device_buffer = allocate(device_context.get(), ggml_backend_dev_buffer_type(device.handle));
    if (!device_buffer) {
        uint64_t bytes = 0;
        for (const auto & [weight, copy] : copies) {
            bytes += ggml_nbytes(copy);
        }
        throw no_memory(device, format("the weights (%.0f MB)", double(bytes) * 1e-6), errors.text);
    }
    ggml_backend_buffer_set_usage(device_buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    std::vector<uint8_t> converted;
    for (const auto & [weight, copy] : copies) {
        const auto * const from   = static_cast<const uint8_t *>(weight->data);
        const size_t       source = ggml_row_size(weight->type, weight->ne[0]);
        const size_t       target = ggml_row_size(copy->type, copy->ne[0]);
        const int64_t      n_rows = ggml_nrows(weight);
        const int64_t      some   = std::max<int64_t>(1, piece / static_cast<int64_t>(std::max(source, target)));
        for (int64_t row = 0; row < n_rows; row += some) {
            const int64_t         n     = std::min(some, n_rows - row);
            const uint8_t * const rows  = from + static_cast<size_t>(row) * source;
            const void *          bytes = rows;
            if (copy->type != weight->type) {
                converted.resize(static_cast<size_t>(n) * target);
                convert_rows(weight->type, rows, copy->type, converted.data(), n, weight->ne[0], nullptr, 1);
                bytes = converted.data();
            }
            ggml_backend_tensor_set(copy, bytes, static_cast<size_t>(row) * target, static_cast<size_t>(n) * target);
            file.release(rows, static_cast<size_t>(n) * source);
        }
    }
    copies.clear();
}

ggml_tensor * WeightStore::weight(const std::string & tensor_name, std::initializer_list<int64_t> shape) {
    ggml_tensor * tensor = file.find(tensor_name.c_str());
    if (!tensor) {
        throw Error(PCR_ERROR_FORMAT, "the file lacks the tensor '" + tensor_name + "'");
    }
    int64_t wanted[GGML_MAX_DIMS] = {1, 1, 1, 1};
    std::copy(shape.begin(), shape.end(), wanted);
    if (!std::equal(wanted, wanted + GGML_MAX_DIMS, tensor->ne)) {
        throw Error(PCR_ERROR_FORMAT, "the tensor '" + tensor_name + "' has shape " + shape_text(tensor->ne) +
                                          ": the metadata asks for " + shape_text(wanted));
    }
    const bool conv    = shape.size() > 2;
    const bool exact   = shape.size() == 1 || tensor_name.rfind("audio.mel_", 0) == 0;  // computed with as they stand
    const bool type_ok = exact  ? tensor->type == GGML_TYPE_F32
                         : conv ? ggml_blck_size(tensor->type) == 1 && is_matrix_type(tensor->type)
                                : is_matrix_type(tensor->type);
    if (!type_ok) {
        throw Error(PCR_ERROR_UNSUPPORTED, "the tensor '" + tensor_name + "' has type " + ggml_type_name(tensor->type) +
                                               ": " +
                                               (exact  ? "f32 is needed"
                                                : conv ? "f32, f16 or bf16 is needed"
                                                       : "it cannot be multiplied by"));
    }
    if (!tensor->buffer) {
        void * address = const_cast<uint8_t *>(file.bytes(tensor));
        if (ggml_backend_tensor_alloc(mapped.get(), tensor, address) != GGML_STATUS_SUCCESS) {
            throw Error(PCR_ERROR_DEVICE, "the tensor '" + tensor_name + "' cannot be placed in memory");
        }
        weight_bytes += ggml_nbytes(tensor);
        parameters += static_cast<uint64_t>(ggml_nelements(tensor));
    }
    return tensor;
}

ggml_tensor * WeightStore::vector(const std::string & tensor_name, int64_t n) {
    return placed(weight(tensor_name, {n}));
}

ggml_tensor * WeightStore::matrix(const std::string & tensor_name, int64_t in, int64_t out) {
    return placed(weight(tensor_name, {in, out}));
}

Norm WeightStore::norm(const std::string & tensor_name, int64_t n, bool bias) {
    return {vector(tensor_name + ".weight", n), bias ? vector(tensor_name + ".bias", n) : nullptr};
}

Linear WeightStore::linear(const std::string & tensor_name, int64_t in, int64_t out, bool bias) {
    return {matrix(tensor_name + ".weight", in, out), bias ? vector(tensor_name + ".bias", out) : nullptr};
}

Conv WeightStore::conv(const std::string & tensor_name, int64_t in, int64_t out) {
    ggml_tensor * kernel = weight(tensor_name + ".weight", {3, 3, in, out});
    return {placed(kernel), vector(tensor_name + ".bias", out), pack_conv(arithmetic, kernel)};
}

Conv WeightStore::conv_1d(const std::string & tensor_name, int64_t in, int64_t out) {
    return {placed(weight(tensor_name + ".weight", {3, in, out})), vector(tensor_name + ".bias", out), {}};
}

std::vector<float> WeightStore::unpacked(const std::string & tensor_name, int64_t in, int64_t out) {
    const ggml_tensor * const tensor = weight(tensor_name, {in, out});
    std::vector<float>        content(static_cast<size_t>(in * out));
    convert_rows(tensor->type, tensor->data, GGML_TYPE_F32, content.data(), out, in, nullptr, 1);
    return content;
}

const float * WeightStore::values(const std::string & tensor_name, std::initializer_list<int64_t> shape) {
    return static_cast<const float *>(weight(tensor_name, shape)->data);
}

ggml_tensor * WeightStore::table(const std::vector<float> & content, int64_t columns, int64_t n_rows) {
    table_context        = new_context(4);
    ggml_tensor * tensor = ggml_new_tensor_2d(table_context.get(), GGML_TYPE_F32, columns, n_rows);
    table_buffer         = allocate(table_context.get(), ggml_backend_dev_buffer_type(device.handle));
    if (!table_buffer) {
        throw no_memory(device, "the encoder's positions", "");
    }
    ggml_backend_tensor_set(tensor, content.data(), 0, content.size() * sizeof(float));
    return tensor;
}

}  // namespace pcr
