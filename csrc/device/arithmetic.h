// What a model is computed in: which kernels, and how exactly.
#pragma once

#include "device/devices.h"
#include "kernels/kernels.h"

#include <string>

namespace pcr {

// How products are computed.
struct Arithmetic {
    const Kernels * kernels   = nullptr;      // ours
    ComputeType     type      = ComputeType::f32;  // what our GEMM holds its factors in
    bool            products  = true;   // they multiply with the model's float matrices; else ggml does
    bool            quantised = false;  // GEMM unpacks quantised matrices, whatever their type
    bool            exact     = false;  // no factor is rounded below F32

    // precision: "auto", "f32" or "bf16". kernels: "auto", or one of usable_kernels(), or "ggml" for its products, or
    // "operations" for graphs of ggml's operations only. A device other than the CPU has only these.
    static Arithmetic choose(const Device & device, const std::string & precision, const std::string & kernels);
};

}  // namespace pcr
