#include "nn/model.h"

#include "log.h"
#include "ops/ops_cpu.h"
#include "quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace pcr {

namespace {

// Bounds on what metadata may claim. Far above any model of this kind, low enough that products of two fit in 63 bits
// and that a broken file is told by name.
constexpr int32_t max_width  = 1 << 16;
constexpr int32_t max_layers = 1 << 10;
constexpr int32_t max_vocab  = 1 << 22;

const char * const arch = "moss_transcribe";

std::string key(const char * name) {
    return std::string(arch) + "." + name;
}

// Types that a matrix may have: those which every CPU build of ggml multiplies and looks rows up in.
bool is_matrix_type(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32:
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16:
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q5_0:
        case GGML_TYPE_Q5_1:
        case GGML_TYPE_Q2_K:
        case GGML_TYPE_Q3_K:
        case GGML_TYPE_Q4_K:
        case GGML_TYPE_Q5_K:
        case GGML_TYPE_Q6_K: return true;
        default: return false;
    }
}

std::string shape_text(const int64_t * ne) {
    int n = GGML_MAX_DIMS;
    while (n > 1 && ne[n - 1] == 1) {
        n--;
    }
    std::string text = "[";
    for (int i = n - 1; i >= 0; i--) {
        text += std::to_string(ne[i]) + (i ? ", " : "]");
    }
    return text;  // as PyTorch writes it: slowest first
}

// Length after a convolution of kernel 3, stride 2, padding 1.
int64_t halved(int64_t n) {
    return n > 0 ? (n - 1) / 2 + 1 : 0;
}

int64_t conv_rows(int64_t n_frames) {
    return halved(halved(halved(n_frames)));
}

}  // namespace

int64_t EncoderWeights::rows(int64_t n_frames) const {
    return n_frames / chunk_frames * chunk_rows + conv_rows(n_frames % chunk_frames);
}

std::unique_ptr<Model> load_model(const std::string & path, const std::string & device, const std::string & precision,
                                  const std::string & kernels) {
    std::vector<Device> found = find_devices(device);
    if (device == "auto" && (precision != "auto" || kernels != "auto")) {
        found.erase(found.begin(), found.end() - 1);  // which only the CPU has
    }
    for (const Device & one : found) {
        try {
            return std::make_unique<Model>(path, one, precision, kernels);
        } catch (const std::exception & error) {
            // What a driver or its library throws is none of ours, or a failed check of ggml's.
            const auto * const ours   = dynamic_cast<const Error *>(&error);
            const pcr_status   status = ours ? ours->status : PCR_ERROR_DEVICE;
            const bool         of_file =
                status != PCR_ERROR_DEVICE && status != PCR_ERROR_MEMORY && status != PCR_ERROR_INTERNAL;
            if (one.is_cpu() || device != "auto" || of_file) {
                throw;
            }
            log(PCR_LOG_WARNING, std::string(error.what()) + "; the next best device is used instead");
        }
    }
    throw Error(PCR_ERROR_DEVICE, "this build has no device");
}

Model::Model(const std::string & path, const Device & device_, const std::string & precision,
             const std::string & kernels)
    : device(device_), arithmetic(Arithmetic::choose(device_, precision, kernels)), file(path) {
    const std::string found = file.string("general.architecture", "");
    if (found != arch) {
        throw Error(PCR_ERROR_UNSUPPORTED, "'" + path + "' holds a model of architecture '" + found +
                                               "': this runtime runs '" + arch + "' only");
    }
    name       = file.string("general.name", "");
    file_bytes = file.size();

    // The weights stay where the file is mapped, for the CPU. ggml takes a pointer to non-const but never writes to them.
    mapped.reset(ggml_backend_dev_buffer_from_host_ptr(find_devices("cpu").front().handle,
                                                       const_cast<void *>(file.base()), file.size(), file.size()));
    if (!mapped) {
        throw Error(PCR_ERROR_DEVICE, "the CPU cannot read mapped memory");
    }
    ggml_backend_buffer_set_usage(mapped.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    if (!arithmetic.kernels) {
        device_context.reset(
            ggml_init({ggml_tensor_overhead() * (file.n_tensors() + 1), nullptr, /*.no_alloc =*/true}));
        if (!device_context) {
            throw std::bad_alloc();
        }
    }

    load_encoder();
    load_decoder();
    load_log_mel();
    load_vocabulary();
    fill_device();
    make_positions();
}

Model::~Model() = default;

ggml_tensor * Model::placed(ggml_tensor * weight) {
    if (arithmetic.kernels) {
        return weight;
    }
    const auto known =
        std::find_if(copies.begin(), copies.end(), [weight](const auto & pair) { return pair.first == weight; });
    if (known != copies.end()) {
        return known->second;
    }
    ggml_type type = weight->type;
    if (ggml_n_dims(weight) == 2) {
        // Matrices are multiplied with, and rows of one are looked up, as they stand or as floats.
        const ggml_context_ptr trial(ggml_init({ggml_tensor_overhead() * 5, nullptr, /*.no_alloc =*/true}));
        if (!trial) {
            throw std::bad_alloc();
        }
        ggml_tensor * like = ggml_dup_tensor(trial.get(), weight);
        ggml_tensor * ids  = ggml_new_tensor_1d(trial.get(), GGML_TYPE_I32, 1);
        ggml_tensor * rows = ggml_new_tensor_2d(trial.get(), GGML_TYPE_F32, weight->ne[0], 1);
        if (!ggml_backend_dev_supports_op(device.handle, ggml_mul_mat(trial.get(), like, rows)) ||
            !ggml_backend_dev_supports_op(device.handle, ggml_get_rows(trial.get(), like, ids))) {
            type = type == GGML_TYPE_BF16 ? GGML_TYPE_F32 : GGML_TYPE_F16;  // BF16 goes beyond F16's range
        }
    }
    ggml_tensor * copy = ggml_new_tensor(device_context.get(), type, GGML_MAX_DIMS, weight->ne);
    ggml_set_name(copy, weight->name);
    copies.emplace_back(weight, copy);
    return copy;
}

// Brings the weights to the device, some at a time, so that the file's pages need not stay in memory.
void Model::fill_device() {
    if (arithmetic.kernels) {
        return;
    }
    constexpr int64_t piece = int64_t(1) << 24;  // bytes

    const CollectErrors errors;
    device_buffer.reset(
        ggml_backend_alloc_ctx_tensors_from_buft(device_context.get(), ggml_backend_dev_buffer_type(device.handle)));
    if (!device_buffer) {
        uint64_t bytes = 0;
        for (const auto & [weight, copy] : copies) {
            bytes += ggml_nbytes(copy);
        }
        throw no_memory(device, format("the weights (%.0f MB)", double(bytes) * 1e-6), errors.text);
    }
    ggml_backend_buffer_set_usage(device_buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    std::vector<uint8_t> converted;
    for (const auto & [weight, copy] : copies) {
        const auto * const from   = static_cast<const uint8_t *>(weight->data);
        const size_t       source = ggml_row_size(weight->type, weight->ne[0]);
        const size_t       target = ggml_row_size(copy->type, copy->ne[0]);
        const int64_t      n_rows = ggml_nrows(weight);
        const int64_t      some   = std::max<int64_t>(1, piece / static_cast<int64_t>(std::max(source, target)));
        for (int64_t row = 0; row < n_rows; row += some) {
            const int64_t         n     = std::min(some, n_rows - row);
            const uint8_t * const rows  = from + static_cast<size_t>(row) * source;
            const void *          bytes = rows;
            if (copy->type != weight->type) {
                converted.resize(static_cast<size_t>(n) * target);
                convert_rows(weight->type, rows, copy->type, converted.data(), n, weight->ne[0], nullptr, 1);
                bytes = converted.data();
            }
            ggml_backend_tensor_set(copy, bytes, static_cast<size_t>(row) * target, static_cast<size_t>(n) * target);
            file.release(rows, static_cast<size_t>(n) * source);
        }
    }
    copies.clear();
}

const Screen & Model::screen(Compute & compute) const {
    const std::lock_guard<std::mutex> lock(screen_mutex);
    if (!head_screen) {
        head_screen = std::make_unique<Screen>(make_screen(decoder.head.weight, file, compute));
    }
    return *head_screen;
}

void Model::load_encoder() {
    EncoderWeights & e = encoder;
    e.n_mels           = file.positive(key("enc.num_mel_bins").c_str(), 1024);
    e.n_layers         = file.positive(key("enc.encoder_layers").c_str(), max_layers);
    e.d_model          = file.positive(key("enc.d_model").c_str(), max_width);
    e.n_heads          = file.positive(key("enc.encoder_attention_heads").c_str(), max_width);
    e.ffn_dim          = file.positive(key("enc.encoder_ffn_dim").c_str(), max_width);
    e.conv_channels    = file.positive(key("enc.downsample_hidden_size").c_str(), max_width);
    e.output_dim       = file.positive(key("enc.output_dim").c_str(), max_width);
    e.adapter_dim      = file.positive(key("adapter.hidden_size").c_str(), max_width);
    e.norm_eps         = file.number(key("enc.layer_norm_eps").c_str());

    const int32_t n_window       = file.positive(key("enc.n_window").c_str(), 1 << 14);
    const int32_t n_window_infer = file.positive(key("enc.n_window_infer").c_str(), 1 << 20);
    const int32_t max_positions  = file.positive(key("enc.max_source_positions").c_str(), 1 << 24);
    e.chunk_frames               = 2 * n_window;
    e.chunk_rows                 = static_cast<int32_t>(conv_rows(e.chunk_frames));
    e.window_chunks              = n_window_infer / e.chunk_frames;
    e.conv_freq                  = static_cast<int32_t>(conv_rows(e.n_mels));
    if (n_window_infer % e.chunk_frames != 0) {
        throw Error(PCR_ERROR_FORMAT, format("enc.n_window_infer is %d, no multiple of 2 * enc.n_window = %d",
                                             n_window_infer, e.chunk_frames));
    }
    if (e.chunk_rows > max_positions) {
        throw Error(PCR_ERROR_FORMAT,
                    format("a chunk of %d rows exceeds enc.max_source_positions = %d", e.chunk_rows, max_positions));
    }
    if (e.d_model % e.n_heads != 0 || e.d_model % 2 != 0) {
        throw Error(PCR_ERROR_FORMAT,
                    format("enc.d_model is %d: it must be even and a multiple of %d heads", e.d_model, e.n_heads));
    }

    for (int i = 0; i < 3; i++) {
        const std::string conv   = "enc.conv" + std::to_string(i + 1);
        ggml_tensor *     kernel = weight(conv + ".weight", {3, 3, i == 0 ? 1 : e.conv_channels, e.conv_channels});
        e.conv[i].weight         = placed(kernel);
        e.conv[i].bias           = vector(conv + ".bias", e.conv_channels);
        e.conv[i].packed         = pack_conv(arithmetic, kernel);
    }
    e.conv_out = linear("enc.conv_out", int64_t(e.conv_channels) * e.conv_freq, e.d_model, false);
    e.layers.resize(static_cast<size_t>(e.n_layers));
    for (int i = 0; i < e.n_layers; i++) {
        EncoderLayer &    layer = e.layers[static_cast<size_t>(i)];
        const std::string block = "enc.blk." + std::to_string(i) + ".";
        layer.attn_norm         = norm(block + "attn_norm", e.d_model, true);
        layer.ffn_norm          = norm(block + "ffn_norm", e.d_model, true);
        layer.q                 = linear(block + "attn.q", e.d_model, e.d_model, true);
        layer.k                 = linear(block + "attn.k", e.d_model, e.d_model, true);
        layer.v                 = linear(block + "attn.v", e.d_model, e.d_model, true);
        layer.o                 = linear(block + "attn.o", e.d_model, e.d_model, true);
        layer.fc1               = linear(block + "ffn.fc1", e.d_model, e.ffn_dim, true);
        layer.fc2               = linear(block + "ffn.fc2", e.ffn_dim, e.d_model, true);
    }
    e.ln_post = norm("enc.ln_post", e.d_model, true);
    e.proj1   = linear("enc.proj1", e.d_model, e.d_model, true);
    e.proj2   = linear("enc.proj2", e.d_model, e.output_dim, true);
}

void Model::load_decoder() {
    DecoderWeights & d = decoder;
    d.hidden           = file.positive(key("llm.hidden_size").c_str(), max_width);
    d.n_layers         = file.positive(key("llm.num_layers").c_str(), max_layers);
    d.n_heads          = file.positive(key("llm.num_heads").c_str(), max_width);
    d.n_kv_heads       = file.positive(key("llm.num_kv_heads").c_str(), max_width);
    d.head_dim         = file.positive(key("llm.head_dim").c_str(), 512);
    d.ffn_dim          = file.positive(key("llm.intermediate_size").c_str(), max_width);
    d.vocab            = file.positive(key("llm.vocab_size").c_str(), max_vocab);
    d.max_positions    = file.positive(key("llm.max_position_embeddings").c_str(), 1 << 24);
    d.rope_theta       = file.number(key("llm.rope_theta").c_str());
    d.norm_eps         = file.number(key("llm.rms_norm_eps").c_str());
    if (d.n_heads % d.n_kv_heads != 0 || int64_t(d.n_heads) * d.head_dim > max_width) {
        throw Error(PCR_ERROR_FORMAT, format("llm.num_heads is %d: it must be a multiple of llm.num_kv_heads = %d, and "
                                             "times llm.head_dim = %d at most %d",
                                             d.n_heads, d.n_kv_heads, d.head_dim, max_width));
    }
    if (d.head_dim % 2 != 0) {
        throw Error(PCR_ERROR_FORMAT, format("llm.head_dim is %d: rotary embedding needs an even one", d.head_dim));
    }

    d.embed = matrix("llm.embed.weight", d.hidden, d.vocab);
    d.head.weight =
        file.boolean(key("llm.tied_embeddings").c_str()) ? d.embed : matrix("llm.lm_head.weight", d.hidden, d.vocab);
    const int64_t q_dim = int64_t(d.n_heads) * d.head_dim;
    d.layers.resize(static_cast<size_t>(d.n_layers));
    for (int i = 0; i < d.n_layers; i++) {
        DecoderLayer &    layer = d.layers[static_cast<size_t>(i)];
        const std::string block = "llm.blk." + std::to_string(i) + ".";
        layer.attn_norm         = norm(block + "attn_norm", d.hidden, false);
        layer.ffn_norm          = norm(block + "ffn_norm", d.hidden, false);
        layer.q_norm            = norm(block + "attn.q_norm", d.head_dim, false);
        layer.k_norm            = norm(block + "attn.k_norm", d.head_dim, false);
        layer.q                 = linear(block + "attn.q", d.hidden, q_dim, false);
        layer.k                 = linear(block + "attn.k", d.hidden, d.kv_dim(), false);
        layer.v                 = linear(block + "attn.v", d.hidden, d.kv_dim(), false);
        layer.o                 = linear(block + "attn.o", q_dim, d.hidden, false);
        layer.gate              = linear(block + "ffn.gate", d.hidden, d.ffn_dim, false);
        layer.up                = linear(block + "ffn.up", d.hidden, d.ffn_dim, false);
        layer.down              = linear(block + "ffn.down", d.ffn_dim, d.hidden, false);
    }
    d.final_norm = norm("llm.final_norm", d.hidden, false);

    encoder.gate = linear("adapter.gate", encoder.output_dim, encoder.adapter_dim, false);
    encoder.up   = linear("adapter.up", encoder.output_dim, encoder.adapter_dim, false);
    encoder.down = linear("adapter.down", encoder.adapter_dim, d.hidden, false);
}

void Model::load_log_mel() {
    const int64_t n_mels = encoder.n_mels;
    // Converters tell of the front end by keys of several names, or not at all. What is told must be what is computed.
    const std::pair<const char *, int64_t> front_end[] = {
        {"n_fft", LogMel::n_fft},    {"win_length", LogMel::n_fft}, {"window_size", LogMel::n_fft},
        {"hop_length", LogMel::hop}, {"hop", LogMel::hop},          {"sample_rate", LogMel::sample_rate},
        {"n_mels", n_mels},          {"num_mel_bins", n_mels},      {"sampling_rate", LogMel::sample_rate},
        {"n_mel", n_mels},           {"feature_size", n_mels},
    };
    for (const auto & [suffix, value] : front_end) {
        file.require(key(""), suffix, value);
    }
    const ggml_tensor * mel     = file.find("audio.mel_filters");
    const ggml_tensor * hann    = file.find("audio.mel_window");
    const float *       filters = nullptr;
    const float *       window  = nullptr;
    if (mel) {
        const std::string name_ = "audio.mel_filters";
        filters                 = static_cast<const float *>(weight(name_, {n_mels, LogMel::n_bins})->data);
    }
    if (hann) {
        window = static_cast<const float *>(weight("audio.mel_window", {LogMel::n_fft})->data);
    }
    log_mel = LogMel(encoder.n_mels, filters, window);
}

void Model::load_vocabulary() {
    if (file.string("tokenizer.ggml.model", "") != "gpt2") {
        throw Error(PCR_ERROR_UNSUPPORTED, "the tokenizer is '" + file.string("tokenizer.ggml.model", "") +
                                               "': this runtime reads byte-level BPE ('gpt2')");
    }
    const int32_t vocab = decoder.vocab;
    tokenizer           = Tokenizer(file.strings("tokenizer.ggml.tokens"), file.strings("tokenizer.ggml.merges"));
    if (tokenizer.size() > vocab) {
        throw Error(PCR_ERROR_FORMAT,
                    format("the vocabulary has %d tokens, llm.vocab_size is %d", tokenizer.size(), vocab));
    }
    const auto special = [&](const char * name_) {
        const int32_t id = file.token_id(key(name_).c_str(), vocab);
        if (id >= tokenizer.size()) {
            throw Error(PCR_ERROR_FORMAT,
                        format("%s is %d, beyond the vocabulary's %d tokens", name_, id, tokenizer.size()));
        }
        return id;
    };
    const int32_t bos = special("bos_token_id"), start = special("start_token_id");
    const int32_t audio_start = special("audio_start_id"), audio_end = special("audio_end_id");
    eos_token = special("eos_token_id");
    tokenizer.set_special({bos, start, eos_token, audio_start, audio_end});

    // <|im_start|>user\n<audio_start> ... <audio_end><|im_end|>\n<|im_start|>assistant\n
    const auto append = [](std::vector<int32_t> & to, const std::vector<int32_t> & from) {
        to.insert(to.end(), from.begin(), from.end());
    };
    const std::vector<int32_t> newline = tokenizer.word("\n");
    prompt_before                      = {start};
    append(prompt_before, tokenizer.word("user"));
    append(prompt_before, newline);
    append(prompt_before, {audio_start});
    prompt_after = {audio_end, eos_token};
    append(prompt_after, newline);
    append(prompt_after, {start});
    append(prompt_after, tokenizer.word("assistant"));
    append(prompt_after, newline);
}

// Whisper's table: d/2 timescales, log-spaced from 1 to 10000; sines first, cosines behind.
void Model::make_positions() {
    const int64_t      d = encoder.d_model, rows = encoder.chunk_rows, half = d / 2;
    std::vector<float> table(static_cast<size_t>(d * rows));
    const double       step = half > 1 ? std::log(10000.0) / static_cast<double>(half - 1) : 0.0;
    for (int64_t t = 0; t < rows; t++) {
        for (int64_t i = 0; i < half; i++) {
            // transformers rounds the timescale and the angle to float32 before it takes the sine.
            const float scale                            = std::exp(static_cast<float>(-step) * static_cast<float>(i));
            const float angle                            = static_cast<float>(t) * scale;
            table[static_cast<size_t>(t * d + i)]        = std::sin(angle);
            table[static_cast<size_t>(t * d + half + i)] = std::cos(angle);
        }
    }
    computed_context.reset(ggml_init({ggml_tensor_overhead() * 4, nullptr, true}));
    if (!computed_context) {
        throw std::bad_alloc();
    }
    encoder.positions = ggml_new_tensor_2d(computed_context.get(), GGML_TYPE_F32, d, rows);
    computed.reset(
        ggml_backend_alloc_ctx_tensors_from_buft(computed_context.get(), ggml_backend_dev_buffer_type(device.handle)));
    if (!computed) {
        throw no_memory(device, "the encoder's positions", "");
    }
    ggml_backend_tensor_set(encoder.positions, table.data(), 0, table.size() * sizeof(float));
}

ggml_tensor * Model::weight(const std::string & tensor_name, std::initializer_list<int64_t> shape) {
    ggml_tensor * tensor = file.find(tensor_name.c_str());
    if (!tensor) {
        throw Error(PCR_ERROR_FORMAT, "the file lacks the tensor '" + tensor_name + "'");
    }
    int64_t wanted[GGML_MAX_DIMS] = {1, 1, 1, 1};
    std::copy(shape.begin(), shape.end(), wanted);
    if (!std::equal(wanted, wanted + GGML_MAX_DIMS, tensor->ne)) {
        throw Error(PCR_ERROR_FORMAT, "the tensor '" + tensor_name + "' has shape " + shape_text(tensor->ne) +
                                          ": the metadata asks for " + shape_text(wanted));
    }
    const bool conv    = shape.size() == 4;
    const bool exact   = shape.size() == 1 || tensor_name.rfind("audio.", 0) == 0;  // computed with as they stand
    const bool type_ok = exact  ? tensor->type == GGML_TYPE_F32
                         : conv ? ggml_blck_size(tensor->type) == 1 && is_matrix_type(tensor->type)
                                : is_matrix_type(tensor->type);
    if (!type_ok) {
        throw Error(PCR_ERROR_UNSUPPORTED, "the tensor '" + tensor_name + "' has type " + ggml_type_name(tensor->type) +
                                               ": " +
                                               (exact  ? "f32 is needed"
                                                : conv ? "f32, f16 or bf16 is needed"
                                                       : "it cannot be multiplied by"));
    }
    if (!tensor->buffer) {
        void * address = const_cast<uint8_t *>(file.bytes(tensor));
        if (ggml_backend_tensor_alloc(mapped.get(), tensor, address) != GGML_STATUS_SUCCESS) {
            throw Error(PCR_ERROR_DEVICE, "the tensor '" + tensor_name + "' cannot be placed in memory");
        }
        weight_bytes += ggml_nbytes(tensor);
        parameters += static_cast<uint64_t>(ggml_nelements(tensor));
    }
    return tensor;
}

ggml_tensor * Model::vector(const std::string & tensor_name, int64_t n) {
    return placed(weight(tensor_name, {n}));
}

ggml_tensor * Model::matrix(const std::string & tensor_name, int64_t in, int64_t out) {
    return placed(weight(tensor_name, {in, out}));
}

Norm Model::norm(const std::string & tensor_name, int64_t n, bool bias) {
    return {vector(tensor_name + ".weight", n), bias ? vector(tensor_name + ".bias", n) : nullptr};
}

Linear Model::linear(const std::string & tensor_name, int64_t in, int64_t out, bool bias) {
    return {matrix(tensor_name + ".weight", in, out), bias ? vector(tensor_name + ".bias", out) : nullptr};
}

}  // namespace pcr
