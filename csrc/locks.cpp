#include "locks.h"

#include "ggml_memory.h"

#if !defined(_WIN32)
#  include <pthread.h>
#  if !defined(PCR_SYSTEM_GGML)
#    include "ggml-threading.h"
#  endif
#endif

namespace pcr {

std::mutex screens_mutex, devices_mutex, mappings_mutex, log_mutex;

void hold_locks_over_forks() {
#if !defined(_WIN32)
    static std::once_flag once;
    std::call_once(once, [] {
        const auto before = [] {
            screens_mutex.lock();
            devices_mutex.lock();
            mappings_mutex.lock();
#  if !defined(PCR_SYSTEM_GGML)
            ggml_critical_section_start();
#  endif
            log_mutex.lock();
            pycrispasr_spare_before_fork();
        };
        const auto after = [] {
            pycrispasr_spare_after_fork();
            log_mutex.unlock();
#  if !defined(PCR_SYSTEM_GGML)
            ggml_critical_section_end();
#  endif
            mappings_mutex.unlock();
            devices_mutex.unlock();
            screens_mutex.unlock();
        };
        pthread_atfork(before, after, after);  // without memory for it forks are as they were
    });
#endif
}

}  // namespace pcr
