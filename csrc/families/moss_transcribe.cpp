// MOSS-Transcribe:
//
//     log-mel -> Qwen3-Omni's audio tower -> gated MLP -> Qwen3
//     prompt: <|im_start|>user\n <audio start> AUDIO <audio end> <|im_end|>\n <|im_start|>assistant\n
//     text: as it stands

#include "families/family.h"
#include "families/parts.h"

namespace pcr {

namespace {

constexpr AudioTowerNames audio_tower = {
    "enc.conv", "enc.conv_out", "enc.blk.", "attn_norm", "attn.q",      "attn.k",    "attn.v",
    "attn.o",   "ffn_norm",     "ffn.fc1",  "ffn.fc2",   "enc.ln_post", "enc.proj1", "enc.proj2",
};

constexpr DecoderNames qwen3 = {
    "llm.embed",   "llm.lm_head", "llm.blk.", "attn_norm", "attn.q", "attn.k",   "attn.v",         "attn.o",
    "attn.q_norm", "attn.k_norm", "ffn_norm", "ffn.gate",  "ffn.up", "ffn.down", "llm.final_norm",
};

Prompt make_prompt(const GgufFile & file, const Sizes & sizes, Model & model) {
    const auto special = [&](const char * name) {
        const int32_t id = file.token_id(sizes.key(name).c_str(), model.decoder.vocab);
        if (id >= model.tokenizer.size()) {
            throw Error(PCR_ERROR_FORMAT,
                        format("%s is %d, beyond the vocabulary's %d tokens", name, id, model.tokenizer.size()));
        }
        return id;
    };
    const int32_t bos = special("bos_token_id"), start = special("start_token_id");
    const int32_t audio_start = special("audio_start_id"), audio_end = special("audio_end_id");
    const int32_t end = special("eos_token_id");
    model.end_tokens  = {end};
    model.tokenizer.set_special({bos, start, end, audio_start, audio_end});

    const auto append = [](std::vector<int32_t> & to, const std::vector<int32_t> & from) {
        to.insert(to.end(), from.begin(), from.end());
    };
    const std::vector<int32_t> newline = model.tokenizer.word("\n");
    Prompt                     prompt{{start}, {audio_end, end}};
    append(prompt.before, model.tokenizer.word("user"));
    append(prompt.before, newline);
    append(prompt.before, {audio_start});
    append(prompt.after, newline);
    append(prompt.after, {start});
    append(prompt.after, model.tokenizer.word("assistant"));
    append(prompt.after, newline);
    return prompt;
}

void load(Model & model) {
    WeightStore & store = model.store;
    const Sizes   sizes(store.file, std::string(moss_transcribe.architecture) + ".");

    AudioTowerSizes tower{};
    tower.n_mels         = sizes.at_most("enc.num_mel_bins", 1024);
    tower.n_layers       = sizes.layers("enc.encoder_layers");
    tower.d_model        = sizes.width("enc.d_model");
    tower.n_heads        = sizes.width("enc.encoder_attention_heads");
    tower.ffn_dim        = sizes.width("enc.encoder_ffn_dim");
    tower.conv_channels  = sizes.width("enc.downsample_hidden_size");
    tower.output_dim     = sizes.width("enc.output_dim");
    tower.n_window       = sizes.at_most("enc.n_window", 1 << 14);
    tower.n_window_infer = sizes.at_most("enc.n_window_infer", 1 << 20);
    tower.max_positions  = sizes.at_most("enc.max_source_positions", 1 << 24);
    tower.norm_eps       = sizes.number("enc.layer_norm_eps");
    model.encoder        = load_audio_tower(store, tower, audio_tower);

    DecoderSizes decoder{};
    decoder.hidden        = sizes.width("llm.hidden_size");
    decoder.n_layers      = sizes.layers("llm.num_layers");
    decoder.n_heads       = sizes.width("llm.num_heads");
    decoder.n_kv_heads    = sizes.width("llm.num_kv_heads");
    decoder.head_dim      = sizes.at_most("llm.head_dim", 512);
    decoder.ffn_dim       = sizes.width("llm.intermediate_size");
    decoder.vocab         = sizes.at_most("llm.vocab_size", 1 << 22);
    decoder.max_positions = sizes.at_most("llm.max_position_embeddings", 1 << 24);
    decoder.rope_theta    = sizes.number("llm.rope_theta");
    decoder.norm_eps      = sizes.number("llm.rms_norm_eps");
    decoder.tied          = store.file.boolean(sizes.key("llm.tied_embeddings").c_str());
    model.decoder         = load_decoder(store, decoder, qwen3);

    const int32_t inner  = sizes.width("adapter.hidden_size");
    model.projector.gate = store.linear("adapter.gate", tower.output_dim, inner, false);
    model.projector.up   = store.linear("adapter.up", tower.output_dim, inner, false);
    model.projector.down = store.linear("adapter.down", inner, decoder.hidden, false);

    model.log_mel   = load_log_mel(store, sizes.key(""), tower.n_mels);
    model.tokenizer = load_tokenizer(store.file, decoder.vocab);
    model.prompt    = [prompt = make_prompt(store.file, sizes, model)](const char * language, const char * context) {
        if (language || context) {
            throw Error(PCR_ERROR_UNSUPPORTED,
                        format("this model takes no %s: it writes what it hears", language ? "language" : "context"));
        }
        return prompt;
    };
}

}  // namespace

const Family moss_transcribe = {"moss_transcribe", load};

}  // namespace pcr
