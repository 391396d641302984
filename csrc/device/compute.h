// A device at work for one session: its threads, their scratch memory, and the flag that stops it.
#pragma once

#include "device/arithmetic.h"
#include "device/devices.h"
#include "ggml-cpp.h"

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

namespace pcr {

// Hands out pieces of a node's work to its threads, first come, first served. After each run, and only then, it begins
// anew by itself: every thread draws until it gets a number beyond the pieces, so a run draws pieces + threads in all.
class WorkCounter {
public:
    int64_t take(int64_t pieces, int threads) {
        return next.fetch_add(1, std::memory_order_relaxed) % (pieces + threads);
    }

private:
    std::atomic<int64_t> next{0};
};

// Rounds p up to 64 bytes. Tensors of words are that much larger than their words.
inline uint32_t * align64(uint32_t * p) {
    const uintptr_t over = reinterpret_cast<uintptr_t>(p) % 64;
    return over == 0 ? p : p + (64 - over) / 4;  // words
}

// The threads are parked between graphs.
class Compute {
public:
    Compute(const Device & device, int threads, const Arithmetic & arithmetic);
    ~Compute();
    Compute(const Compute &)             = delete;
    Compute & operator=(const Compute &) = delete;

    ggml_backend_t backend() const { return back.get(); }

    // Where graphs can run: the device, and behind it the CPU for what it cannot compute.
    std::vector<ggml_backend_t> backends() const;

    // True where the device computes this node, whose tensors need no memory yet.
    bool supports(const ggml_tensor * node) const { return ggml_backend_supports_op(back.get(), node); }

    const Device device;

    std::atomic<bool> cancelled{false};
    void              throw_if_cancelled() const;

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

// An Error(PCR_ERROR_MEMORY) that names what was wanted and the device's memory. why: what ggml said, or "".
Error no_memory(const Device & device, const std::string & wanted, const std::string & why);

}  // namespace pcr
