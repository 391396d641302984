// Which of the kernels this processor runs.
#include "kernels.h"

#if defined(__x86_64__) && defined(__linux__)
#  include <sys/syscall.h>
#  include <unistd.h>
#endif

namespace pcr {

extern const Kernels kernels_generic;
#if defined(PCR_KERNELS_X86)
extern const Kernels kernels_avx2, kernels_avx512, kernels_avx512_bf16, kernels_amx;

namespace {

// The kernel gives a process AMX's registers only when it asks for them.
bool ask_for_amx() {
#  if defined(__linux__)
    constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#  else
    return false;
#  endif
}

// CPUID leaf 7: EDX bits 22 and 24, AMX-BF16 and AMX-TILE. The compilers' own check does not know them all.
bool has_amx() {
    unsigned eax = 7, ebx = 0, ecx = 0, edx = 0;
    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    return (edx >> 22 & 1) && (edx >> 24 & 1);
}

}  // namespace
#endif

bool bf16_pays(const Kernels & kernels) {
#if defined(PCR_KERNELS_X86)
    return kernels.tiles || (kernels.bf16 && !__builtin_cpu_is("intel"));
#else
    return kernels.bf16;
#endif
}

const std::vector<const Kernels *> & usable_kernels() {
    static const std::vector<const Kernels *> found = [] {
        std::vector<const Kernels *> list = {&kernels_generic};
#if defined(PCR_KERNELS_X86)
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
            list.push_back(&kernels_avx2);
            if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
                list.push_back(&kernels_avx512);
                if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) {
                    list.push_back(&kernels_avx512_bf16);
                    if (has_amx() && ask_for_amx()) {
                        list.push_back(&kernels_amx);
                    }
                }
            }
        }
#endif
        return list;
    }();
    return found;
}

}  // namespace pcr
