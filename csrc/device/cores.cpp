#include "device/cores.h"

#include "error.h"

#include <algorithm>
#include <cstdio>
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
        long long quota = 0, period = 0;
        if (std::fscanf(file, "%lld %lld", &quota, &period) == 2 && quota > 0 && period > 0) {
            cores = std::max(1, std::min(cores, static_cast<int>((quota + period - 1) / period)));
        }
        std::fclose(file);
    }
#endif
    return cores;
}

}  // namespace pcr
