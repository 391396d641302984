// How many threads are worth starting.
#pragma once

#include <string>
#include <vector>

namespace pcr {

// Physical cores that this process may use: its affinity and its container's quota are counted, slow cores beside fast
// ones are not, since at the end of every node of a graph all threads wait for the last one. At least 1.
int usable_cores();

// The same by Linux's rules, for a machine whose /proc and /sys lie in the folder root and a process that may run on the
// CPUs `allowed`. What is missing or cannot be understood there limits nothing.
int usable_cores_of(const std::string & root, const std::vector<int> & allowed);

// CPUs of a list as Linux writes it: "0-3,8".
std::vector<int> parse_cpu_list(const std::string & list);

}  // namespace pcr
