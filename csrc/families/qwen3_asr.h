// What Qwen3-ASR's files have in common with those of its forced aligner.
#pragma once

#include "families/parts.h"

namespace pcr {

// Audio tower, decoder, spectrogram and tokenizer. own_head: "output" is the decoder's head; otherwise its embedding is.
void load_qwen3_parts(Model & model, const Sizes & sizes, bool own_head);

}  // namespace pcr
