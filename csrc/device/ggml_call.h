// Calls of ggml that survive a lack of memory.
#pragma once

#include "ggml-cpp.h"
#include "ggml_memory.h"

#include <cstddef>
#include <memory>
#include <new>
#include <utility>

namespace pcr {

// Spare memory for ggml's own structures: see ggml_memory.h.
class Spare {
public:
    // At least so many bytes. It is taken at the first call, and anew when it was used.
    explicit Spare(size_t bytes_) : bytes(bytes_) {}

    // Runs f, which calls ggml. False where memory was lacking: what f made is sound, but may be incomplete where ggml
    // checks for that, so it is best dropped. What f throws crosses ggml: the objects that it was given are then in no
    // state to be used or destroyed.
    template <typename F> bool call(F f) {
        if (!memory) {
            memory.reset(pycrispasr_spare_new(bytes));
            if (!memory) {
                throw std::bad_alloc();
            }
        }
        // Ends the use, and drops what was used, whether f returns or throws.
        struct Use {
            explicit Use(Spare & spare_) : spare(spare_), outer(pycrispasr_spare_use(spare.memory.get())) {}
            ~Use() {
                pycrispasr_spare_use(outer);
                if (pycrispasr_spare_lacked(spare.memory.get())) {
                    spare.memory.reset();
                }
            }
            Spare & spare;
            void *  outer;
        };
        {
            const Use use(*this);
            f();
        }
        return memory != nullptr;
    }

private:
    struct Free {
        void operator()(void * spare) const { pycrispasr_spare_free(spare); }
    };
    size_t                      bytes;
    std::unique_ptr<void, Free> memory;
};

// The same once, with a std::bad_alloc where memory was lacking.
template <typename F> void call_ggml(F f, size_t bytes = size_t(1) << 16) {
    if (!Spare(bytes).call(f)) {
        throw std::bad_alloc();
    }
}

// A context for so many tensors, without their data.
inline ggml_context_ptr new_context(size_t n_tensors) {
    ggml_context_ptr context;
    const size_t     bytes = ggml_tensor_overhead() * n_tensors;
    call_ggml([&] { context.reset(ggml_init({bytes, nullptr, /*.no_alloc =*/true})); }, bytes + 1024);
    if (!context) {
        throw std::bad_alloc();
    }
    return context;
}

// Memory for all tensors of a context, or null where there is too little.
inline ggml_backend_buffer_ptr allocate(ggml_context * context, ggml_backend_buffer_type_t type) {
    ggml_backend_buffer_ptr buffer;
    const bool              enough =
        Spare(size_t(1) << 16).call([&] { buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(context, type)); });
    return enough ? std::move(buffer) : nullptr;
}

}  // namespace pcr
