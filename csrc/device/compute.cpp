#include "device/compute.h"

#include "log.h"

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <thread>

#if defined(__linux__)
#  include <sched.h>
#endif

namespace pcr {

namespace {

// PYCRISPASR_TRACE=1 in the environment: a message for every graph that ran.
bool tracing() {
    static const bool on = [] {
        const char * value = std::getenv("PYCRISPASR_TRACE");
        return value && *value && std::strcmp(value, "0") != 0;
    }();
    return on;
}

}  // namespace

namespace {

struct Found {
    std::vector<BackendLibrary> libraries;
    std::vector<Device>         devices;
    std::string                 errors;  // of backends that did not start
};

// ggml looks for devices once, at the first call.
const Found & look_for_devices() {
    static const Found found = [] {
        adopt_ggml_log();
        const CollectErrors errors;
        Found               all;
        all.libraries = load_backends();
        for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
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
    }();
    return found;
}

bool is_of(const Device & device, const char * backend) {
    return device.name.compare(0, device.name.find(':'), backend) == 0;
}

}  // namespace

const std::vector<Device> & devices() {
    return look_for_devices().devices;
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
            const auto & libraries = look_for_devices().libraries;
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
                const std::string & errors = look_for_devices().errors;
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
        names += ", '" + device.name + "'";
    }
    for (const Backend & backend : backends()) {
        if (found.empty() && name.compare(0, name.find(':'), backend.name) == 0 && !backend.missing.empty()) {
            throw Error(PCR_ERROR_DEVICE, "there is no device '" + name + "': " + backend.name + " is " +
                                              backend.missing + "; here are 'auto'" + names);
        }
    }
    if (found.empty()) {
        throw Error(PCR_ERROR_DEVICE, "there is no device '" + name + "': here are 'auto'" + names);
    }
    return found;
}

std::string device_features(ggml_backend_dev_t device) {
    const ggml_backend_reg_t reg  = ggml_backend_dev_backend_reg(device);
    const auto               list = reinterpret_cast<ggml_backend_get_features_t>(
        ggml_backend_reg_get_proc_address(reg, "ggml_backend_get_features"));
    std::string text;
    if (list) {
        for (const ggml_backend_feature * feature = list(reg); feature->name; feature++) {
            if (std::strcmp(feature->value, "1") == 0) {
                text += (text.empty() ? "" : " ") + std::string(feature->name);
            }
        }
    }
    return text;
}

int usable_cores() {
    int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
        std::set<std::string> siblings;  // one entry per physical core: the list of its hardware threads
        int                   threads = 0;
        for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
            if (!CPU_ISSET(cpu, &allowed)) {
                continue;
            }
            threads++;
            char       line[128] = "";
            const auto path      = format("/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
            if (FILE * file = std::fopen(path.c_str(), "re")) {
                if (std::fgets(line, sizeof(line), file)) {
                    siblings.insert(line);
                }
                std::fclose(file);
            }
        }
        cores = std::max(1, siblings.empty() ? threads : static_cast<int>(siblings.size()));
    }
    if (FILE * file = std::fopen("/sys/fs/cgroup/cpu.max", "re")) {  // "QUOTA PERIOD" or "max PERIOD", microseconds
        long long quota = 0, period = 0;
        if (std::fscanf(file, "%lld %lld", &quota, &period) == 2 && quota > 0 && period > 0) {
            cores = std::max(1, std::min(cores, static_cast<int>((quota + period - 1) / period)));
        }
        std::fclose(file);
    }
#endif
    return cores;
}

Graph::Graph(const char * name_, size_t max_nodes) : name(name_) {
    context.reset(ggml_init({ggml_tensor_overhead() * max_nodes + ggml_graph_overhead_custom(max_nodes, false), nullptr,
                             /*.no_alloc =*/true}));
    if (!context) {
        throw std::bad_alloc();
    }
    graph = ggml_new_graph_custom(context.get(), max_nodes, false);
}

ggml_tensor * Graph::input(ggml_type type, int64_t ne0, int64_t ne1, int64_t ne2, int64_t ne3) {
    ggml_tensor * tensor = ggml_new_tensor_4d(context.get(), type, ne0, ne1, ne2, ne3);
    ggml_set_input(tensor);
    return tensor;
}

void Graph::output(ggml_tensor * tensor) {
    ggml_set_output(tensor);
    ggml_build_forward_expand(graph, tensor);
}

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
    how.exact     = precision == "f32";
    how.number    = precision == "bf16" || (bf16 && !how.exact && bf16_pays(*how.kernels)) ? Number::bf16 : Number::f32;
    how.quantised = how.exact || (bf16 && how.kernels->tiles);  // else ggml's 8-bit products are the faster ones
    return how;
}

namespace {

// A failing GPU's library may throw exceptions of its own, or fail a check of ggml's.
ggml_backend_t start(const Device & device) {
    const CollectErrors errors;
    std::string         why;
    try {
        if (ggml_backend_t backend = ggml_backend_dev_init(device.handle, nullptr)) {
            return backend;
        }
    } catch (const std::exception & error) {
        why = error.what();
    }
    why += (why.empty() || errors.text.empty() ? "" : "; ") + errors.text;
    throw Error(PCR_ERROR_DEVICE, "the device '" + device.name + "' does not start" + (why.empty() ? "" : ": " + why));
}

}  // namespace

Compute::Compute(const Device & device_, int threads, const Arithmetic & arithmetic_)
    : device(device_), arithmetic(arithmetic_), scratches(static_cast<size_t>(threads)) {
    back.reset(start(device));
    if (!device.is_cpu()) {
        fallback.reset(start(find_devices("cpu").front()));
    }
    // Through the registry, so that the CPU code may come from a library that was chosen at run time.
    const ggml_backend_reg_t reg  = ggml_backend_dev_backend_reg(device.handle);
    const auto               proc = [reg](const char * name) { return ggml_backend_reg_get_proc_address(reg, name); };

    const auto set_abort = reinterpret_cast<ggml_backend_set_abort_callback_t>(proc("ggml_backend_set_abort_callback"));
    if (set_abort) {
        set_abort(back.get(), [](void * self) { return static_cast<const Compute *>(self)->stopped(); }, this);
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
        pool                          = new_pool(&params);
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

void Compute::throw_if_stopped() const {
    if (cancelled.load()) {
        throw Error(PCR_ERROR_CANCELLED, "cancelled");
    }
    if (stopped()) {
        throw Hurried();
    }
}

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

Workspace::Workspace(Compute & compute_, size_t max_nodes, Importance * importance)
    : compute(compute_), nodes(max_nodes) {
    std::vector<ggml_backend_t> backends = compute.backends();
    sched.reset(ggml_backend_sched_new(backends.data(), nullptr, static_cast<int>(backends.size()), max_nodes,
                                       /*parallel =*/false, /*op_offload =*/false));
    if (!sched) {
        throw std::bad_alloc();
    }
    if (importance) {
        // ggml asks of every node whether it shall be shown once it has run.
        ggml_backend_sched_set_eval_callback(
            sched.get(),
            [](ggml_tensor * node, bool ask, void * user) {
                if (ask) {
                    return Importance::wants(node);
                }
                if (Importance::wants(node)) {
                    static_cast<Importance *>(user)->add(node);
                }
                return true;
            },
            importance);
    }
}

void Workspace::place(Graph & graph) {
    const CollectErrors errors;  // which name the size that was asked for
    ggml_backend_sched_reset(sched.get());
    if (!ggml_backend_sched_alloc_graph(sched.get(), graph.graph)) {
        throw no_memory(compute.device, std::string("the graph '") + graph.name + "'", errors.text);
    }
}

void Workspace::run(Graph & graph) {
    compute.throw_if_stopped();
    const auto  start  = std::chrono::steady_clock::now();
    ggml_status status = GGML_STATUS_SUCCESS;
    if (!compute.device.is_cpu()) {
        status = run_on_device(graph);
    } else {
        const ThrowOnAbort off(false);
        status = ggml_backend_sched_graph_compute(sched.get(), graph.graph);
    }
    if (tracing()) {
        log(PCR_LOG_DEBUG,
            format("graph %s: %d nodes, %d parts, %.3f ms", graph.name, ggml_graph_n_nodes(graph.graph),
                   ggml_backend_sched_get_n_splits(sched.get()),
                   std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count()));
    }
    switch (status) {
        case GGML_STATUS_SUCCESS: return;
        case GGML_STATUS_ABORTED: compute.throw_if_stopped(); throw Error(PCR_ERROR_CANCELLED, "cancelled");
        case GGML_STATUS_ALLOC_FAILED: throw std::bad_alloc();
        default: throw Error(PCR_ERROR_DEVICE, "the device failed while it computed");
    }
}

// A device is driven by this thread alone, so that what its library throws, and a check of ggml's that fails, such as
// CUDA's for memory, can be an error here.
ggml_status Workspace::run_on_device(Graph & graph) {
    const CollectErrors errors;
    std::string         why;
    try {
        const ggml_status status = ggml_backend_sched_graph_compute(sched.get(), graph.graph);
        ggml_backend_sched_synchronize(sched.get());
        if (status != GGML_STATUS_FAILED) {
            return status;
        }
    } catch (const std::exception & error) {
        why = error.what();
    }
    why += (why.empty() || errors.text.empty() ? "" : "; ") + errors.text;
    const auto says = [&](const char * words) { return why.find(words) != std::string::npos; };
    if (says("out of memory") || says("OutOfDeviceMemory") || says("OutOfHostMemory")) {
        throw no_memory(compute.device, std::string("the graph '") + graph.name + "'", why);
    }
    throw Error(PCR_ERROR_DEVICE, "the device '" + compute.device.name + "' failed while it computed: " + why);
}

void set(ggml_tensor * tensor, const void * data) {
    ggml_backend_tensor_set(tensor, data, 0, ggml_nbytes(tensor));
}

void get(const ggml_tensor * tensor, float * data) {
    ggml_backend_tensor_get(tensor, data, 0, ggml_nbytes(tensor));
}

}  // namespace pcr
