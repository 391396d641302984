// The C API: checks arguments, keeps exceptions in, hands on to the parts.

#include "device/cores.h"
#include "device/graph.h"
#include "log.h"
#include "ops/ops_cpu.h"
#include "quantize.h"
#include "session.h"

#include <algorithm>
#include <cstring>
#include <new>

#if !defined(_WIN32)
#  include <pthread.h>
#endif

using pcr::Error;
using pcr::format;

struct pcr_model {
    std::shared_ptr<pcr::Model> model; // shared with its sessions
    std::string                 error;
};

struct pcr_session {
    std::shared_ptr<pcr::Model>   model; // outlives the session below
    std::unique_ptr<pcr::Session> session;
    std::string                   error;
    std::atomic<bool>             busy{false};
};

namespace {

constexpr int32_t abi_version = 11;

constexpr char no_heads[] = "the session was made without params.heads";

void assign(std::string & to, const char * text) noexcept {
    try {
        to = text;
    } catch (...) {
        to.clear();
    }
}

// Runs f. What it throws becomes a status, and the message goes to error.
template <typename F> pcr_status guarded(std::string & error, F f) noexcept {
    try {
        const pcr::ThrowOnAbort throws(true);
        return f();
    } catch (const Error & e) {
        assign(error, e.what());
        return e.status;
    } catch (const std::bad_alloc &) {
        assign(error, "out of memory");
        return PCR_ERROR_MEMORY;
    } catch (const std::exception & e) {
        assign(error, e.what());
        return PCR_ERROR_INTERNAL;
    } catch (...) {
        assign(error, "unknown exception");
        return PCR_ERROR_INTERNAL;
    }
}

void require(bool condition, const char * message) {
    if (!condition) {
        throw Error(PCR_ERROR_ARGUMENT, message);
    }
}

// For functions without a handle.
void store_text(const std::string & text, char * out, size_t capacity) {
    if (out && capacity > 0) {
        const size_t length = std::min(text.size(), capacity - 1);
        std::memcpy(out, text.data(), length);
        out[length] = '\0';
    }
}

template <typename T> void require_size(const T * params, const char * name) {
    if (params->size != sizeof(T)) {
        throw Error(PCR_ERROR_ARGUMENT, format("%s has size %zu, this library's has %zu: it was built against another "
                                               "version",
                                               name, params->size, sizeof(T)));
    }
}

// A stage's input has rows of so many columns: the count is positive and the output's capacity is enough.
void require_rows(int64_t n_rows, int64_t most, int64_t out_values, size_t capacity) {
    if (n_rows <= 0 || n_rows > most) {
        throw Error(PCR_ERROR_ARGUMENT, format("%lld rows: 1 to %lld are possible", static_cast<long long>(n_rows),
                                               static_cast<long long>(most)));
    }
    if (static_cast<uint64_t>(out_values) > capacity) {
        throw Error(PCR_ERROR_ARGUMENT, format("the result has %lld values, there is room for %zu",
                                               static_cast<long long>(out_values), capacity));
    }
}

// One or more of the session's sequences, each at most once.
void require_sequences(const pcr::Session & s, const int32_t * sequences, int32_t count) {
    require(count > 0 && count <= s.decoder.n_sequences(), "more sequences than the session has");
    for (int32_t i = 0; i < count; i++) {
        require(sequences[i] >= 0 && sequences[i] < s.decoder.n_sequences(), "no such sequence");
        require(std::find(sequences, sequences + i, sequences[i]) == sequences + i, "a sequence stands twice");
    }
}

constexpr int64_t max_frames = int64_t(1) << 32;  // 497 days: keeps products of sizes inside 63 bits

// A model has many readers at once, so that what failed for one of them is kept by its thread.
struct ReaderError {
    const pcr_model * model = nullptr;
    std::string       text;
};

// This thread's, or null where there is no memory for it.
ReaderError * reader_error() noexcept {
#if defined(_WIN32)
    static thread_local ReaderError error;
    return &error;
#else
    // By a key, since glibc ends the process where it has no memory for a thread_local of this size.
    struct Key {
        Key() : made(pthread_key_create(&key, [](void * error) { delete static_cast<ReaderError *>(error); }) == 0) {}
        pthread_key_t key{};
        bool          made;
    };
    static const Key key;
    if (!key.made) {
        return nullptr;
    }
    auto * error = static_cast<ReaderError *>(pthread_getspecific(key.key));
    if (!error) {
        error = new (std::nothrow) ReaderError;
        if (error && pthread_setspecific(key.key, error) != 0) {
            delete error;
            return nullptr;
        }
    }
    return error;
#endif
}

template <typename F> pcr_status in_model(const pcr_model * model, F f) noexcept {
    if (!model) {
        return PCR_ERROR_ARGUMENT;
    }
    ReaderError * const error = reader_error();
    if (!error) {
        return PCR_ERROR_MEMORY;
    }
    error->model = model;
    return guarded(error->text, [&] {
        require(model->model != nullptr, "the model did not load");
        return f(*model->model);
    });
}

template <typename F> pcr_status in_session(pcr_session * session, F f) noexcept {
    if (!session) {
        return PCR_ERROR_ARGUMENT;
    }
    if (session->busy.exchange(true)) {
        return PCR_ERROR_BUSY;
    }
    const pcr_status status = guarded(session->error, [&] {
        require(session->session != nullptr, "the session was not made");
        return f(*session->session);
    });
    session->busy.store(false);
    return status;
}

// For functions that compute: with weights that changed meanwhile the result would be nonsense.
template <typename F> pcr_status at_work(pcr_session * session, F f) noexcept {
    return in_session(session, [&](pcr::Session & s) {
        s.model.store.require_unchanged();
        const pcr_status status = f(s);
        s.model.store.require_unchanged();
        return status;
    });
}

void copy_tokens(const std::vector<int32_t> & from, int32_t * tokens, size_t capacity, size_t * count) {
    *count = from.size();
    require(from.size() <= capacity, "there is too little room for the tokens");
    std::copy(from.begin(), from.end(), tokens);
}

}  // namespace

extern "C" {

int32_t pcr_abi_version(void) {
    return abi_version;
}

const char * pcr_version(void) {
    return PCR_VERSION;
}

const char * pcr_ggml_version(void) {
    return ggml_version();
}

// ---- Log

pcr_status pcr_take_log(pcr_log_level * level, char * text, size_t capacity) {
    std::string error;
    return guarded(error, [&] {
        require(level && text && capacity > 0, "NULL");
        std::string message;
        if (!pcr::take_log(*level, message)) {
            return PCR_END;
        }
        const size_t length = std::min(message.size(), capacity - 1);
        std::memcpy(text, message.data(), length);
        text[length] = '\0';
        return PCR_OK;
    });
}

void pcr_set_log_level(pcr_log_level level) {
    pcr::set_log_level(level);
}

// ---- Devices

int32_t pcr_device_count(void) {
    int32_t     count = 0;
    std::string error;
    guarded(error, [&] {
        count = static_cast<int32_t>(pcr::devices().size());
        return PCR_OK;
    });
    return count;
}

pcr_status pcr_device_get(int32_t index, pcr_device_info * info) {
    std::string error;
    return guarded(error, [&] {
        require(info != nullptr, "NULL");
        const std::vector<pcr::Device> & devices = pcr::devices();
        require(index >= 0 && static_cast<size_t>(index) < devices.size(), "no such device");
        const pcr::Device & device = devices[static_cast<size_t>(index)];

        static const std::vector<std::string> features = [&] {
            std::vector<std::string> list;
            list.reserve(devices.size());
            for (const pcr::Device & d : devices) {
                list.push_back(pcr::device_features(d.handle));
            }
            return list;
        }();
        size_t free = 0, total = 0;
        ggml_backend_dev_memory(device.handle, &free, &total);
        *info = {sizeof(*info),
                 device.name.c_str(),
                 ggml_backend_dev_description(device.handle),
                 features[static_cast<size_t>(index)].c_str(),
                 free,
                 total};
        return PCR_OK;
    });
}

pcr_status pcr_backend_get(int32_t index, pcr_backend_info * info) {
    std::string error;
    return guarded(error, [&] {
        require(info != nullptr && index >= 0, "NULL or negative");
        const std::vector<pcr::Backend> & backends = pcr::backends();
        if (static_cast<size_t>(index) >= backends.size()) {
            return PCR_END;
        }
        const pcr::Backend & backend = backends[static_cast<size_t>(index)];
        *info                        = {sizeof(*info), backend.name, backend.compiled, backend.missing.c_str()};
        return PCR_OK;
    });
}

int32_t pcr_usable_cores(void) {
    int32_t     cores = 1;
    std::string error;
    guarded(error, [&] {
        cores = pcr::usable_cores();
        return PCR_OK;
    });
    return cores;
}

int32_t pcr_usable_cores_of(const char * root, const char * allowed) {
    int32_t     cores = 1;
    std::string error;
    guarded(error, [&] {
        require(root && allowed, "NULL");
        cores = pcr::usable_cores_of(root, pcr::parse_cpu_list(allowed));
        return PCR_OK;
    });
    return cores;
}

// ---- Model

void pcr_model_params_default(pcr_model_params * params) {
    *params = {sizeof(*params), "auto", "auto", "auto", 1};
}

pcr_status pcr_model_load(const char * path, const pcr_model_params * params, pcr_model ** model) {
    if (!model) {
        return PCR_ERROR_ARGUMENT;
    }
    *model = new (std::nothrow) pcr_model;
    if (!*model) {
        return PCR_ERROR_MEMORY;
    }
    return guarded((*model)->error, [&] {
        require(path != nullptr, "the path is NULL");
        pcr_model_params defaults;
        pcr_model_params_default(&defaults);
        params = params ? params : &defaults;
        require_size(params, "pcr_model_params");
        require(params->device && params->precision && params->kernels, "a NULL in pcr_model_params");
        pcr::adopt_ggml_log();
        (*model)->model = pcr::load_model(path, params->map != 0, params->device, params->precision, params->kernels);
        return PCR_OK;
    });
}

void pcr_model_free(pcr_model * model) {
    delete model;
}

const char * pcr_model_error(const pcr_model * model) {
    if (!model) {
        return "the model is NULL";
    }
    const ReaderError * const error = model->model ? reader_error() : nullptr;
    return error && error->model == model ? error->text.c_str() : model->error.c_str();
}

pcr_status pcr_model_get_info(const pcr_model * model, pcr_model_info * info) {
    return in_model(model, [&](const pcr::Model & m) {
        require(info != nullptr, "NULL");
        const pcr::EncoderWeights & e = m.encoder;
        const pcr::DecoderWeights & d = m.decoder;
        *info                         = {};
        info->size                    = sizeof(*info);
        info->architecture            = m.architecture.c_str();
        info->name                    = m.name.c_str();
        info->device                  = m.device.name.c_str();
        info->sample_rate             = pcr::LogMel::sample_rate;
        info->hop_length              = pcr::LogMel::hop;
        info->n_mels                  = e.n_mels;
        info->chunk_frames            = e.chunk_frames;
        info->chunk_rows              = e.chunk_rows;
        info->window_rows             = static_cast<int32_t>(e.window_rows());
        info->encoder_layers          = e.n_layers;
        info->encoder_d_model         = e.d_model;
        info->encoder_channels        = e.conv_channels;
        info->encoder_output          = e.output_dim;
        info->llm_layers              = d.n_layers;
        info->llm_heads               = d.n_heads;
        info->llm_hidden              = d.hidden;
        info->llm_ffn                 = d.ffn_dim;
        info->llm_vocab               = d.vocab;
        info->llm_max_positions       = d.max_positions;
        info->eos_token               = m.end_tokens.front();
        info->file_bytes              = m.store.file.size();
        info->weight_bytes            = m.store.weight_bytes;
        info->kv_bytes_per_token      = static_cast<uint64_t>(2 * d.kv_dim() * d.n_layers) * sizeof(float);
        info->parameters              = m.store.parameters;
        info->align_bins              = m.alignment.bins;
        info->align_bin_ms            = m.alignment.bin_ms;
        return PCR_OK;
    });
}

int64_t pcr_frame_count(const pcr_model * model, int64_t n_samples) {
    return model && model->model ? model->model->frame_count(n_samples) : 0;
}

int64_t pcr_row_count(const pcr_model * model, int64_t n_frames) {
    return model && model->model && n_frames > 0 && n_frames <= max_frames ? model->model->encoder.rows(n_frames) : 0;
}

const char * pcr_token_bytes(const pcr_model * model, int32_t token, size_t * length) {
    if (!model || !model->model || !length || token < 0 || token >= model->model->decoder.vocab) {
        return nullptr;
    }
    // The vocabulary's padding has no text.
    *length = 0;
    if (token >= model->model->tokenizer.size()) {
        return "";
    }
    const std::string & bytes = model->model->tokenizer.decode(token);
    *length                   = bytes.size();
    return bytes.data();
}

pcr_status pcr_tokenize(const pcr_model * model, const char * text, size_t length, int32_t * tokens, size_t capacity,
                        size_t * count) {
    return in_model(model, [&](const pcr::Model & m) {
        require(text && count && (tokens || capacity == 0), "NULL");
        copy_tokens(m.tokenizer.encode(std::string(text, length)), tokens, capacity, count);
        return PCR_OK;
    });
}

pcr_status pcr_clip_prompt(const pcr_model * model, const pcr_clip_params * params, int64_t n_rows, int32_t * tokens,
                           size_t capacity, size_t * count) {
    return in_model(model, [&](const pcr::Model & m) {
        require(count && (tokens || capacity == 0), "NULL");
        require(n_rows >= 0 && n_rows <= m.decoder.max_positions, "the number of rows is out of range");
        if (params) {
            require_size(params, "pcr_clip_params");
        }
        pcr::Prompt prompt         = params ? m.prompt(params->language, params->context) : m.prompt(nullptr, nullptr);
        std::vector<int32_t> & all = prompt.before;
        int64_t                row = 0;
        for (int64_t mark = 1; mark <= m.markers.count(n_rows); mark++) {
            all.insert(all.end(), static_cast<size_t>(mark * m.markers.rows() - row), -1);
            all.insert(all.end(), m.markers.tokens_of(mark), m.markers.tokens_of(mark + 1));
            row = mark * m.markers.rows();
        }
        all.insert(all.end(), static_cast<size_t>(n_rows - row), -1);
        all.insert(all.end(), prompt.after.begin(), prompt.after.end());
        copy_tokens(all, tokens, capacity, count);
        return PCR_OK;
    });
}

// ---- Session

void pcr_session_params_default(pcr_session_params * params) {
    *params = {sizeof(*params), 0, 512, 1, 0, nullptr, 0};
}

pcr_status pcr_session_new(pcr_model * model, const pcr_session_params * params, pcr_session ** session) {
    if (!session) {
        return PCR_ERROR_ARGUMENT;
    }
    *session = new (std::nothrow) pcr_session;
    if (!*session) {
        return PCR_ERROR_MEMORY;
    }
    return guarded((*session)->error, [&] {
        require(model && model->model, "the model is NULL or did not load");
        pcr_session_params defaults;
        pcr_session_params_default(&defaults);
        params = params ? params : &defaults;
        require_size(params, "pcr_session_params");
        if (params->threads < 0 || params->threads > GGML_MAX_N_THREADS) {
            throw Error(PCR_ERROR_ARGUMENT,
                        format("threads is %d: 0 (all cores) to %d are possible", params->threads, GGML_MAX_N_THREADS));
        }
        if (params->max_new_tokens < 1) {
            throw Error(PCR_ERROR_ARGUMENT,
                        format("max_new_tokens is %d: at least 1 is needed", params->max_new_tokens));
        }
        if (params->sequences < 1 || params->sequences > 256) {
            throw Error(PCR_ERROR_ARGUMENT, format("sequences is %d: 1 to 256 are possible", params->sequences));
        }
        const pcr::DecoderWeights & decoder = model->model->decoder;
        require(params->n_heads >= 0 && (params->heads || params->n_heads == 0), "heads is NULL, or n_heads negative");
        for (int32_t i = 0; i < params->n_heads; i++) {
            const int32_t layer = params->heads[2 * i], head = params->heads[2 * i + 1];
            if (layer < 0 || layer >= decoder.n_layers || head < 0 || head >= decoder.n_heads) {
                throw Error(PCR_ERROR_ARGUMENT,
                            format("layer %d has no head %d in this model: the decoder has %d layers of %d heads",
                                   layer, head, decoder.n_layers, decoder.n_heads));
            }
        }
        (*session)->model   = model->model;
        (*session)->session = std::make_unique<pcr::Session>(*model->model, *params);
        return PCR_OK;
    });
}

void pcr_session_free(pcr_session * session) {
    delete session;
}

const char * pcr_session_error(const pcr_session * session) {
    return session ? session->error.c_str() : "the session is NULL";
}

void pcr_clip_params_default(pcr_clip_params * params) {
    *params = {sizeof(*params), 512, 0, nullptr, nullptr};
}

pcr_status pcr_session_begin(pcr_session * session, int32_t sequence, const pcr_clip_params * params) {
    return in_session(session, [&](pcr::Session & s) {
        require_sequences(s, &sequence, 1);
        if (params) {
            require_size(params, "pcr_clip_params");
            if (params->max_new_tokens < 1) {
                throw Error(PCR_ERROR_ARGUMENT,
                            format("max_new_tokens is %d: at least 1 is needed", params->max_new_tokens));
            }
            require(!params->attention || s.decoder.n_captured() > 0, no_heads);
        }
        s.begin(sequence, params ? *params : s.defaults);
        return PCR_OK;
    });
}

pcr_status pcr_session_feed(pcr_session * session, int32_t sequence, const float * samples, int64_t n_samples) {
    return at_work(session, [&](pcr::Session & s) {
        require_sequences(s, &sequence, 1);
        require(n_samples >= 0 && (samples || n_samples == 0), "no samples, or a negative number of them");
        s.feed(sequence, samples, n_samples);
        return PCR_OK;
    });
}

pcr_status pcr_session_end(pcr_session * session, int32_t sequence, int64_t n_samples) {
    return at_work(session, [&](pcr::Session & s) {
        require_sequences(s, &sequence, 1);
        s.end(sequence, n_samples);
        return PCR_OK;
    });
}

pcr_status pcr_session_begin_hypothesis(pcr_session * session, int32_t sequence) {
    return at_work(session, [&](pcr::Session & s) {
        require_sequences(s, &sequence, 1);
        s.begin_hypothesis(sequence);
        return PCR_OK;
    });
}

pcr_status pcr_session_end_hypothesis(pcr_session * session, int32_t sequence, pcr_token * tokens, size_t capacity,
                                      size_t * count) {
    return in_session(session, [&](pcr::Session & s) {
        require_sequences(s, &sequence, 1);
        require(count && (tokens || capacity == 0), "NULL");
        const std::vector<pcr::Choice> & choices = s.end_hypothesis(sequence);
        *count                                   = choices.size();
        for (size_t i = 0; i < std::min(capacity, choices.size()); i++) {
            tokens[i] = {sizeof(pcr_token), choices[i].token, choices[i].probability};
        }
        return PCR_OK;
    });
}

pcr_status pcr_session_advance(pcr_session * session, int32_t sequence, int32_t max_windows) {
    return at_work(session, [&](pcr::Session & s) {
        require_sequences(s, &sequence, 1);
        require(max_windows >= 1, "max_windows must be at least 1");
        return s.advance(sequence, max_windows) ? PCR_OK : PCR_END;
    });
}

pcr_status pcr_session_run(pcr_session * session, const int32_t * sequences, int32_t count, double seconds) {
    return at_work(session, [&](pcr::Session & s) {
        require(sequences != nullptr, "NULL");
        require_sequences(s, sequences, count);
        require(seconds >= 0 && seconds <= 3600, "seconds must be between 0 and 3600");
        s.run(sequences, count, seconds);
        return PCR_OK;
    });
}

pcr_status pcr_session_take(pcr_session * session, int32_t sequence, pcr_token * tokens, size_t capacity,
                            size_t * count) {
    return in_session(session, [&](pcr::Session & s) {
        require_sequences(s, &sequence, 1);
        require(tokens && count, "NULL");
        return s.take(sequence, tokens, capacity, count);
    });
}

pcr_status pcr_session_next(pcr_session * session, const int32_t * sequences, int32_t count, pcr_token * tokens) {
    return at_work(session, [&](pcr::Session & s) {
        require(sequences && tokens, "NULL");
        require_sequences(s, sequences, count);
        return s.next(sequences, count, tokens);
    });
}

pcr_status pcr_session_align(pcr_session * session, int32_t sequence, const float * samples, int64_t n_samples,
                             const int32_t * tokens, size_t n_tokens, pcr_place * places, size_t capacity,
                             size_t * n_places) {
    return at_work(session, [&](pcr::Session & s) {
        require_sequences(s, &sequence, 1);
        require(n_samples >= 0 && (samples || n_samples == 0), "no samples, or a negative number of them");
        require((tokens || n_tokens == 0) && (places || capacity == 0) && n_places, "NULL");
        require(n_tokens < static_cast<size_t>(max_frames), "the number of tokens is out of range");
        size_t count = 0;
        for (size_t i = 0; i < n_tokens; i++) {
            require(tokens[i] >= -1 && tokens[i] < s.model.decoder.vocab, "a token is outside the vocabulary");
            count += tokens[i] < 0;
        }
        *n_places = count;
        require(count <= capacity, "there is too little room for the places");
        const std::vector<pcr::Choice> found =
            s.align(sequence, samples, n_samples, tokens, static_cast<int64_t>(n_tokens));
        for (size_t i = 0; i < found.size(); i++) {
            places[i] = {sizeof(pcr_place), found[i].token, found[i].probability};
        }
        return PCR_OK;
    });
}

void pcr_session_wake(pcr_session * session) {
    if (session && session->session) {
        session->session->wake();
    }
}

void pcr_session_cancel(pcr_session * session) {
    if (session && session->session) {
        session->session->cancel();
    }
}

pcr_status pcr_session_reset(pcr_session * session) {
    return in_session(session, [](pcr::Session & s) {
        s.reset();
        return PCR_OK;
    });
}

pcr_status pcr_session_result(pcr_session * session, int32_t sequence, pcr_result * result) {
    return in_session(session, [&](pcr::Session & s) {
        require_sequences(s, &sequence, 1);
        require(result != nullptr, "NULL");
        *result = s.result(sequence);
        return PCR_OK;
    });
}

uint64_t pcr_session_memory(pcr_session * session) {
    uint64_t bytes = 0;
    in_session(session, [&](pcr::Session & s) {
        bytes = s.bytes();
        return PCR_OK;
    });
    return bytes;
}

pcr_status pcr_session_attention(pcr_session * session, int32_t sequence, float * weights, size_t capacity,
                                 int64_t * n_steps) {
    return in_session(session, [&](pcr::Session & s) {
        require_sequences(s, &sequence, 1);
        require(n_steps && (weights || capacity == 0), "NULL");
        require(s.decoder.n_captured() > 0, no_heads);
        const float * from = s.attention(sequence, n_steps);
        const size_t  size = static_cast<size_t>(*n_steps * s.result(sequence).n_rows) * s.decoder.n_captured();
        if (capacity > 0 && size > capacity) {
            throw Error(PCR_ERROR_ARGUMENT, format("there are %zu weights, and room for %zu", size, capacity));
        }
        if (capacity > 0) {
            std::copy_n(from, size, weights);
        }
        return PCR_OK;
    });
}

// ---- Stages

pcr_status pcr_log_mel(pcr_session * session, const float * samples, int64_t n_samples, float * mel, size_t capacity,
                       int64_t * n_frames) {
    return in_session(session, [&](pcr::Session & s) {
        require(samples && mel && n_frames, "NULL");
        *n_frames = s.model.frame_count(n_samples);
        if (*n_frames > 0) {
            require_rows(*n_frames, max_frames, *n_frames * s.model.encoder.n_mels, capacity);
        }
        s.log_mel(samples, n_samples, mel);
        return PCR_OK;
    });
}

pcr_status pcr_encode(pcr_session * session, const float * mel, int64_t n_frames, int32_t n_layers, float * rows,
                      size_t capacity, int64_t * n_rows) {
    return at_work(session, [&](pcr::Session & s) {
        const pcr::EncoderWeights & e = s.model.encoder;
        require(mel && rows && n_rows, "NULL");
        require(n_layers <= e.n_layers, "the encoder has fewer layers");
        require(n_frames > 0 && n_frames <= max_frames, "the number of frames is out of range");
        const int64_t count = e.rows(n_frames);
        require_rows(count, max_frames, count * e.columns(n_layers), capacity);
        *n_rows = n_layers < 0 ? count : count * e.merge;
        s.encode(mel, n_frames, n_layers, rows);
        return PCR_OK;
    });
}

pcr_status pcr_adapt(pcr_session * session, const float * rows, int64_t n_rows, float * out, size_t capacity) {
    return at_work(session, [&](pcr::Session & s) {
        require(rows && out, "NULL");
        require_rows(n_rows, max_frames, n_rows * s.model.decoder.hidden, capacity);
        s.adapt(rows, n_rows, out);
        return PCR_OK;
    });
}

pcr_status pcr_embed(pcr_session * session, const int32_t * tokens, int64_t count, float * out, size_t capacity) {
    return at_work(session, [&](pcr::Session & s) {
        require(tokens && out, "NULL");
        require_rows(count, max_frames, count * s.model.decoder.hidden, capacity);
        for (int64_t i = 0; i < count; i++) {
            require(tokens[i] >= 0 && tokens[i] < s.model.decoder.vocab, "a token is outside the vocabulary");
        }
        s.decoder.embed(tokens, count, out);
        return PCR_OK;
    });
}

pcr_status pcr_decode(pcr_session * session, int32_t sequence, const float * embeddings, int64_t n_rows, int64_t n_past,
                      int32_t n_layers, float * out, size_t capacity) {
    return at_work(session, [&](pcr::Session & s) {
        const pcr::DecoderWeights & d = s.model.decoder;
        require(embeddings && out, "NULL");
        require_sequences(s, &sequence, 1);
        require(n_past >= 0 && n_past <= s.decoder.length(sequence), "the cache holds fewer rows than n_past");
        require(n_layers <= d.n_layers, "the decoder has fewer layers");
        require_rows(n_rows, d.max_positions - n_past, n_layers < 0 ? d.vocab : d.hidden, capacity);
        s.decoder.rewind(sequence, n_past);
        std::vector<float> row(static_cast<size_t>(s.model.decoder.hidden));
        s.decoder.append(sequence, embeddings, n_rows, n_layers, {n_layers < 0 ? row.data() : out, nullptr});
        if (n_layers < 0) {
            s.decoder.logits(row.data(), 1, out);
        }
        return PCR_OK;
    });
}

pcr_status pcr_decode_step(pcr_session * session, const int32_t * sequences, const int32_t * tokens, int32_t count,
                           float * logits, size_t capacity) {
    return at_work(session, [&](pcr::Session & s) {
        const pcr::DecoderWeights & d = s.model.decoder;
        require(sequences && tokens && logits, "NULL");
        require_sequences(s, sequences, count);
        require_rows(count, s.decoder.n_sequences(), int64_t(count) * d.vocab, capacity);
        for (int32_t i = 0; i < count; i++) {
            require(s.decoder.length(sequences[i]) < d.max_positions, "a sequence is full");
            require(tokens[i] >= 0 && tokens[i] < d.vocab, "a token is outside the vocabulary");
        }
        std::vector<float> rows(static_cast<size_t>(count) * static_cast<size_t>(s.model.decoder.hidden));
        s.decoder.step(sequences, tokens, count, {rows.data(), nullptr});
        s.decoder.logits(rows.data(), count, logits);
        return PCR_OK;
    });
}

pcr_status pcr_importance(pcr_session * session, int64_t index, const char ** name, const double ** energies,
                          int64_t * n_columns, int64_t * n_rows) {
    return in_session(session, [&](pcr::Session & s) {
        require(index >= 0 && name && energies && n_columns && n_rows, "NULL, or a negative index");
        require(s.importance != nullptr, "the session was made without params.importance");
        if (static_cast<size_t>(index) >= s.importance->entries.size()) {
            return PCR_END;
        }
        const pcr::Importance::Entry & entry = s.importance->entries[static_cast<size_t>(index)];
        *name                                = entry.name.c_str();
        *energies                            = entry.energies.data();
        *n_columns                           = static_cast<int64_t>(entry.energies.size());
        *n_rows                              = entry.rows;
        return PCR_OK;
    });
}

// ---- Kernels

const char * pcr_kernels_name(int32_t index) {
    const char * name = nullptr;
    std::string  error;
    guarded(error, [&] {
        const auto & usable = pcr::usable_kernels();
        if (index >= 0 && static_cast<size_t>(index) < usable.size()) {
            name = usable[static_cast<size_t>(index)]->name;
        }
        return PCR_OK;
    });
    return name;
}

pcr_status pcr_product(const char * kernels, const char * precision, int32_t each, const char * type,
                       const void * matrix, int64_t n_out, int64_t n_in, const float * rows, int64_t n_rows,
                       float * out, int32_t threads, int32_t repeats, double * seconds, char * message,
                       size_t message_capacity) {
    std::string      error;
    const pcr_status status = guarded(error, [&] {
        require(kernels && precision && type && matrix && rows && out && seconds, "NULL");
        constexpr int64_t most = 1 << 24;
        require(n_out > 0 && n_in > 0 && n_rows > 0 && n_out <= most && n_in <= most && n_rows <= most && threads > 0 &&
                    threads <= 1024 && repeats > 0,
                "a size is out of range");
        const ggml_type as = pcr::type_named(type);
        require(pcr::row_bytes(as, n_in) > 0, "the type's blocks do not divide the matrix's rows");
        pcr::adopt_ggml_log();
        *seconds = pcr::multiply_once(pcr::Arithmetic::choose(pcr::find_devices("cpu").front(), precision, kernels),
                                      each != 0 ? pcr::Path::gemv : pcr::Path::gemm, as, matrix, n_out, n_in, rows,
                                      n_rows, out, threads, repeats);
        return PCR_OK;
    });
    store_text(error, message, message_capacity);
    return status;
}

pcr_status pcr_product_kernels(const char * kernels, const char * precision, int32_t each, const char * type,
                               int64_t n_in, char * text, size_t capacity) {
    std::string      error;
    const pcr_status status = guarded(error, [&] {
        require(kernels && precision && type && text, "NULL");
        require(pcr::row_bytes(pcr::type_named(type), n_in) > 0, "the type's blocks do not divide the matrix's rows");
        store_text(pcr::describe_product(pcr::Arithmetic::choose(pcr::find_devices("cpu").front(), precision, kernels),
                                         each != 0 ? pcr::Path::gemv : pcr::Path::gemm, pcr::type_named(type), n_in),
                   text, capacity);
        return PCR_OK;
    });
    if (status != PCR_OK) {
        store_text(error, text, capacity);
    }
    return status;
}

// ---- Matrix types

size_t pcr_row_bytes(const char * type, int64_t row_length) {
    size_t      bytes = 0;
    std::string error;
    guarded(error, [&] {
        bytes = type ? pcr::row_bytes(pcr::type_named(type), row_length) : 0;
        return PCR_OK;
    });
    return bytes;
}

pcr_status pcr_convert_rows(const char * from, const void * source, const char * to, void * target, int64_t n_rows,
                            int64_t row_length, const float * importance, int32_t threads, char * message,
                            size_t capacity) {
    std::string      error;
    const pcr_status status = guarded(error, [&] {
        require(from && source && to && target, "NULL");
        require(n_rows > 0 && row_length > 0 && n_rows < max_frames && row_length < max_frames && threads >= 0,
                "a size is out of range");
        pcr::adopt_ggml_log();
        pcr::convert_rows(pcr::type_named(from), source, pcr::type_named(to), target, n_rows, row_length, importance,
                          threads > 0 ? threads : pcr::usable_cores());
        return PCR_OK;
    });
    store_text(error, message, capacity);
    return status;
}

}  // extern "C"
