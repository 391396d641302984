// Qwen3-ASR:
//
//     log-mel -> Qwen3-Omni's audio tower -> Qwen3
//     prompt: <|im_start|>system\n CONTEXT <|im_end|>\n <|im_start|>user\n <|audio_start|> AUDIO <|audio_end|> <|im_end|>\n
//             <|im_start|>assistant\n, and for a given language behind it: language NAME <asr_text>
//     text: language NAME <asr_text> TEXT; language None where nobody speaks. Where the language was given: TEXT.

#include "families/qwen3_asr.h"

#include "families/family.h"

namespace pcr {

namespace {

constexpr AudioTowerNames audio_tower = {
    "audio.conv.", "audio.conv_out", "audio.blk.", "attn_norm", "attn_q",        "attn_k",      "attn_v",
    "attn_out",    "ffn_norm",       "ffn_up",     "ffn_down",  "audio.ln_post", "audio.proj1", "audio.proj2",
};

constexpr DecoderNames qwen3 = {
    "token_embd",  "output",      "blk.",     "attn_norm", "attn_q", "attn_k",   "attn_v",      "attn_output",
    "attn_q_norm", "attn_k_norm", "ffn_norm", "ffn_gate",  "ffn_up", "ffn_down", "output_norm",
};

// Where a file does not say otherwise.
constexpr int32_t n_window = 50, n_window_infer = 800, max_positions = 1500;
constexpr float   audio_norm_eps = 1e-5f;

// Clips are padded to half a second, by their makers too.
constexpr int64_t padded_samples = 8000;

std::function<Prompt(const char *, const char *)> make_prompt(const Sizes & sizes, Model & model) {
    Tokenizer &   tokenizer = model.tokenizer;
    ControlTokens controls(tokenizer);
    const auto    special = [&](const char * key, const char * name, int32_t published) {
        return controls.find(name, published, sizes, key);
    };
    const int32_t end         = special("eos_token_id", "<|im_end|>", 151645);
    const int32_t audio_start = special("audio_start_token_id", "<|audio_start|>", 151669);
    const int32_t audio_end   = special("audio_end_token_id", "<|audio_end|>", 151670);
    const int32_t im_start = controls.find("<|im_start|>", 151644), im_end = controls.find("<|im_end|>", 151645);
    const int32_t end_of_text = controls.find("<|endoftext|>", 151643);
    const int32_t asr_text    = controls.find("<asr_text>", 151704);
    model.end_tokens          = {end};
    for (const int32_t other : {im_end, end_of_text}) {
        if (other != end) {
            model.end_tokens.push_back(other);
        }
    }
    tokenizer.set_special({audio_start, audio_end, end, im_start, im_end, end_of_text});
    tokenizer.rename(asr_text, "<asr_text>");

    return [=, &tokenizer](const char * language, const char * context) {
        const auto joined = [&](const char * before, const std::string & text, const char * after) {
            std::vector<int32_t> all = controls.encode(before);
            for (const std::vector<int32_t> & tokens : {tokenizer.encode(text), controls.encode(after)}) {
                all.insert(all.end(), tokens.begin(), tokens.end());
            }
            return all;
        };
        return Prompt{joined("<|im_start|>", "system\n" + std::string(context ? context : ""),
                             "<|im_end|>\n<|im_start|>user\n<|audio_start|>"),
                      joined("<|audio_end|><|im_end|>\n<|im_start|>",
                             "assistant\n" + (language ? "language " + std::string(language) : std::string()),
                             language ? "<asr_text>" : "")};
    };
}

void load(Model & model) {
    const Sizes sizes(model.store.file, std::string(qwen3_asr.architecture) + ".");
    load_qwen3_parts(model, sizes, model.store.file.find("output.weight") != nullptr);
    model.prompt = make_prompt(sizes, model);
}

}  // namespace

void load_qwen3_parts(Model & model, const Sizes & sizes, bool own_head) {
    WeightStore & store = model.store;

    AudioTowerSizes tower{};
    tower.n_mels             = sizes.at_most("n_mels", 1024);
    tower.n_layers           = sizes.layers("audio.n_layers");
    tower.d_model            = sizes.width("audio.d_model");
    tower.n_heads            = sizes.width("audio.n_heads");
    tower.ffn_dim            = sizes.width("audio.ff_dim");
    tower.conv_channels      = sizes.width("audio.conv_channels");
    tower.output_dim         = sizes.width("audio.proj_dim");
    tower.n_window           = sizes.at_most("audio.n_window", 1 << 14, n_window);
    tower.n_window_infer     = sizes.at_most("audio.n_window_infer", 1 << 20, n_window_infer);
    tower.max_positions      = sizes.at_most("audio.max_source_pos", 1 << 24, max_positions);
    tower.norm_eps           = audio_norm_eps;
    model.encoder            = load_audio_tower(store, tower, audio_tower);
    model.encoder.pads_short = true;
    model.padded_samples     = padded_samples;

    DecoderSizes decoder{};
    decoder.hidden        = sizes.width("llm.d_model");
    decoder.n_layers      = sizes.layers("llm.n_layers");
    decoder.n_heads       = sizes.width("llm.n_heads");
    decoder.n_kv_heads    = sizes.width("llm.n_kv_heads");
    decoder.head_dim      = sizes.at_most("llm.head_dim", 512);
    decoder.ffn_dim       = sizes.width("llm.ff_dim");
    decoder.vocab         = sizes.at_most("llm.vocab_size", 1 << 22);
    decoder.max_positions = sizes.at_most("llm.max_pos", 1 << 24);
    decoder.rope_theta    = sizes.number("llm.rope_theta");
    decoder.norm_eps      = sizes.number("llm.rms_norm_eps");
    decoder.tied          = !own_head;
    model.decoder         = load_decoder(store, decoder, qwen3);

    model.log_mel   = load_log_mel(store, sizes.key(""), tower.n_mels);
    model.tokenizer = load_tokenizer(store.file, decoder.vocab);
}

const Family qwen3_asr = {"qwen3asr", load};

}  // namespace pcr
