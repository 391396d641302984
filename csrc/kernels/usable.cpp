// Which of the kernels this processor runs.
#include "kernels/kernels.h"

#if defined(__x86_64__) && defined(__linux__)
#  include <sys/syscall.h>
#  include <unistd.h>
#elif defined(PCR_KERNELS_ARM) && defined(__linux__)
#  include <sys/auxv.h>
#elif defined(PCR_KERNELS_ARM) && defined(__APPLE__)
#  include <sys/sysctl.h>
#elif defined(PCR_KERNELS_ARM) && defined(_WIN32)
#  include <windows.h>
#endif

namespace pcr {

#if defined(PCR_KERNELS_X86)
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

bool has_avx2() {  // with FMA and F16C
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_bits(1, 0, 0, 1u << 29, 0);
}

bool has_avx2_vnni() {
    return has_avx2() && has_bits(7, 1, 1u << 4, 0, 0);
}

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512_bf16() {  // with VNNI
    return has_avx512() && has_bits(7, 1, 1u << 5, 0, 0) && has_bits(7, 0, 0, 1u << 11, 0);
}

bool has_amx() {  // AMX-BF16 and AMX-TILE
    return has_avx512_bf16() && has_bits(7, 0, 0, 0, 1u << 22 | 1u << 24) && ask_for_amx();
}

}  // namespace
#endif

#if defined(PCR_KERNELS_ARM)
namespace {

#  if defined(__linux__)
// Bits of the kernel's asm/hwcap.h, which older C libraries do not have.
bool has_dot_products() {
    return (getauxval(AT_HWCAP) & 1ul << 20) != 0;  // HWCAP_ASIMDDP
}

bool has_bf16() {
    return has_dot_products() && (getauxval(AT_HWCAP2) & 1ul << 14) != 0;  // HWCAP2_BF16
}
#  elif defined(__APPLE__)
bool has_feature(const char * name) {
    int    value = 0;
    size_t size  = sizeof(value);
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}

bool has_dot_products() {
    return has_feature("hw.optional.arm.FEAT_DotProd");
}

bool has_bf16() {
    return has_dot_products() && has_feature("hw.optional.arm.FEAT_BF16");
}
#  else
bool has_dot_products() {
#    if defined(PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE)
    return IsProcessorFeaturePresent(PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE) != 0;
#    else
    return false;
#    endif
}

bool has_bf16() {
#    if defined(PF_ARM_V86_BF16_INSTRUCTIONS_AVAILABLE)
    return has_dot_products() && IsProcessorFeaturePresent(PF_ARM_V86_BF16_INSTRUCTIONS_AVAILABLE) != 0;
#    else
    return false;
#    endif
}
#  endif

}  // namespace
#endif

bool bf16_pays(const Kernels & kernels) {
#if defined(PCR_KERNELS_X86)
    return kernels.tiles || (kernels.bf16 && !__builtin_cpu_is("intel"));
#elif defined(__APPLE__)
    (void)kernels;
    return false;  // Apple does not say how fast they are
#else
    return kernels.bf16;
#endif
}

// Takes the kernels of this name (CMakeLists.txt), where this processor runs them.
#define PCR_TAKE(name, condition)            \
    {                                        \
        extern const Kernels kernels_##name; \
        if (condition) {                     \
            list.push_back(&kernels_##name); \
        }                                    \
    }

const std::vector<const Kernels *> & usable_kernels() {
    static const std::vector<const Kernels *> found = [] {
        std::vector<const Kernels *> list;
        PCR_TAKE(generic, true)
#if defined(PCR_KERNELS_X86)
        PCR_TAKE(avx2, has_avx2())
        PCR_TAKE(avx2_vnni, has_avx2_vnni())
        PCR_TAKE(avx512, has_avx512())
        PCR_TAKE(avx512_bf16, has_avx512_bf16())
        PCR_TAKE(amx, has_amx())
#elif defined(PCR_KERNELS_ARM)
        PCR_TAKE(dotprod, has_dot_products())
        PCR_TAKE(bf16, has_bf16())
#endif
        return list;
    }();
    return found;
}

}  // namespace pcr
