// What a model can run on: the devices that ggml found, and the backends that they come from.
#pragma once

#include "error.h"
#include "ggml-cpp.h"

#include <string>
#include <vector>

namespace pcr {

// A library with one of ggml's backends, beside ours or in a package of its own.
struct BackendLibrary {
    std::string file;
    std::string error;  // why it cannot be used; "" when it can
};

// Loads those of ggml's backends that are libraries, and of several for the CPU the best for this one. Empty in a build that
// has them inside.
std::vector<BackendLibrary> load_backends();

struct Device {
    ggml_backend_dev_t handle;
    std::string        name;  // "cpu", "cuda:0", ...

    bool is_cpu() const { return ggml_backend_dev_type(handle) == GGML_BACKEND_DEVICE_TYPE_CPU; }
};

// All that ggml found that can run a model: graphics cards, the CPU, and processors' built-in graphics.
const std::vector<Device> & devices();

// Those that a name means, the best first: "auto" is every one up to the CPU, "cuda" is "cuda:0".
std::vector<Device> find_devices(const std::string & name);

// A kind of device beside the CPU.
struct Backend {
    const char * name;      // "cuda", "metal", "vulkan": what its devices' names begin with
    bool         compiled;  // into this library, or installed beside it
    std::string  missing;   // why it has no device, and what to do; "" when it has one
};
const std::vector<Backend> & backends();

// Instruction sets that ggml's CPU code was built with, separated by spaces; "" for other devices.
std::string device_features(ggml_backend_dev_t device);

}  // namespace pcr
