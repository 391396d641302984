// How many threads are worth starting.
#pragma once

namespace pcr {

// Physical cores that this process may use: its affinity and its container's quota counted.
int usable_cores();

}  // namespace pcr
