// MOSS-Transcribe: Qwen3-Omni's audio tower, a gated MLP as the adapter, and Qwen3.
// Here are its metadata keys, what may be in them, its tensors' names, its prompt.
#pragma once

#include "mel.h"
#include "nn/weight_store.h"
#include "tokenizer.h"

#include <cstdint>
#include <vector>

namespace pcr::moss_transcribe {

constexpr const char * architecture = "moss_transcribe";

EncoderWeights load_encoder(WeightStore & store);
// With the adapter's weights, which are the encoder's and the decoder's between them.
DecoderWeights load_decoder(WeightStore & store, EncoderWeights & encoder);
LogMel         load_front_end(WeightStore & store, const EncoderWeights & encoder);
Tokenizer      load_tokenizer(const GgufFile & file, const DecoderWeights & decoder);

// Tokens before the audio rows, tokens after them, and the one that ends a text.
struct Prompt {
    std::vector<int32_t> before, after;
    int32_t              eos_token;
};
Prompt load_prompt(const GgufFile & file, const DecoderWeights & decoder, Tokenizer & tokenizer);

}  // namespace pcr::moss_transcribe
