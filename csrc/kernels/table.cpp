// One instruction set's kernels. Compiled once for each (CMakeLists.txt), which PCR_KERNELS names.
#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/gemv.h"
#include "kernels/int8.h"
#include "kernels/int8_gemm.h"
#include "kernels/log_mel.h"
#include "kernels/reduce.h"
#include "kernels/unpack.h"

namespace pcr {

namespace {

constexpr Kernels make_table(const char * name) {
    Kernels table{};
    table.name = name;
#if defined(PCR_BF16)
    table.bf16 = true;
#endif
#if defined(PCR_AMX)
    table.tiles = true;
#endif
    table.gemm           = gemm;
    table.unpack         = unpack;
    table.unpack_f32     = unpack_f32;
    table.pack           = pack;
    table.epilogue_rows  = epilogue_rows;
    table.epilogue_panel = epilogue_panel;
    table.epilogue_words = epilogue_words;
    table.gemv           = gemv;
    table.int8_takes     = int8_takes;
    table.int8_quantize  = int8_quantize;
    table.int8_error     = int8_error;
    table.int8_gemv      = int8_gemv;
    table.quantize_q8_0  = quantize_q8_0;
#if PCR_INT8_GEMM
    table.int8_unpack         = int8_unpack;
    table.int8_pack           = int8_pack;
    table.int8_gemm           = int8_gemm;
    table.int8_epilogue_panel = int8_epilogue_panel;
#endif
    table.silu_multiply = silu_multiply;
    table.add           = add;
    table.attend        = attend;
    table.log_mel       = log_mel;
    table.max           = max_of;
    table.sum_exp       = sum_exp;
    return table;
}

}  // namespace

#define PCR_JOIN2(a, b) a##b
#define PCR_JOIN(a, b) PCR_JOIN2(a, b)
#define PCR_TEXT2(a) #a
#define PCR_TEXT(a) PCR_TEXT2(a)

extern const Kernels PCR_JOIN(kernels_, PCR_KERNELS);
constexpr Kernels    PCR_JOIN(kernels_, PCR_KERNELS) = make_table(PCR_TEXT(PCR_KERNELS));

}  // namespace pcr
