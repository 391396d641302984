#include "device/devices.h"

#include "device/ggml_call.h"
#include "locks.h"
#include "log.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <memory>

namespace pcr {

namespace {

struct Found {
    std::vector<BackendLibrary> libraries;
    std::vector<Device>         devices;
    std::string                 errors;  // of backends that did not start
};

Found look_for_devices() {
    const CollectErrors errors;
    Found               all;
    size_t              count = 0;
    call_ggml([&] {
        all.libraries = load_backends();
        count         = ggml_backend_dev_count();
    });
    for (size_t i = 0; i < count; i++) {
        const ggml_backend_dev_t device = ggml_backend_dev_get(i);
        if (ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_ACCEL) {
            continue;  // helps the CPU with some operations
        }
        std::string name = ggml_backend_dev_name(device);  // "CPU", "CUDA0", "MTL0", "Vulkan1", ...
        std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
        if (name.compare(0, 3, "mtl") == 0) {
            name.replace(0, 3, "metal");
        }
        const size_t digits = name.find_last_not_of("0123456789") + 1;
        if (digits < name.size()) {
            name.insert(digits, ":");
        }
        all.devices.push_back({device, name});
    }
    // Graphics that share the CPU's memory read weights no faster than it does.
    const auto rank = [](const Device & device) {
        return device.is_cpu() ? 1 : ggml_backend_dev_type(device.handle) == GGML_BACKEND_DEVICE_TYPE_GPU ? 0 : 2;
    };
    std::stable_sort(all.devices.begin(), all.devices.end(),
                     [&](const Device & a, const Device & b) { return rank(a) < rank(b); });
    all.errors = errors.text;
    return all;
}

// ggml looks for devices once, at the first call.
const Found & found_devices() {
    adopt_ggml_log();
    const std::lock_guard<std::mutex>   lock(devices_mutex);
    static std::unique_ptr<const Found> found;
    if (!found) {
        found = std::make_unique<const Found>(look_for_devices());
    }
    return *found;
}

bool is_of(const Device & device, const char * backend) {
    return device.name.compare(0, device.name.find(':'), backend) == 0;
}

}  // namespace

const std::vector<Device> & devices() {
    return found_devices().devices;
}

const std::vector<Backend> & backends() {
    static const std::vector<Backend> list = [] {
#if defined(GGML_USE_CUDA)
        constexpr bool cuda = true;
#else
        constexpr bool cuda = false;
#endif
#if defined(GGML_USE_METAL)
        constexpr bool metal = true;
#else
        constexpr bool metal = false;
#endif
#if defined(GGML_USE_VULKAN)
        constexpr bool vulkan = true;
#else
        constexpr bool vulkan = false;
#endif
        const auto to_build = [](const char * option) {
            return format(
                "not compiled in; to build it: CMAKE_ARGS=\"-DGGML_%s=ON\" pip install "
                "--no-binary pycrispasr pycrispasr",
                option);
        };
#if defined(__APPLE__)
        const std::string no_cuda = "not available on macOS";
#elif defined(PCR_CUDA_PACKAGE)
        const std::string no_cuda = "not installed in version " PCR_VERSION ": pip install 'pycrispasr[cuda]'";
#else
        const std::string no_cuda = to_build("CUDA");
#endif
#if defined(__APPLE__)
        const std::string no_metal = to_build("METAL");
#else
        const std::string no_metal = "available on macOS only";
#endif
        struct Kind {
            const char * name;
            bool         compiled;
            std::string  absent;  // what is said where it is not compiled in
            const char * driver;
        };
        std::vector<Backend> all;
        for (const Kind & kind : {
                 Kind{"cuda", cuda, no_cuda, "`nvidia-smi` lists the GPUs that NVIDIA's driver sees"},
                 Kind{"metal", metal, no_metal, "it needs a Mac with a GPU that Metal supports"},
                 Kind{"vulkan", vulkan, to_build("VULKAN"), "`vulkaninfo` lists the GPUs that have a driver"},
             }) {
            const auto & libraries = found_devices().libraries;
            const auto   library   = std::find_if(libraries.begin(), libraries.end(), [&](const BackendLibrary & l) {
                return l.file.find(std::string("ggml-") + kind.name) != std::string::npos;
            });
            const bool   compiled  = kind.compiled || library != libraries.end();
            std::string  missing;
            if (!compiled) {
                missing = kind.absent;
            } else if (library != libraries.end() && !library->error.empty()) {
                missing = "installed, but its library cannot be used: " + library->error;
            } else if (std::none_of(devices().begin(), devices().end(),
                                    [&](const Device & device) { return is_of(device, kind.name); })) {
                const std::string & errors = found_devices().errors;
                missing                    = "compiled in, but no GPU was found: " + std::string(kind.driver) +
                                             (errors.empty() ? "" : " (" + errors + ")");
            }
            all.push_back({kind.name, compiled, missing});
        }
        return all;
    }();
    return list;
}

std::vector<Device> find_devices(const std::string & name) {
    std::vector<Device> found;
    std::string         names;
    for (const Device & device : devices()) {
        if (name == "auto" && (found.empty() || !found.back().is_cpu())) {
            found.push_back(device);
        } else if (device.name == name || device.name == name + ":0") {
            return {device};
        }
        names.append(", '").append(device.name).append("'");
    }
    for (const Backend & backend : backends()) {
        if (found.empty() && name.compare(0, name.find(':'), backend.name) == 0 && !backend.missing.empty()) {
            throw Error(PCR_ERROR_DEVICE, format("there is no device '%s': %s is %s; here are 'auto'%s", name.c_str(),
                                                 backend.name, backend.missing.c_str(), names.c_str()));
        }
    }
    if (found.empty()) {
        throw Error(PCR_ERROR_DEVICE, "there is no device '" + name + "': here are 'auto'" + names);
    }
    return found;
}

std::string device_features(ggml_backend_dev_t device) {
    const ggml_backend_feature * feature = nullptr;
    call_ggml([&] {
        const ggml_backend_reg_t reg  = ggml_backend_dev_backend_reg(device);
        const auto               list = reinterpret_cast<ggml_backend_get_features_t>(
            ggml_backend_reg_get_proc_address(reg, "ggml_backend_get_features"));
        feature = list ? list(reg) : nullptr;
    });
    std::string text;
    for (; feature && feature->name; feature++) {
        if (std::strcmp(feature->value, "1") == 0) {
            text += (text.empty() ? "" : " ") + std::string(feature->name);
        }
    }
    return text;
}

}  // namespace pcr
