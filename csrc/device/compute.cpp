#include "device/compute.h"

#include "device/ggml_call.h"
#include "log.h"

namespace pcr {

namespace {

// A failing GPU's library may throw exceptions of its own, or fail a check of ggml's.
ggml_backend_ptr start(const Device & device) {
    const CollectErrors errors;
    std::string         why;
    try {
        ggml_backend_ptr backend;
        call_ggml([&] { backend.reset(ggml_backend_dev_init(device.handle, nullptr)); });
        if (backend) {
            return backend;
        }
    } catch (const std::bad_alloc &) {
        throw;
    } catch (const std::exception & error) {
        why = error.what();
    }
    why += (why.empty() || errors.text.empty() ? "" : "; ") + errors.text;
    throw Error(PCR_ERROR_DEVICE, "the device '" + device.name + "' does not start" + (why.empty() ? "" : ": " + why));
}

}  // namespace

Compute::Compute(const Device & device_, int threads, const Arithmetic & arithmetic_)
    : device(device_), arithmetic(arithmetic_), scratches(static_cast<size_t>(threads)) {
    back = start(device);
    if (!device.is_cpu()) {
        fallback = start(find_devices("cpu").front());
    }
    // Through the registry, so that the CPU code may come from a library that was chosen at run time.
    const ggml_backend_reg_t reg  = ggml_backend_dev_backend_reg(device.handle);
    const auto               proc = [reg](const char * name) { return ggml_backend_reg_get_proc_address(reg, name); };

    const auto set_abort = reinterpret_cast<ggml_backend_set_abort_callback_t>(proc("ggml_backend_set_abort_callback"));
    if (set_abort) {
        set_abort(back.get(), [](void * self) { return static_cast<const Compute *>(self)->cancelled.load(); }, this);
    }
    const auto set_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(proc("ggml_backend_set_n_threads"));
    if (set_threads) {
        set_threads(back.get(), threads);
    }
    const auto new_pool =
        reinterpret_cast<ggml_threadpool_t (*)(ggml_threadpool_params *)>(proc("ggml_threadpool_new"));
    const auto use_pool =
        reinterpret_cast<void (*)(ggml_backend_t, ggml_threadpool_t)>(proc("ggml_backend_cpu_set_threadpool"));
    free_pool = reinterpret_cast<void (*)(ggml_threadpool_t)>(proc("ggml_threadpool_free"));
    if (new_pool && use_pool && free_pool) {
        ggml_threadpool_params params = ggml_threadpool_params_default(threads);
        params.poll                   = 0;  // between graphs the threads sleep
        call_ggml([&] { pool = new_pool(&params); }, (size_t(1) << 16) + static_cast<size_t>(threads) * 1024);
        if (!pool) {
            throw std::bad_alloc();
        }
        use_pool(back.get(), pool);
    }
}

Compute::~Compute() {
    back.reset();
    if (pool) {
        free_pool(pool);
    }
}

std::vector<ggml_backend_t> Compute::backends() const {
    return fallback ? std::vector<ggml_backend_t>{back.get(), fallback.get()} : std::vector<ggml_backend_t>{back.get()};
}

Error no_memory(const Device & device, const std::string & wanted, const std::string & why) {
    size_t free = 0, total = 0;
    ggml_backend_dev_memory(device.handle, &free, &total);
    return Error(PCR_ERROR_MEMORY, format("no memory on '%s' for %s: %.0f of its %.0f MB are free%s%s",
                                          device.name.c_str(), wanted.c_str(), double(free) * 1e-6,
                                          double(total) * 1e-6, why.empty() ? "" : "; ", why.c_str()));
}

void Compute::reserve_scratch(int64_t words) {
    for (auto & scratch : scratches) {
        if (static_cast<int64_t>(scratch.size()) < words + block_side) {
            scratch.resize(static_cast<size_t>(words + block_side));
        }
    }
}

void Compute::throw_if_cancelled() const {
    if (cancelled.load()) {
        throw Error(PCR_ERROR_CANCELLED, "cancelled");
    }
}

}  // namespace pcr
