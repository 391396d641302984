// Qwen3-ForcedAligner, which tells when each word of a known text was said:
//
//     log-mel -> Qwen3-Omni's audio tower -> Qwen3 -> classifier of time bins
//     prompt: <|audio_start|> AUDIO <|audio_end|> WORD <timestamp><timestamp> WORD <timestamp><timestamp> ...
//     At a word's two <timestamp>s the classifier says in which bin of 80 ms it begins and ends.
//
// Reference: Qwen3ASRForTokenClassification of transformers (models/qwen3_asr/modeling_qwen3_asr.py).

#include "families/family.h"
#include "families/qwen3_asr.h"

namespace pcr {

namespace {

// Where a file does not say otherwise.
constexpr int32_t bin_ms = 80;

// A file of Qwen3-ASR's architecture whose head has not a row for each token.
bool holds(const GgufFile & file) {
    const ggml_tensor * const head  = file.find("output.weight");
    const ggml_tensor * const embed = file.find("token_embd.weight");
    return head && embed && head->ne[1] != embed->ne[1];
}

void load(Model & model) {
    WeightStore & store = model.store;
    const Sizes   sizes(store.file, std::string(qwen3_aligner.architecture) + ".");
    load_qwen3_parts(model, sizes, /*own_head =*/false);

    const int64_t bins = store.file.find("output.weight")->ne[1];
    if (bins < 1 || bins > 1 << 20 || (sizes.has("classify_num") && sizes.at_most("classify_num", 1 << 20) != bins)) {
        throw Error(PCR_ERROR_FORMAT, format("the classifier has %lld rows, which is not its number of time bins",
                                             static_cast<long long>(bins)));
    }
    Alignment & alignment = model.alignment;
    alignment.bins        = static_cast<int32_t>(bins);
    alignment.bin_ms = sizes.has("timestamp_segment_time") ? sizes.at_most("timestamp_segment_time", 60000) : bin_ms;
    alignment.classifier =
        store.linear("output", model.decoder.hidden, bins, store.file.find("output.bias") != nullptr);

    ControlTokens controls(model.tokenizer);
    const auto    special = [&](const char * key, const char * name, int32_t published) {
        return controls.find(name, published, sizes, key);
    };
    const int32_t audio_start = special("audio_start_token_id", "<|audio_start|>", 151669);
    const int32_t audio_end   = special("audio_end_token_id", "<|audio_end|>", 151670);
    const int32_t end         = special("eos_token_id", "<|im_end|>", 151645);
    alignment.place           = special("timestamp_token_id", "<timestamp>", 151705);
    model.end_tokens          = {end};
    model.tokenizer.set_special({audio_start, audio_end, end, alignment.place});
    model.prompt = [audio_start, audio_end](const char * language, const char * context) {
        if (language || context) {
            throw Error(PCR_ERROR_UNSUPPORTED, format("this model takes no %s: it writes no text, but tells when one "
                                                      "was said",
                                                      language ? "language" : "context"));
        }
        return Prompt{{audio_start}, {audio_end}};
    };
}

}  // namespace

const Family qwen3_aligner = {"qwen3asr", load, holds};

}  // namespace pcr
