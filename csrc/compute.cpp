#include "compute.h"

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

const std::vector<Device> & devices() {
    static const std::vector<Device> found = [] {
        adopt_ggml_log();
        load_backends();
        std::vector<Device> list;
        for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
            const ggml_backend_dev_t device = ggml_backend_dev_get(i);
            std::string              name   = ggml_backend_dev_name(device);  // "CPU", "CUDA0", "Vulkan1", ...
            std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
            const size_t digits = name.find_last_not_of("0123456789") + 1;
            if (digits < name.size()) {
                name.insert(digits, ":");
            }
            list.push_back({device, name});
        }
        return list;
    }();
    return found;
}

ggml_backend_dev_t find_device(std::string & name) {
    const std::string wanted = name == "auto" ? "cpu" : name;
    std::string       names;
    for (const Device & device : devices()) {
        if (device.name == wanted && ggml_backend_dev_type(device.handle) == GGML_BACKEND_DEVICE_TYPE_CPU) {
            name = device.name;
            return device.handle;
        }
        if (ggml_backend_dev_type(device.handle) == GGML_BACKEND_DEVICE_TYPE_CPU) {
            names += (names.empty() ? "'" : ", '") + device.name + "'";
        }
    }
    throw Error(PCR_ERROR_DEVICE, "there is no device '" + wanted + "': this build runs on 'auto', " + names);
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

Arithmetic Arithmetic::choose(const std::string & precision, const std::string & wanted) {
    Arithmetic  how;
    std::string names;
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

Compute::Compute(ggml_backend_dev_t device, int threads, const Arithmetic & arithmetic_)
    : arithmetic(arithmetic_), scratches(static_cast<size_t>(threads)) {
    back.reset(ggml_backend_dev_init(device, nullptr));
    if (!back) {
        throw Error(PCR_ERROR_DEVICE, std::string("the device '") + ggml_backend_dev_name(device) + "' does not start");
    }
    // Through the registry, so that the CPU code may come from a library that was chosen at run time.
    const ggml_backend_reg_t reg  = ggml_backend_dev_backend_reg(device);
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
    ggml_backend_t backend = compute.backend();
    sched.reset(ggml_backend_sched_new(&backend, nullptr, 1, max_nodes, /*parallel =*/false, /*op_offload =*/false));
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
    ggml_backend_sched_reset(sched.get());
    if (!ggml_backend_sched_alloc_graph(sched.get(), graph.graph)) {
        throw std::bad_alloc();
    }
}

void Workspace::run(Graph & graph) {
    compute.throw_if_stopped();
    const ThrowOnAbort off(false);
    const auto         start  = std::chrono::steady_clock::now();
    const ggml_status  status = ggml_backend_sched_graph_compute(sched.get(), graph.graph);
    if (tracing()) {
        log(PCR_LOG_DEBUG,
            format("graph %s: %d nodes, %.3f ms", graph.name, ggml_graph_n_nodes(graph.graph),
                   std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count()));
    }
    switch (status) {
        case GGML_STATUS_SUCCESS: return;
        case GGML_STATUS_ABORTED: compute.throw_if_stopped(); throw Error(PCR_ERROR_CANCELLED, "cancelled");
        case GGML_STATUS_ALLOC_FAILED: throw std::bad_alloc();
        default: throw Error(PCR_ERROR_DEVICE, "the device failed while it computed");
    }
}

void set(ggml_tensor * tensor, const void * data) {
    ggml_backend_tensor_set(tensor, data, 0, ggml_nbytes(tensor));
}

void get(const ggml_tensor * tensor, float * data) {
    ggml_backend_tensor_get(tensor, data, 0, ggml_nbytes(tensor));
}

}  // namespace pcr
