#include "device/importance.h"

#include "ggml-backend.h"

#include <algorithm>
#include <iterator>

namespace pcr {

bool Importance::wants(const ggml_tensor * node) {
    // Kernels of convolutions are multiplied with reshaped, under another name; they are not quantised.
    return node->op == GGML_OP_MUL_MAT && node->src[0]->op == GGML_OP_NONE && node->src[0]->name[0] != '\0';
}

void Importance::add(const ggml_tensor * product) {
    const ggml_tensor * x    = product->src[1];  // F32 [columns, rows]
    const char *        name = product->src[0]->name;
    auto found = std::find_if(entries.begin(), entries.end(), [name](const Entry & e) { return e.name == name; });
    if (found == entries.end()) {
        entries.push_back({name, std::vector<double>(static_cast<size_t>(x->ne[0])), 0});
        found = std::prev(entries.end());
    }
    std::vector<float> values(static_cast<size_t>(ggml_nelements(x)));
    ggml_backend_tensor_get(x, values.data(), 0, ggml_nbytes(x));
    for (size_t i = 0; i < values.size(); i++) {
        found->energies[i % found->energies.size()] += double(values[i]) * double(values[i]);
    }
    found->rows += ggml_nrows(x);
}

}  // namespace pcr
