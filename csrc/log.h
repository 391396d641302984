// Where messages go: a bounded queue that the caller empties (pcr_take_log). ggml's log and its failed checks too.
#pragma once

#include "pycrispasr.h"

#include <string>

namespace pcr {

void log(pcr_log_level level, const std::string & text);
bool take_log(pcr_log_level & level, std::string & text);
void set_log_level(pcr_log_level level);

// Sends ggml's log and failed checks here. Call before anything else of ggml; cheap when already done.
void adopt_ggml_log();

// While one of these lives, ggml's error messages on this thread are collected instead of queued.
class CollectErrors {
public:
    CollectErrors();
    ~CollectErrors();
    CollectErrors(const CollectErrors &)             = delete;
    CollectErrors & operator=(const CollectErrors &) = delete;

    std::string text;  // the messages, joined by "; "

private:
    CollectErrors * outer;
};

// While one of these lives, a failed check inside ggml on this thread throws Error(PCR_ERROR_INTERNAL) instead of
// ending the process. Off while a graph runs: other threads are at work on it then.
class ThrowOnAbort {
public:
    explicit ThrowOnAbort(bool on);
    ~ThrowOnAbort();
    ThrowOnAbort(const ThrowOnAbort &)             = delete;
    ThrowOnAbort & operator=(const ThrowOnAbort &) = delete;

private:
    bool outer;
};

}  // namespace pcr
