// Has each allocation of each function of the library fail, one after the other: none may end the process, every failure
// is PCR_ERROR_MEMORY (or the function did without), and what comes after it is as if nothing had happened.
//
//     allocation_walk LIBRARY MODEL.gguf ALIGNER.gguf auto|operations single|onward [STEP]
//
// single: that allocation fails; onward: all that follow it too, until the function returns. STEP: only every STEP-th.
// Prints a line for each function. Another status than 0: something is wrong, and printed.
#include "pycrispasr.h"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <string>
#include <vector>

// ---- The allocator that fails

namespace {

std::atomic<long> allocations{-1};  // since it was armed; -1: it is not
std::atomic<long> failing{0};  // the one that fails, from 1
std::atomic<bool> fails_on{false};  // and all that follow

bool      sanitized = false;
pthread_t walking   = pthread_self();

bool fails() {
    // AddressSanitizer takes its own memory for granted when a thread begins.
    if (allocations.load(std::memory_order_relaxed) < 0 || (sanitized && !pthread_equal(pthread_self(), walking))) {
        return false;
    }
    const long now = ++allocations;
    if (now == failing || (fails_on && now > failing)) {
        errno = ENOMEM;
        return true;
    }
    return false;
}

// The system's, or a sanitizer's.
template <typename F> F next(const char * name) {
    char interceptor[64];
    std::snprintf(interceptor, sizeof(interceptor), "__interceptor_%s", name);
    void * const function = dlsym(RTLD_DEFAULT, interceptor);
    sanitized             = sanitized || function != nullptr;
    return reinterpret_cast<F>(function ? function : dlsym(RTLD_NEXT, name));
}

// dlsym may ask for memory itself.
alignas(64) char bootstrap[1 << 16];
std::atomic<size_t> bootstrapped{0};
bool                is_bootstrap(void * p) {
    return p >= bootstrap && p < bootstrap + sizeof(bootstrap);
}
void * from_bootstrap(size_t size) {
    return bootstrap + bootstrapped.fetch_add((size + 63) / 64 * 64);
}
thread_local bool resolving __attribute__((tls_model("initial-exec"))) = false;

template <typename F> F resolved(std::atomic<F> & function, const char * name) {
    F found = function.load();
    if (!found && !resolving) {
        resolving = true;
        found     = next<F>(name);
        resolving = false;
        function  = found;
    }
    return found;
}

std::atomic<void * (*)(size_t)>               real_malloc{nullptr};
std::atomic<void * (*)(size_t, size_t)>       real_calloc{nullptr};
std::atomic<void * (*)(void *, size_t)>       real_realloc{nullptr};
std::atomic<int (*)(void **, size_t, size_t)> real_memalign{nullptr};
std::atomic<void (*)(void *)>                 real_free{nullptr};
std::atomic<void * (*)(size_t, size_t)>       real_aligned{nullptr};

}  // namespace

extern "C" {

void * malloc(size_t size) noexcept {
    const auto real = resolved(real_malloc, "malloc");
    return !real ? from_bootstrap(size) : fails() ? nullptr : real(size);
}
void * calloc(size_t count, size_t size) noexcept {
    const auto real = resolved(real_calloc, "calloc");
    return !real ? from_bootstrap(count * size) : fails() ? nullptr : real(count, size);
}
void * realloc(void * memory, size_t size) noexcept {
    const auto real = resolved(real_realloc, "realloc");
    return fails() ? nullptr : real(memory, size);
}
int posix_memalign(void ** memory, size_t alignment, size_t size) noexcept {
    const auto real = resolved(real_memalign, "posix_memalign");
    return fails() ? ENOMEM : real(memory, alignment, size);
}
void * aligned_alloc(size_t alignment, size_t size) noexcept {
    const auto real = resolved(real_aligned, "aligned_alloc");
    return fails() ? nullptr : real(alignment, size);
}
void free(void * memory) noexcept {
    if (const auto real = resolved(real_free, "free"); real && !is_bootstrap(memory)) {
        real(memory);
    }
}
}

// Where a sanitizer's operator new would not call malloc.
void * operator new(size_t size) {
    if (void * const memory = malloc(size ? size : 1)) {
        return memory;
    }
    throw std::bad_alloc();
}
void operator delete(void * memory) noexcept {
    free(memory);
}
void operator delete(void * memory, size_t) noexcept {
    free(memory);
}

// ---- The walk

namespace {

int  wrong  = 0;
long step   = 1;
bool onward = false;

void complain(const std::string & text) {
    wrong++;
    std::fprintf(stderr, "WRONG: %s\n", text.c_str());
}

struct Library {
    explicit Library(const char * path) : handle(dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
        if (!handle) {
            std::fprintf(stderr, "%s\n", dlerror());
            std::exit(2);
        }
    }
    void * handle;
};
Library * library = nullptr;

// A function of the library by its declaration.
#define CALL(name) (*reinterpret_cast<decltype(&name)>(dlsym(library->handle, #name)))

// Runs `work` with the n-th allocation failing, for all n until it runs without: `work` gives the status of what failed,
// or PCR_OK. `after` checks, with memory, that all is well.
void walk(const char * name, const std::function<void()> & before, const std::function<pcr_status()> & work,
          const std::function<void(pcr_status)> & after) {
    long failed = 0, coped = 0;
    for (long n = 1;; n += step) {
        before();
        failing                 = n;
        fails_on                = onward;
        allocations             = 0;
        const pcr_status status = work();
        const long       seen   = allocations.exchange(-1);
        if (seen >= n) {
            if (status == PCR_ERROR_MEMORY) {
                failed++;
            } else if (status == PCR_OK || status == PCR_END) {
                coped++;
            } else {
                complain(std::string(name) + ", allocation " + std::to_string(n) + ": status " +
                         std::to_string(status));
            }
        } else if (status != PCR_OK && status != PCR_END) {
            complain(std::string(name) + " without a failing allocation: status " + std::to_string(status));
        }
        after(status);
        if (seen < n) {
            break;
        }
    }
    std::printf("%-24s %5ld out of memory, %4ld did without\n", name, failed, coped);
    std::fflush(stdout);
}

struct Text {
    std::vector<int32_t> ids;
    std::vector<float>   attention;

    bool operator==(const Text & other) const { return ids == other.ids && attention == other.attention; }
};

constexpr int32_t heads[] = {0, 0, 1, 1};

pcr_session * new_session(pcr_model * model, bool with_heads, pcr_status & status, int32_t threads = 1) {
    pcr_session_params params;
    CALL(pcr_session_params_default)(&params);
    params.threads        = threads;
    params.max_new_tokens = 4;
    if (with_heads) {
        params.heads   = heads;
        params.n_heads = 2;
    }
    pcr_session * session = nullptr;
    status                = CALL(pcr_session_new)(model, &params, &session);
    return session;
}

// The buffers are there before, since a vector of the test's own may not fail.
pcr_status transcribe(pcr_session * session, const std::vector<float> & samples, bool with_heads, Text & text) {
    text.ids.clear();
    const int32_t sequence = 0;
    pcr_token     tokens[8];
    size_t        guessed = 0;
    int64_t       steps   = 0;
    const auto    half    = static_cast<int64_t>(samples.size() / 2);
    pcr_status    status  = CALL(pcr_session_feed)(session, 0, samples.data(), half);
    if (status == PCR_OK) {
        status = CALL(pcr_session_begin_hypothesis)(session, 0);
    }
    while (status == PCR_OK) {
        status = CALL(pcr_session_advance)(session, 0, 1);  // PCR_END: nothing is left
    }
    while (status == PCR_END) {
        status = CALL(pcr_session_run)(session, &sequence, 1, 0.0);
        if (status == PCR_OK) {
            status = CALL(pcr_session_take)(session, 0, tokens, 8, &guessed) == PCR_END ? PCR_OK : PCR_END;
        }
    }
    if (status == PCR_OK) {
        status = CALL(pcr_session_end_hypothesis)(session, 0, tokens, 8, &guessed);
    }
    if (status == PCR_OK) {
        status = CALL(pcr_session_feed)(session, 0, samples.data() + half, static_cast<int64_t>(samples.size()) - half);
    }
    if (status == PCR_OK) {
        status = CALL(pcr_session_end)(session, 0, -1);
    }
    while (status == PCR_OK) {
        pcr_token token = {sizeof(pcr_token), -1, 0.0f};
        status          = CALL(pcr_session_next)(session, &sequence, 1, &token);
        if (status == PCR_OK && token.id >= 0) {
            text.ids.push_back(token.id);
        }
    }
    if (status == PCR_END && with_heads) {
        status = CALL(pcr_session_attention)(session, 0, text.attention.data(), text.attention.size(), &steps);
    }
    return status;
}

}  // namespace

int main(int argc, char ** argv) {
    if (argc < 6) {
        std::fprintf(stderr,
                     "usage: allocation_walk LIBRARY MODEL.gguf ALIGNER.gguf auto|operations single|onward [STEP]\n");
        return 2;
    }
    onward = std::strcmp(argv[5], "onward") == 0;
    step   = argc > 6 ? std::atol(argv[6]) : 1;
    static Library loaded(argv[1]);
    library                   = &loaded;
    const char *       path   = argv[2];
    const bool         on_cpu = std::strcmp(argv[4], "operations") != 0;
    std::vector<float> samples(16000 * (on_cpu ? 9 : 2));
    for (size_t i = 0; i < samples.size(); i++) {
        samples[i] = 0.1f * std::sin(0.05f * static_cast<float>(i)) * std::sin(0.0003f * static_cast<float>(i));
    }
    const auto nothing = [] {};
    const auto none    = [](pcr_status) {};

    // ---- Without a model. The first calls of the process find the devices.
    walk(
        "pcr_device_count", nothing, [] { return CALL(pcr_device_count)() >= 0 ? PCR_OK : PCR_ERROR_INTERNAL; },
        [](pcr_status) {
            if (CALL(pcr_device_count)() < 1) {
                complain("no device after a failed allocation");
            }
        });
    pcr_device_info device = {};
    device.size            = sizeof(device);
    walk("pcr_device_get", nothing, [&] { return CALL(pcr_device_get)(0, &device); }, none);
    pcr_backend_info backend = {};
    backend.size             = sizeof(backend);
    walk("pcr_backend_get", nothing, [&] { return CALL(pcr_backend_get)(0, &backend); }, none);
    walk("pcr_usable_cores", nothing, [] { return CALL(pcr_usable_cores)() >= 1 ? PCR_OK : PCR_ERROR_INTERNAL; }, none);
    walk(
        "pcr_usable_cores_of", nothing,
        [] { return CALL(pcr_usable_cores_of)("/", "0-3") >= 1 ? PCR_OK : PCR_ERROR_INTERNAL; }, none);
    walk(
        "pcr_kernels_name", nothing,
        [] {
            CALL(pcr_kernels_name)(0);
            return PCR_OK;
        },
        [](pcr_status) {
            if (!CALL(pcr_kernels_name)(0)) {
                complain("no kernels after a failed allocation");
            }
        });
    walk(
        "pcr_row_bytes", nothing,
        [] {
            CALL(pcr_row_bytes)("q4_k", 256);
            return PCR_OK;
        },
        none);
    std::vector<float>   matrix(256 * 64, 0.5f), out(256 * 64);
    std::vector<uint8_t> packed(256 * 64 * 4);
    char                 message[256];
    for (const char * kind : {"q8_0", "q4_k", "q6_k"}) {
        walk(
            kind, nothing,
            [&] {
                return CALL(pcr_convert_rows)("f32", matrix.data(), kind, packed.data(), 64, 256, nullptr, 2, message,
                                              sizeof(message));
            },
            none);
        walk(
            "  back", nothing,
            [&] {
                return CALL(pcr_convert_rows)(kind, packed.data(), "f32", out.data(), 64, 256, nullptr, 2, message,
                                              sizeof(message));
            },
            none);
        for (const int32_t each : {0, 1}) {
            double seconds = 0.0;
            walk(
                "pcr_product", nothing,
                [&] {
                    return CALL(pcr_product)("auto", "auto", each, kind, packed.data(), 64, 256, matrix.data(), 4,
                                             out.data(), 2, 1, &seconds, message, sizeof(message));
                },
                none);
        }
    }
    walk(
        "pcr_product_kernels", nothing,
        [&] { return CALL(pcr_product_kernels)("auto", "auto", 1, "q4_k", 256, message, sizeof(message)); }, none);

    // ---- A model
    pcr_model_params params;
    CALL(pcr_model_params_default)(&params);
    params.kernels    = argv[4];
    pcr_model * model = nullptr;
    for (const int32_t map : {1, 0}) {
        params.map = map;
        walk(
            map ? "pcr_model_load" : "pcr_model_load, read",
            [&] {
                CALL(pcr_model_free)(model);
                model = nullptr;
            },
            [&] { return CALL(pcr_model_load)(path, &params, &model); },
            [&](pcr_status status) {
                if (status != PCR_OK && model && !CALL(pcr_model_error)(model)[0]) {
                    complain("a failed load without a message");
                }
            });
    }
    pcr_model_info info = {};
    walk("pcr_model_get_info", nothing, [&] { return CALL(pcr_model_get_info)(model, &info); }, none);
    std::vector<int32_t> ids(4096);
    size_t               count = 0;
    walk(
        "pcr_tokenize", nothing,
        [&] { return CALL(pcr_tokenize)(model, "user and assistant", 18, ids.data(), ids.size(), &count); }, none);
    pcr_clip_params hints;
    CALL(pcr_clip_params_default)(&hints);
    walk(
        "pcr_clip_prompt", nothing,
        [&] { return CALL(pcr_clip_prompt)(model, &hints, 100, ids.data(), ids.size(), &count); }, none);

    // ---- Sessions
    pcr_session * session = nullptr;
    pcr_status    made    = PCR_OK;
    walk(
        "pcr_session_new",
        [&] {
            CALL(pcr_session_free)(session);
            session = nullptr;
        },
        [&] {
            session = new_session(model, false, made, 3);
            return made;
        },
        none);
    {
        const bool with_heads = on_cpu;
        CALL(pcr_session_free)(session);
        session = new_session(model, with_heads, made);
        Text wanted, got;
        for (Text * text : {&wanted, &got}) {
            text->ids.reserve(16);
            text->attention.resize(with_heads ? 16 * 2 * 400 : 0);
        }
        transcribe(session, samples, with_heads, wanted);
        if (wanted.ids.empty()) {
            complain("no text to compare with");
        }
        walk(
            with_heads ? "feed ... word times" : "feed ... next",
            [&] {
                CALL(pcr_session_free)(session);
                session = new_session(model, with_heads, made);
            },
            [&] { return transcribe(session, samples, with_heads, got); },
            [&](pcr_status status) {
                if (status != PCR_OK && status != PCR_END) {
                    CALL(pcr_session_reset)(session);
                    status = transcribe(session, samples, with_heads, got);
                }
                if ((status != PCR_OK && status != PCR_END) || !(got == wanted)) {
                    complain("another text after a failed allocation, status " + std::to_string(status));
                }
            });
    }

    // ---- Stages
    const auto fresh = [&] {
        CALL(pcr_session_free)(session);
        session = new_session(model, false, made);
    };
    const int64_t      frames = 200;
    std::vector<float> mel(static_cast<size_t>(1200 * info.n_mels)), rows(1 << 20), adapted(1 << 20), logits(1 << 20);
    int64_t            n_frames = 0, n_rows = 0;
    walk(
        "pcr_log_mel", fresh,
        [&] { return CALL(pcr_log_mel)(session, samples.data(), frames * 160, mel.data(), mel.size(), &n_frames); },
        none);
    walk(
        "pcr_encode", fresh,
        [&] { return CALL(pcr_encode)(session, mel.data(), frames, -1, rows.data(), rows.size(), &n_rows); }, none);
    walk(
        "pcr_adapt", fresh,
        [&] { return CALL(pcr_adapt)(session, rows.data(), n_rows, adapted.data(), adapted.size()); }, none);
    walk(
        "pcr_embed", fresh, [&] { return CALL(pcr_embed)(session, ids.data(), 1, logits.data(), logits.size()); },
        none);
    const int32_t zero = 0, token = 5;
    walk(
        "pcr_decode", fresh,
        [&] { return CALL(pcr_decode)(session, 0, adapted.data(), n_rows, 0, -1, logits.data(), logits.size()); },
        none);
    walk(
        "pcr_decode_step",
        [&] {
            fresh();
            CALL(pcr_decode)(session, 0, adapted.data(), n_rows, 0, -1, logits.data(), logits.size());
        },
        [&] { return CALL(pcr_decode_step)(session, &zero, &token, 1, logits.data(), logits.size()); }, none);
    pcr_result result = {};
    result.size       = sizeof(result);
    walk("pcr_session_result", fresh, [&] { return CALL(pcr_session_result)(session, 0, &result); }, none);
    walk("pcr_session_begin", fresh, [&] { return CALL(pcr_session_begin)(session, 0, nullptr); }, none);
    walk("pcr_session_reset", fresh, [&] { return CALL(pcr_session_reset)(session); }, none);
    if (on_cpu) {
        const std::vector<float> brief(samples.begin(), samples.begin() + 8000);
        pcr_session_params       with = {};
        CALL(pcr_session_params_default)(&with);
        with.importance     = 1;
        with.threads        = 1;
        with.max_new_tokens = 2;
        Text text;
        text.ids.reserve(16);
        walk(
            "importance",
            [&] {
                CALL(pcr_session_free)(session);
                session = nullptr;
                CALL(pcr_session_new)(model, &with, &session);
            },
            [&] {
                const pcr_status status = transcribe(session, brief, false, text);
                const char *     name;
                const double *   energies;
                int64_t          columns = 0, n = 0;
                return status == PCR_END ? CALL(pcr_importance)(session, 0, &name, &energies, &columns, &n) : status;
            },
            none);
    }
    // A model that aligns.
    {
        pcr_model *      other   = nullptr;
        pcr_session *    aligner = nullptr;
        pcr_model_params fitting;
        CALL(pcr_model_params_default)(&fitting);
        fitting.kernels = argv[4];
        if (CALL(pcr_model_load)(argv[3], &fitting, &other) != PCR_OK ||
            CALL(pcr_session_new)(other, nullptr, &aligner) != PCR_OK) {
            complain("the aligner does not open");
        }
        const int32_t words[] = {40, -1, -1, 41, 42, -1, -1};
        pcr_place     places[4];
        size_t        n_places = 0;
        walk(
            "pcr_session_align", [&] { CALL(pcr_session_reset)(aligner); },
            [&] { return CALL(pcr_session_align)(aligner, 0, samples.data(), 20000, words, 7, places, 4, &n_places); },
            none);
        CALL(pcr_session_free)(aligner);
        CALL(pcr_model_free)(other);
    }
    // What gives no status.
    walk(
        "the others", fresh,
        [&] {
            size_t length = 0;
            CALL(pcr_token_bytes)(model, 5, &length);
            const int64_t n = CALL(pcr_frame_count)(model, 16000);
            CALL(pcr_row_count)(model, n);
            pcr_clip_params clip;
            CALL(pcr_clip_params_default)(&clip);
            CALL(pcr_session_memory)(session);
            CALL(pcr_session_wake)(session);
            CALL(pcr_session_cancel)(session);
            CALL(pcr_session_error)(session);
            CALL(pcr_set_log_level)(PCR_LOG_WARNING);
            CALL(pcr_version)();
            CALL(pcr_ggml_version)();
            CALL(pcr_abi_version)();
            return CALL(pcr_session_reset)(session);
        },
        none);
    pcr_log_level level = PCR_LOG_DEBUG;
    walk("pcr_take_log", nothing, [&] { return CALL(pcr_take_log)(&level, message, sizeof(message)); }, none);
    CALL(pcr_session_free)(session);
    CALL(pcr_model_free)(model);
    std::printf("%d wrong\n", wrong);
    return wrong ? 1 : 0;
}
