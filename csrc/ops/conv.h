// The encoder's convolutions by our own kernels: images of chunks, channels fastest, so that nine taps are nine products
// of strided rows and no patch is ever copied.
#pragma once

#include "device/graph.h"
#include "nn/model.h"

namespace pcr {

// Chunks of F32 [time, freq, 1, chunks] -> F32 [channels * freq / 8, time / 8, chunks], freq fastest: three convolutions
// of kernel 3, stride 2, padding 1, each with GELU behind it.
ggml_tensor * conv_stem(Graph & graph, Compute & compute, const EncoderWeights & weights, ggml_tensor * chunks);

// A kernel F32/F16/BF16 [time 3, freq 3, in, out] as columns of a product: [groups of out][tap][steps of in], the taps
// of one frequency after the other. With one input channel the taps themselves are the product's only step.
std::vector<uint32_t> conv_columns(const Arithmetic & how, const ggml_tensor * kernel);

}  // namespace pcr
