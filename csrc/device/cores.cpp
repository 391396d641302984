#include "device/cores.h"

#include "error.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <string>
#include <thread>

#if defined(__linux__)
#  include <sched.h>
#endif

namespace pcr {

int usable_cores() {
    int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
        std::set<std::string> siblings;  // one entry per physical core: the list of its hardware threads
        int                   threads = 0;
        for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
            if (!CPU_ISSET(cpu, &allowed)) {
                continue;
            }
            threads++;
            char       line[128] = "";
            const auto path      = format("/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
            if (FILE * file = std::fopen(path.c_str(), "re")) {
                if (std::fgets(line, sizeof(line), file)) {
                    siblings.insert(line);
                }
                std::fclose(file);
            }
        }
        cores = std::max(1, siblings.empty() ? threads : static_cast<int>(siblings.size()));
    }
    if (FILE * file = std::fopen("/sys/fs/cgroup/cpu.max", "re")) {  // "QUOTA PERIOD" or "max PERIOD", microseconds
        char line[64] = "";
        if (std::fgets(line, sizeof(line), file)) {
            char *          rest   = nullptr;
            const long long quota  = std::strtoll(line, &rest, 10);
            const long long period = std::strtoll(rest, nullptr, 10);
            if (quota > 0 && period > 0) {
                cores = static_cast<int>(std::max(1LL, std::min<long long>(cores, (quota + period - 1) / period)));
            }
        }
        std::fclose(file);
    }
#endif
    return cores;
}

}  // namespace pcr
