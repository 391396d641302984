#include "log.h"

#include "error.h"
#include "ggml.h"
#include "locks.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <deque>
#include <mutex>
#include <utility>
#include <vector>

namespace pcr {

namespace {

constexpr size_t max_queued = 256;

std::atomic<int> lowest_level{PCR_LOG_WARNING};

std::deque<std::pair<pcr_log_level, std::string>> & queue() {
    static std::deque<std::pair<pcr_log_level, std::string>> messages;
    return messages;
}

// glibc ends the process where it has no memory for a thread's first access to a library's variables.
#if defined(__GLIBC__)
#  define PCR_THREAD_LOCAL thread_local __attribute__((tls_model("initial-exec")))
#else
#  define PCR_THREAD_LOCAL thread_local
#endif
PCR_THREAD_LOCAL CollectErrors * collector      = nullptr;
PCR_THREAD_LOCAL bool            throw_on_abort = false;

void on_ggml_log(ggml_log_level level, const char * text, void * /*user*/) {
    std::string message(text ? text : "");
    while (!message.empty() && (message.back() == '\n' || message.back() == ' ')) {
        message.pop_back();
    }
    if (message.empty()) {
        return;
    }
    if (level == GGML_LOG_LEVEL_ERROR && collector) {
        // "gguf_init_from_reader: tensor ..." -> "tensor ...": the function's name helps nobody who holds the file.
        const size_t colon = message.find(": ");
        if (colon != std::string::npos && message.find(' ') > colon) {
            message.erase(0, colon + 2);
        }
        collector->text += (collector->text.empty() ? "" : "; ") + message;
        return;
    }
    switch (level) {
        case GGML_LOG_LEVEL_ERROR: log(PCR_LOG_ERROR, message); break;
        case GGML_LOG_LEVEL_WARN: log(PCR_LOG_WARNING, message); break;
        default: log(PCR_LOG_DEBUG, message); break;
    }
}

void on_ggml_abort(const char * message) {
    log(PCR_LOG_ERROR, message);
    if (throw_on_abort) {
        throw Error(PCR_ERROR_INTERNAL, std::string("a check inside ggml failed: ") + message);
    }
}

}  // namespace

void log(pcr_log_level level, const std::string & text) {
    if (level < lowest_level.load(std::memory_order_relaxed)) {
        return;
    }
    const std::lock_guard<std::mutex> lock(log_mutex);
    if (queue().size() == max_queued) {
        queue().pop_front();
    }
    queue().emplace_back(level, text);
}

bool take_log(pcr_log_level & level, std::string & text) {
    const std::lock_guard<std::mutex> lock(log_mutex);
    if (queue().empty()) {
        return false;
    }
    level = queue().front().first;
    text  = std::move(queue().front().second);
    queue().pop_front();
    return true;
}

void set_log_level(pcr_log_level level) {
    lowest_level.store(level, std::memory_order_relaxed);
}

void adopt_ggml_log() {
    static std::once_flag once;
    std::call_once(once, [] {
        hold_locks_over_forks();
        ggml_log_set(on_ggml_log, nullptr);
        ggml_set_abort_callback(on_ggml_abort);
    });
}

CollectErrors::CollectErrors() : outer(collector) {
    collector = this;
}

CollectErrors::~CollectErrors() {
    collector = outer;
}

ThrowOnAbort::ThrowOnAbort(bool on) : outer(throw_on_abort) {
    throw_on_abort = on;
}

ThrowOnAbort::~ThrowOnAbort() {
    throw_on_abort = outer;
}

std::string format(const char * pattern, ...) {
    va_list args;
    va_start(args, pattern);
    va_list again;
    va_copy(again, args);
    const int length = std::vsnprintf(nullptr, 0, pattern, args);
    va_end(args);
    std::string text(length > 0 ? static_cast<size_t>(length) : 0, '\0');
    std::vsnprintf(text.data(), text.size() + 1, pattern, again);
    va_end(again);
    return text;
}

}  // namespace pcr
