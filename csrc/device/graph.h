// Graphs of operations, and the memory in which they run.
#pragma once

#include "device/compute.h"
#include "device/ggml_call.h"
#include "device/importance.h"
#include "ggml-cpp.h"

#include <memory>
#include <utility>
#include <vector>

namespace pcr {

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
    std::unique_ptr<uint8_t[]>         memory;  // of the context
    ggml_context_ptr                   context;
    std::vector<std::shared_ptr<void>> kept;
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
    size_t bytes() const;  // of the graphs' tensors

private:
    void        make_scheduler();
    ggml_status run_elsewhere(Graph & graph);

    // Runs f, which calls ggml with the scheduler. False where memory was lacking. What f throws has crossed ggml, whose
    // scheduler is then given up as it is: never destroyed, and another one is made when it is needed.
    template <typename F> bool call(F f);

    Compute &              compute;
    size_t                 nodes;
    Importance *           importance;
    Spare                  spare;
    ggml_backend_sched_ptr sched;
};

// Copies to and from a tensor that has its place.
void set(ggml_tensor * tensor, const void * data);
void get(const ggml_tensor * tensor, float * data);

}  // namespace pcr
