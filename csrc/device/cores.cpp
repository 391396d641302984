#include "device/cores.h"

#include "error.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <numeric>
#include <set>
#include <sstream>
#include <thread>

#if defined(_WIN32)
#  define WIN32_LEAN_AND_MEAN
#  include <windows.h>
#elif defined(__APPLE__)
#  include <sys/sysctl.h>
#elif defined(__linux__)
#  include <sched.h>
#endif

namespace pcr {

namespace {

constexpr int     max_cpus = 1 << 16;
constexpr int64_t no_limit = std::numeric_limits<int64_t>::max();

std::string first_line(const std::string & path) {
    std::ifstream file(path);
    std::string   line;
    std::getline(file, line);
    return line;
}

// A whole number at the beginning of a text; otherwise where there is none.
int64_t number_in(const std::string & text, int64_t otherwise) {
    const char *    begin = text.c_str();
    char *          end   = nullptr;
    const long long value = std::strtoll(begin, &end, 10);
    return end == begin ? otherwise : value;
}

std::vector<std::string> split(const std::string & text, char separator) {
    std::vector<std::string> parts;
    std::istringstream       stream(text);
    for (std::string part; std::getline(stream, part, separator);) {
        parts.push_back(part);
    }
    return parts;
}

bool contains(const std::vector<std::string> & words, const std::string & word) {
    return std::find(words.begin(), words.end(), word) != words.end();
}

// ---- Cores

// Of the allowed CPUs those that need not be waited for; all of them where the system tells no difference.
std::vector<int> fast_cpus(const std::string & root, const std::vector<int> & allowed) {
    std::vector<int> fast;
    // Intel's processors with two kinds of cores.
    for (const int cpu : parse_cpu_list(first_line(root + "/sys/devices/cpu_core/cpus"))) {
        if (std::find(allowed.begin(), allowed.end(), cpu) != allowed.end()) {
            fast.push_back(cpu);
        }
    }
    if (!fast.empty()) {
        return fast;
    }
    // ARM's: the fastest core has 1024, slow ones have up to about half of it, middle ones more.
    std::vector<int64_t> capacities;
    capacities.reserve(allowed.size());
    for (const int cpu : allowed) {
        capacities.push_back(
            number_in(first_line(root + format("/sys/devices/system/cpu/cpu%d/cpu_capacity", cpu)), 0));
    }
    const int64_t most = *std::max_element(capacities.begin(), capacities.end());
    for (size_t i = 0; i < allowed.size(); i++) {
        if (capacities[i] <= 0) {
            return allowed;
        }
        if (3 * capacities[i] >= 2 * most) {
            fast.push_back(allowed[i]);
        }
    }
    return fast;
}

// CPUs that are hardware threads of one core count once.
int64_t physical_cores(const std::string & root, const std::vector<int> & cpus) {
    std::set<std::string> cores;
    for (const int cpu : cpus) {
        const std::string siblings =
            first_line(root + format("/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu));
        cores.insert(siblings.empty() ? std::to_string(cpu) : siblings);
    }
    return static_cast<int64_t>(cores.size());
}

// ---- Quotas of control groups

struct Mount {
    std::string root;   // the group that is mounted ...
    std::string point;  // ... and where
};

// Spaces, tabs, newlines and backslashes are written as octal numbers in mountinfo.
std::string unescaped(const std::string & text) {
    std::string out;
    for (size_t i = 0; i < text.size(); i++) {
        const auto digit = [&](size_t at) { return at < text.size() && text[at] >= '0' && text[at] <= '7'; };
        if (text[i] == '\\' && digit(i + 1) && digit(i + 2) && digit(i + 3)) {
            out += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0'));
            i += 3;
        } else {
            out += text[i];
        }
    }
    return out;
}

// Where groups of one version are mounted; of version 1 those with the controller "cpu".
std::vector<Mount> mounts_of(const std::string & root, int version) {
    std::vector<Mount> found;
    std::ifstream      file(root + "/proc/self/mountinfo");
    for (std::string line; std::getline(file, line);) {
        // ID PARENT DEVICE ROOT POINT OPTIONS [more of them] - TYPE SOURCE OPTIONS
        const std::vector<std::string> fields = split(line, ' ');
        const auto                     dash   = std::find(fields.begin(), fields.end(), "-");
        if (dash - fields.begin() < 6 || fields.end() - dash < 4) {
            continue;
        }
        if (version == 2 ? dash[1] == "cgroup2" : dash[1] == "cgroup" && contains(split(dash[3], ','), "cpu")) {
            found.push_back({unescaped(fields[3]), unescaped(fields[4])});
        }
    }
    return found;
}

// The group of this process, "/..."; "" where it has none.
std::string group_of(const std::string & root, int version) {
    std::ifstream file(root + "/proc/self/cgroup");
    for (std::string line; std::getline(file, line);) {
        // HIERARCHY:CONTROLLERS:GROUP
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) {
            continue;
        }
        const std::string controllers = line.substr(first + 1, second - first - 1);
        if (version == 2 ? line.substr(0, first) == "0" && controllers.empty()
                         : contains(split(controllers, ','), "cpu")) {
            return line.substr(second + 1);
        }
    }
    return "";
}

// Cores' worth of time that a group may take, rounded up.
int64_t quota_of(const std::string & folder, int version) {
    int64_t quota = 0, period = 0;  // microseconds
    if (version == 2) {
        const std::string limit = first_line(folder + "/cpu.max");  // "QUOTA PERIOD" or "max PERIOD"
        quota                   = number_in(limit, 0);
        period                  = number_in(limit.substr(std::min(limit.find(' '), limit.size())), 0);
    } else {
        quota  = number_in(first_line(folder + "/cpu.cfs_quota_us"), 0);  // -1: none
        period = number_in(first_line(folder + "/cpu.cfs_period_us"), 0);
    }
    return quota > 0 && period > 0 ? quota / period + (quota % period != 0) : no_limit;
}

// The smallest quota of this process's group and of those above it, as far as they are mounted.
int64_t smallest_quota(const std::string & root, int version) {
    const std::vector<Mount> mounts = mounts_of(root, version);
    const std::string        group  = group_of(root, version);
    if (mounts.empty() || group.empty()) {
        return no_limit;
    }
    // A group that no mount shows belongs to another namespace: what is mounted first is as near as we come to it.
    std::string folder = root + mounts.front().point;
    size_t      top    = folder.size();  // where the mount point ends
    for (const Mount & mount : mounts) {
        const std::string above = mount.root == "/" ? "" : mount.root;
        if (group.compare(0, above.size(), above) == 0 &&
            (group.size() == above.size() || group[above.size()] == '/')) {
            folder = root + mount.point;
            top    = folder.size();
            folder.append(group, above.size());
            break;
        }
    }
    int64_t least = quota_of(folder, version);
    while (folder.size() > top) {
        folder.resize(folder.rfind('/'));
        least = std::min(least, quota_of(folder, version));
    }
    return least;
}

// ---- Other systems

#if defined(_WIN32)

// 0: the system does not tell.
int system_cores() {
    DWORD bytes = 0;
    GetLogicalProcessorInformationEx(RelationProcessorCore, nullptr, &bytes);
    std::vector<uint8_t> held(bytes);
    const auto           at = [&](DWORD offset) {
        return reinterpret_cast<PSYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX>(&held[offset]);
    };
    if (bytes == 0 || !GetLogicalProcessorInformationEx(RelationProcessorCore, at(0), &bytes)) {
        return 0;
    }
    // Of a machine with several groups of processors a process may use all: its mask is that of one group.
    DWORD_PTR allowed = 0, present = 0;
    if (GetActiveProcessorGroupCount() > 1 || !GetProcessAffinityMask(GetCurrentProcess(), &allowed, &present)) {
        allowed = ~DWORD_PTR(0);
    }
    int fastest = -1, cores = 0;
    for (DWORD offset = 0; offset < bytes; offset += at(offset)->Size) {
        const PROCESSOR_RELATIONSHIP & core  = at(offset)->Processor;
        const int                      speed = (&core.Flags)[1];  // EfficiencyClass, which older headers do not name
        if ((core.GroupMask[0].Mask & allowed) == 0 || speed < fastest) {
            continue;
        }
        cores   = speed > fastest ? 1 : cores + 1;
        fastest = speed;
    }
    return cores;
}

#elif defined(__APPLE__)

int system_cores() {
    for (const char * name : {"hw.perflevel0.physicalcpu", "hw.physicalcpu"}) {  // Intel's have no levels
        int    cores = 0;
        size_t size  = sizeof(cores);
        if (sysctlbyname(name, &cores, &size, nullptr, 0) == 0 && cores > 0) {
            return cores;
        }
    }
    return 0;
}

#elif defined(__linux__)

std::vector<int> allowed_cpus() {
    // A mask that is smaller than the kernel's own is refused.
    for (size_t words = 1024 / (8 * sizeof(unsigned long)); words <= max_cpus; words *= 2) {
        std::vector<unsigned long> mask(words);
        const size_t               bytes = words * sizeof(unsigned long);
        auto * const               set   = reinterpret_cast<cpu_set_t *>(mask.data());
        if (sched_getaffinity(0, bytes, set) == 0) {
            std::vector<int> cpus;
            for (int cpu = 0; cpu < static_cast<int>(8 * bytes); cpu++) {
                if (CPU_ISSET_S(cpu, bytes, set)) {
                    cpus.push_back(cpu);
                }
            }
            return cpus;
        }
    }
    std::vector<int> all(std::max(1U, std::thread::hardware_concurrency()));
    std::iota(all.begin(), all.end(), 0);
    return all;
}

int system_cores() {
    return usable_cores_of("", allowed_cpus());
}

#else

int system_cores() {
    return 0;
}

#endif

}  // namespace

std::vector<int> parse_cpu_list(const std::string & list) {
    std::vector<int> cpus;
    for (const std::string & part : split(list, ',')) {
        const size_t  dash  = part.find('-', 1);
        const int64_t first = number_in(part, -1);
        const int64_t last  = dash == std::string::npos ? first : number_in(part.substr(dash + 1), -1);
        for (int64_t cpu = std::max<int64_t>(first, 0); first >= 0 && cpu <= last && cpu < max_cpus; cpu++) {
            cpus.push_back(static_cast<int>(cpu));
        }
    }
    return cpus;
}

int usable_cores_of(const std::string & root, const std::vector<int> & allowed) {
    if (allowed.empty()) {
        return 1;
    }
    const int64_t cores = physical_cores(root, fast_cpus(root, allowed));
    return static_cast<int>(std::max<int64_t>(1, std::min({cores, smallest_quota(root, 2), smallest_quota(root, 1)})));
}

int usable_cores() {
    const int cores = system_cores();
    return cores > 0 ? cores : static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}

}  // namespace pcr
