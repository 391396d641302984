// What Qwen3-ASR's files have in common with those of its forced aligner.
#pragma once

#include "families/parts.h"

namespace pcr {

// Audio tower, decoder, spectrogram and tokenizer. own_head: "output" is the decoder's head; otherwise its embedding is.
void load_qwen3_parts(Model & model, const Sizes & sizes, bool own_head);

// A control token: by the file's key; by its name in the vocabulary; or else, since converters may leave the names of
// control tokens out of a vocabulary, where the published one has it. key may be null.
int32_t qwen3_special(const Model & model, const Sizes & sizes, const char * key, const char * name, int32_t published);

}  // namespace pcr
