// ggml's devices, threads and graphs, owned by C++ objects.
#pragma once

#include "error.h"
#include "ggml-cpp.h"
#include "kernels/kernels.h"

#include <atomic>
#include <functional>
#include <memory>
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

// Physical cores that this process may use: its affinity and its container's quota counted.
int usable_cores();

// How products are computed.
struct Arithmetic {
    const Kernels * kernels   = nullptr;      // ours
    Number          number    = Number::f32;  // what they hold a product's factors in
    bool            products  = true;         // they multiply with the model's float matrices; else ggml does
    bool            quantised = false;        // and with its quantised ones
    bool            exact     = false;        // no factor is rounded below F32

    // precision: "auto", "f32" or "bf16". kernels: "auto", or one of usable_kernels(), or "ggml" for its products, or
    // "operations" for graphs of nothing but ggml's operations. A device other than the CPU has only these.
    static Arithmetic choose(const Device & device, const std::string & precision, const std::string & kernels);
};

// Hands out pieces of a node's work to its threads, first come, first served. After each run, and only then, it begins
// anew by itself: every thread draws until it gets a number beyond the pieces, so a run draws pieces + threads in all.
class Tickets {
public:
    int64_t take(int64_t pieces, int threads) {
        return next.fetch_add(1, std::memory_order_relaxed) % (pieces + threads);
    }

private:
    std::atomic<int64_t> next{0};
};

// Behind p, at the next multiple of 64 bytes. Tensors of words are that much larger than their words.
inline uint32_t * align64(uint32_t * p) {
    return reinterpret_cast<uint32_t *>((reinterpret_cast<uintptr_t>(p) + 63) & ~uintptr_t(63));
}

// A graph of operations: nodes are added through ctx, its memory holds no data.
class Graph {
public:
    // name: of what it computes, for the trace.
    Graph(const char * name, size_t max_nodes);

    ggml_context * ctx() const { return context.get(); }

    // A tensor to fill before the graph runs, and one to read after it ran.
    ggml_tensor * input(ggml_type type, int64_t ne0, int64_t ne1 = 1, int64_t ne2 = 1, int64_t ne3 = 1);
    void          output(ggml_tensor * tensor);
    // A node that must run although no output depends on it.
    void also(ggml_tensor * tensor) { ggml_build_forward_expand(graph, tensor); }

    // What a node of ours needs while it runs.
    template <typename T, typename... Args> T & keep(Args &&... args) {
        auto kept_one = std::shared_ptr<T>(new T{std::forward<Args>(args)...});
        kept.push_back(kept_one);
        return *kept_one;
    }

    ggml_cgraph *      graph = nullptr;
    const char * const name;

private:
    ggml_context_ptr                   context;
    std::vector<std::shared_ptr<void>> kept;
};

// How much each column of a matrix matters: the energy of what it was multiplied with, over all runs. For quantising.
class Importance {
public:
    struct Entry {
        std::string         name;  // of the matrix, as in the file
        std::vector<double> energies;  // sum of squares, per column
        int64_t             rows = 0;  // that were multiplied
    };
    std::vector<Entry> entries;

    // Adds the rows of the other factor of a multiplication that has just run.
    void add(const ggml_tensor * product);

    // True for multiplications with a matrix of the file.
    static bool wants(const ggml_tensor * node);
};

// Thrown where work was stopped that can be left undone.
struct Hurried {};

// A device at work for one session: its threads, parked between graphs, and the flag that stops it.
class Compute {
public:
    Compute(const Device & device, int threads, const Arithmetic & arithmetic);
    ~Compute();
    Compute(const Compute &)             = delete;
    Compute & operator=(const Compute &) = delete;

    ggml_backend_t backend() const { return back.get(); }

    // Where graphs can run: the device, and behind it the CPU for what it cannot compute.
    std::vector<ggml_backend_t> backends() const;

    // True where graphs consist of ggml's operations only, since memory may not be the CPU's.
    bool on_device() const { return arithmetic.kernels == nullptr; }

    // True where the device computes this node, whose tensors need no memory yet.
    bool supports(const ggml_tensor * node) const { return ggml_backend_supports_op(back.get(), node); }

    const Device device;

    std::atomic<bool> cancelled{false};
    std::atomic<bool> hurried{false};  // stops what can be left undone ...
    std::atomic<bool> interruptible{false};  // ... which is done at the moment

    bool stopped() const { return cancelled.load() || (interruptible.load() && hurried.load()); }
    void throw_if_stopped() const;

    const Arithmetic arithmetic;

    // Memory of one thread's own while a node runs; at least as many words as were ever reserved.
    void       reserve_scratch(int64_t words);
    uint32_t * scratch(int thread) { return align64(scratches[static_cast<size_t>(thread)].data()); }

private:
    std::vector<std::vector<uint32_t>> scratches;

    ggml_backend_ptr  back, fallback;
    ggml_threadpool_t pool               = nullptr;
    void (*free_pool)(ggml_threadpool_t) = nullptr;
};

// Memory for the graphs of one shape of work, kept from run to run and grown when a graph needs more.
class Workspace {
public:
    // Collects into importance, unless null; its results stay the same, its speed does not.
    Workspace(Compute & compute, size_t max_nodes, Importance * importance);

    // Gives the graph's tensors their places. What an earlier graph left in this workspace is lost.
    void place(Graph & graph);

    // Runs a graph that was placed last.
    void run(Graph & graph);

    size_t max_nodes() const { return nodes; }

private:
    ggml_status run_on_device(Graph & graph);

    Compute &              compute;
    size_t                 nodes;
    ggml_backend_sched_ptr sched;
};

// An Error(PCR_ERROR_MEMORY) that names what was wanted and the device's memory. why: what ggml said, or "".
Error no_memory(const Device & device, const std::string & wanted, const std::string & why);

// Copies to and from a tensor that has its place.
void set(ggml_tensor * tensor, const void * data);
void get(const ggml_tensor * tensor, float * data);

}  // namespace pcr
