#include "device/graph.h"

#include "log.h"

#include <chrono>
#include <cstdlib>
#include <cstring>

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

Graph::Graph(const char * name_, size_t max_nodes) : name(name_) {
    const size_t bytes = ggml_tensor_overhead() * max_nodes + ggml_graph_overhead_custom(max_nodes, false);
    memory.reset(new uint8_t[bytes]);
    call_ggml(
        [&] {
            context.reset(ggml_init({bytes, memory.get(), /*.no_alloc =*/true}));
            if (context) {
                graph = ggml_new_graph_custom(context.get(), max_nodes, false);
            }
        },
        1024);
    if (!context) {
        throw std::bad_alloc();
    }
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

// What ggml's allocator and scheduler keep of a graph is less than 1 KB for each of its nodes.
Workspace::Workspace(Compute & compute_, size_t max_nodes, Importance * importance_)
    : compute(compute_), nodes(max_nodes), importance(importance_), spare(max_nodes * 1024 + (size_t(1) << 16)) {
    make_scheduler();
}

void Workspace::make_scheduler() {
    std::vector<ggml_backend_t> backends = compute.backends();
    // Its own memory is made for as many parts as there are nodes, each with 30 inputs.
    const size_t bytes = nodes * (60 * (ggml_tensor_overhead() + 4 * sizeof(int)) + 1024) + (size_t(1) << 20);
    call_ggml(
        [&] {
            sched.reset(ggml_backend_sched_new(backends.data(), nullptr, static_cast<int>(backends.size()), nodes,
                                               /*parallel =*/false, /*op_offload =*/false));
        },
        bytes);
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

size_t Workspace::bytes() const {
    size_t sum = 0;
    for (ggml_backend_t backend : compute.backends()) {
        sum += sched ? ggml_backend_sched_get_buffer_size(sched.get(), backend) : 0;
    }
    return sum;
}

template <typename F> bool Workspace::call(F f) {
    if (!sched) {
        make_scheduler();
    }
    try {
        return spare.call(f);
    } catch (...) {
        [[maybe_unused]] const ggml_backend_sched_t given_up = sched.release();
        throw;
    }
}

void Workspace::place(Graph & graph) {
    const CollectErrors errors;  // which name the size that was asked for
    bool                placed = false;
    const bool          enough = call([&] {
        ggml_backend_sched_reset(sched.get());
        placed = ggml_backend_sched_alloc_graph(sched.get(), graph.graph);
    });
    if (!enough || !placed) {
        sched.reset();  // which may believe that it has its buffers
        throw no_memory(compute.device, std::string("the graph '") + graph.name + "'", errors.text);
    }
}

void Workspace::run(Graph & graph) {
    compute.throw_if_cancelled();
    const auto  start  = std::chrono::steady_clock::now();
    ggml_status status = GGML_STATUS_SUCCESS;
    if (!compute.device.is_cpu()) {
        status = run_elsewhere(graph);
    } else {
        const ThrowOnAbort off(false);
        const bool         enough = call([&] { status = ggml_backend_sched_graph_compute(sched.get(), graph.graph); });
        status                    = enough ? status : GGML_STATUS_ALLOC_FAILED;
    }
    if (tracing()) {
        log(PCR_LOG_DEBUG,
            format("graph %s: %d nodes, %d parts, %.3f ms", graph.name, ggml_graph_n_nodes(graph.graph),
                   ggml_backend_sched_get_n_splits(sched.get()),
                   std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count()));
    }
    switch (status) {
        case GGML_STATUS_SUCCESS: return;
        case GGML_STATUS_ABORTED: throw Error(PCR_ERROR_CANCELLED, "cancelled");
        case GGML_STATUS_ALLOC_FAILED: throw std::bad_alloc();
        default: throw Error(PCR_ERROR_DEVICE, "the device failed while it computed");
    }
}

// A device is driven by this thread alone, so that what its library throws, and a check of ggml's that fails, such as
// CUDA's for memory, can be an error here.
ggml_status Workspace::run_elsewhere(Graph & graph) {
    const CollectErrors errors;
    std::string         why;
    try {
        ggml_status status = GGML_STATUS_FAILED;
        const bool  enough = call([&] {
            status = ggml_backend_sched_graph_compute(sched.get(), graph.graph);
            ggml_backend_sched_synchronize(sched.get());
        });
        if (!enough || status != GGML_STATUS_FAILED) {
            return enough ? status : GGML_STATUS_ALLOC_FAILED;
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
