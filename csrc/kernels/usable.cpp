// Which of the kernels this processor runs.
#include "kernels/kernels.h"

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

// Whether CPUID gives these bits: what __builtin_cpu_supports does not know in every compiler.
bool has_bits(unsigned leaf, unsigned subleaf, unsigned eax_bits, unsigned ecx_bits, unsigned edx_bits) {
    unsigned eax = leaf, ebx = 0, ecx = subleaf, edx = 0;
    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    return (eax & eax_bits) == eax_bits && (ecx & ecx_bits) == ecx_bits && (edx & edx_bits) == edx_bits;
}

bool has_f16c() {
    return has_bits(1, 0, 0, 1u << 29, 0);
}

bool has_bf16_and_vnni() {
    return has_bits(7, 1, 1u << 5, 0, 0) && has_bits(7, 0, 0, 1u << 11, 0);
}

bool has_amx() {  // AMX-BF16 and AMX-TILE
    return has_bits(7, 0, 0, 0, 1u << 22 | 1u << 24);
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
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) {
            list.push_back(&kernels_avx2);
            if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
                list.push_back(&kernels_avx512);
                if (has_bf16_and_vnni()) {
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
