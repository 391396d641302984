// The locks that a whole process shares. A forked child has none of the other threads that may hold them, so that forks
// wait until nobody does: a child can then use the parent's models in sessions of its own, and open others.
#pragma once

#include <mutex>

namespace pcr {

// In the order in which they are taken.
extern std::mutex screens_mutex, devices_mutex, mappings_mutex, log_mutex;

// Has every fork from now on take them, and ggml's. Cheap when already done.
void hold_locks_over_forks();

}  // namespace pcr
