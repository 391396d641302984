#include "device/arithmetic.h"

namespace pcr {

Arithmetic Arithmetic::choose(const Device & device, const std::string & precision, const std::string & wanted) {
    Arithmetic  how;
    std::string names;
    if (!device.is_cpu() || wanted == "operations") {
        if (precision != "auto" || (wanted != "auto" && wanted != "operations")) {
            throw Error(PCR_ERROR_DEVICE, "the device '" + device.name + "' computes with precision 'auto' only");
        }
        how.products = false;
        return how;
    }
    for (const Kernels * kernels : usable_kernels()) {
        names += (names.empty() ? "'" : ", '") + std::string(kernels->name) + "'";
        if (wanted == "auto" || wanted == "ggml" || wanted == kernels->name) {
            how.kernels = kernels;
        }
    }
    if (!how.kernels) {
        throw Error(PCR_ERROR_ARGUMENT, "there are no kernels '" + wanted + "' here: give 'auto', 'ggml', " + names);
    }
    how.products    = wanted != "ggml";
    const bool bf16 = how.products && how.kernels->bf16;
    if (precision == "bf16" && !bf16) {
        throw Error(PCR_ERROR_DEVICE, how.products ? "this processor has no BF16 instructions: use precision "
                                                     "'auto' or 'f32'"
                                                   : "ggml's kernels compute with precision 'auto' only");
    }
    if (precision == "f32" && !how.products) {
        throw Error(PCR_ERROR_DEVICE, "ggml's kernels compute with precision 'auto' only");
    }
    if (precision != "auto" && precision != "f32" && precision != "bf16") {
        throw Error(PCR_ERROR_ARGUMENT, "precision is '" + precision + "': give 'auto', 'f32' or 'bf16'");
    }
    how.exact = precision == "f32";
    how.type =
        precision == "bf16" || (bf16 && !how.exact && bf16_pays(*how.kernels)) ? ComputeType::bf16 : ComputeType::f32;
    // Else in 8-bit integers: ours where we have them, or ggml's.
    how.quantised = how.exact || (bf16 && how.kernels->tiles) || !how.kernels->int8_gemm;
    return how;
}

}  // namespace pcr
