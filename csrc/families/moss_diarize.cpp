// MOSS-Transcribe-Diarize:
//
//     log-mel of each 30 s -> Whisper's audio tower, 4 rows joined to one -> MLP, LayerNorm -> Qwen3
//     prompt: <|im_start|>user\n <|audio_start|> AUDIO <|audio_end|> \n INSTRUCTION <|im_end|>\n <|im_start|>assistant\n,
//             where AUDIO has the second in digits among its rows, every 2 or 5 s
//     text: [START][S01]TEXT[END], again and again; START and END in seconds

#include "families/family.h"
#include "families/parts.h"

#include <algorithm>
#include <string>

namespace pcr {

namespace {

constexpr WhisperNames whisper = {
    "enc.conv", "enc.pos_embed.weight",
    "enc.blk.", "attn_norm",
    "attn_q",   "attn_k",
    "attn_v",   "attn_out",
    "ffn_norm", "ffn_up",
    "ffn_down", "enc.ln_post",
};

constexpr DecoderNames qwen3 = {
    "token_embd", "output", "blk.",     "attn_norm", "attn_q", "attn_k",   "attn_v",      "attn_o",
    "q_norm",     "k_norm", "ffn_norm", "ffn_gate",  "ffn_up", "ffn_down", "output_norm",
};

// Where a file does not say otherwise.
constexpr int32_t  max_positions   = 131072;
constexpr float    audio_norm_eps  = 1e-5f;
constexpr double   rows_per_second = 12.5;
constexpr int32_t  marker_seconds  = 5;
const char * const prompt_before   = "<|im_start|>user\n<|audio_start|>";
const char * const prompt_after =
    "<|audio_end|>\n"
    "请将音频转写为文本，每一段需以起始时间戳和说话人编号（[S01]、[S02]、[S03]…）开头，正文为对应的语音内容，"
    "并在段末标注结束时间戳，以清晰标明该段语音范围。"
    "<|im_end|>\n<|im_start|>assistant\n";

// Stands between the instruction and the words that may occur, as its makers have it.
const char * const hint = "热词提示：";
// Stands for these words in a file's own "prompt_after_context".
const char * const words = "{context}";

size_t find_in(const std::string & text, const char * part, const std::string & key) {
    const size_t place = text.find(part);
    if (place == std::string::npos) {
        throw Error(PCR_ERROR_FORMAT, "the file's '" + key + "' has no " + part + " in it: '" + text + "'");
    }
    return place;
}

std::function<Prompt(const char *, const char *)> make_prompt(const GgufFile & file, const Sizes & sizes,
                                                              Model & model) {
    Tokenizer &   tokenizer = model.tokenizer;
    ControlTokens controls(tokenizer);
    const int32_t end = controls.find("<|im_end|>", 151645), end_of_text = controls.find("<|endoftext|>", 151643);
    const int32_t start       = controls.find("<|im_start|>", 151644);
    const int32_t audio_start = controls.find("<|audio_start|>", 151669);
    const int32_t audio_end   = controls.find("<|audio_end|>", 151670);
    model.end_tokens          = {end, end_of_text};
    tokenizer.set_special({end, end_of_text, start, audio_start, audio_end});

    const std::string before   = file.string(sizes.key("prompt_before").c_str(), prompt_before);
    const std::string after    = file.string(sizes.key("prompt_after").c_str(), prompt_after);
    std::string       in_place = after;
    in_place.insert(find_in(after, "<|im_end|>", sizes.key("prompt_after")), hint + std::string(words));
    const std::string hinted_key = sizes.key("prompt_after_context");
    const std::string hinted     = file.string(hinted_key.c_str(), in_place.c_str());

    const size_t place = find_in(hinted, words, hinted_key), behind = place + std::char_traits<char>::length(words);
    // The text between control tokens, which is tokenized in one piece.
    const size_t last = hinted.rfind("|>", place), first = last == std::string::npos ? 0 : last + 2;
    const size_t next = std::min(hinted.find("<|", behind), hinted.size());
    return [=, &tokenizer](const char * language, const char * context) {
        if (language) {
            throw Error(PCR_ERROR_UNSUPPORTED, "this model takes no language: it writes what it hears");
        }
        if (!context) {
            return Prompt{controls.encode(before), controls.encode(after)};
        }
        Prompt            prompt{controls.encode(before), controls.encode(hinted.substr(0, first))};
        const std::string text = hinted.substr(first, place - first) + context + hinted.substr(behind, next - behind);
        for (const std::vector<int32_t> & tokens : {tokenizer.encode(text), controls.encode(hinted.substr(next))}) {
            prompt.after.insert(prompt.after.end(), tokens.begin(), tokens.end());
        }
        return prompt;
    };
}

void load(Model & model) {
    WeightStore & store = model.store;
    const Sizes   sizes(store.file, "moss_diarize.");

    WhisperSizes tower{};
    tower.n_mels         = sizes.at_most("enc.n_mels", 1024);
    tower.n_layers       = sizes.layers("enc.n_layers");
    tower.d_model        = sizes.width("enc.d_model");
    tower.n_heads        = sizes.width("enc.n_heads");
    tower.ffn_dim        = sizes.width("enc.ffn_dim");
    tower.max_positions  = sizes.at_most("enc.max_pos", 1 << 14);
    tower.merge          = sizes.at_most("audio_merge_size", 64, 4);
    tower.norm_eps       = audio_norm_eps;
    model.encoder        = load_whisper(store, tower, whisper);
    model.window_samples = model.encoder.window_frames() * LogMel::hop;

    DecoderSizes decoder{};
    decoder.hidden        = sizes.width("llm.dim");
    decoder.n_layers      = sizes.layers("llm.n_layers");
    decoder.n_heads       = sizes.width("llm.n_heads");
    decoder.n_kv_heads    = sizes.width("llm.n_kv_heads");
    decoder.head_dim      = sizes.at_most("llm.head_dim", 512);
    decoder.ffn_dim       = sizes.width("llm.ff_dim");
    decoder.vocab         = sizes.at_most("llm.vocab_size", 1 << 22);
    decoder.max_positions = sizes.at_most("llm.max_pos", 1 << 24, max_positions);
    decoder.rope_theta    = sizes.number("llm.rope_theta");
    decoder.norm_eps      = sizes.number("llm.rms_eps");
    decoder.tied          = !store.file.find("output.weight");
    model.decoder         = load_decoder(store, decoder, qwen3);

    ProjectorWeights & projector = model.projector;
    projector.fc1                = store.linear("adaptor.fc1", model.encoder.output_dim, decoder.hidden, true);
    projector.fc2                = store.linear("adaptor.fc2", decoder.hidden, decoder.hidden, true);
    projector.norm               = store.norm("adaptor.norm", decoder.hidden, true);
    projector.norm_eps           = decoder.norm_eps;

    model.log_mel           = load_log_mel(store, sizes.key(""), tower.n_mels);
    model.tokenizer         = load_tokenizer(store.file, decoder.vocab);
    model.prompt            = make_prompt(store.file, sizes, model);
    const char *const every = "time_marker_every_seconds", *const rate = "audio_tokens_per_second";
    const double per_second = sizes.has(rate) ? double(sizes.number(rate)) : rows_per_second;
    if (per_second > LogMel::sample_rate) {
        throw Error(PCR_ERROR_FORMAT, format("the file's '%s' is %g: a second has no more than %d",
                                             sizes.key(rate).c_str(), per_second, LogMel::sample_rate));
    }
    model.markers = TimeMarkers(model.tokenizer, sizes.has(every) ? sizes.zero_or(every, 3600) : marker_seconds,
                                per_second, decoder.max_positions);
}

}  // namespace

const Family moss_diarize = {"moss_transcribe_diarize", load};

}  // namespace pcr
