#include "session.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace pcr {

namespace {

constexpr int64_t windows_at_once = 4;  // attention windows that go through encoder and decoder as one batch

// Adds the time until the end of a block to a counter of seconds.
class Stopwatch {
public:
    explicit Stopwatch(double & total_) : total(total_), start(std::chrono::steady_clock::now()) {}
    ~Stopwatch() { total += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); }
    Stopwatch(const Stopwatch &)             = delete;
    Stopwatch & operator=(const Stopwatch &) = delete;

private:
    double &                              total;
    std::chrono::steady_clock::time_point start;
};

void check_samples(const float * samples, int64_t n_samples) {
    for (int64_t i = 0; i < n_samples; i++) {
        if (!std::isfinite(samples[i])) {
            throw Error(PCR_ERROR_AUDIO, format("sample %lld is %g: samples must be finite numbers",
                                                static_cast<long long>(i), double(samples[i])));
        }
    }
}

void check_length(int64_t n_samples) {
    if (n_samples < LogMel::min_samples) {
        throw Error(PCR_ERROR_AUDIO, format("%lld samples (%.4f s) are too few: at least %d (%.4f s) are needed",
                                            static_cast<long long>(n_samples), double(n_samples) / LogMel::sample_rate,
                                            LogMel::min_samples, double(LogMel::min_samples) / LogMel::sample_rate));
    }
}

}  // namespace

Session::Session(const Model & model_, const pcr_session_params & params)
    : model(model_),
      compute(model_.device, params.threads > 0 ? params.threads : usable_cores(), model_.arithmetic),
      importance(params.importance ? std::make_unique<Importance>() : nullptr),
      decoder(model_, compute, params.sequences, importance.get()),
      head(model_, compute, importance.get()),
      encoder(model_, compute, importance.get()),
      max_new_tokens(params.max_new_tokens) {}

void Session::feed(const float * samples_, int64_t n_samples) {
    if (state != State::listening) {
        throw Error(PCR_ERROR_ARGUMENT, "audio was fed after its end: reset the session first");
    }
    compute.throw_if_cancelled();
    check_samples(samples_, n_samples);
    samples.insert(samples.end(), samples_, samples_ + n_samples);
    extend_log_mel(false);
}

void Session::end() {
    if (state != State::listening) {
        throw Error(PCR_ERROR_ARGUMENT, "the audio had ended already: reset the session first");
    }
    compute.throw_if_cancelled();
    const int64_t n = static_cast<int64_t>(samples.size());
    check_length(n);
    const int64_t rows   = model.encoder.rows(LogMel::frame_count(n));
    const int64_t prompt = static_cast<int64_t>(model.prompt_before.size() + model.prompt_after.size());
    if (prompt + rows >= model.decoder.max_positions) {
        const double most = double(model.decoder.max_positions - prompt - 1) / model.encoder.chunk_rows *
                            model.encoder.chunk_frames * LogMel::hop / LogMel::sample_rate;
        throw Error(PCR_ERROR_AUDIO, format("%.1f s of audio are too long for one pass: this model takes %.0f s at "
                                            "the most; split the recording",
                                            double(n) / LogMel::sample_rate, std::floor(most)));
    }
    extend_log_mel(true);
    state = State::heard;
}

// Log-mel frames as far as their samples are known. Only the last call may reflect at the end.
void Session::extend_log_mel(bool last) {
    const Stopwatch watch(done.log_mel);
    const int64_t   n      = static_cast<int64_t>(samples.size());
    const int64_t   n_mels = model.encoder.n_mels;
    const int64_t   first  = static_cast<int64_t>(frames.size()) / n_mels;
    const int64_t until = last ? LogMel::frame_count(n) : (n - LogMel::pad) / LogMel::hop;  // frame t ends at 160t+200
    if (until <= first || n < LogMel::min_samples) {
        return;
    }
    frames.resize(static_cast<size_t>(until * n_mels));
    model.log_mel.frames(samples.data(), n, first, until - first, frames.data() + first * n_mels);
    largest = std::max(largest, *std::max_element(frames.begin() + first * n_mels, frames.end()));
}

// Encodes the audio some windows at a time and appends their rows to the KV cache, the opening prompt before the first,
// the closing prompt behind the last.
void Session::prefill() {
    const EncoderWeights & w        = model.encoder;
    const int64_t          n_mels   = w.n_mels;
    const int64_t          n_frames = static_cast<int64_t>(frames.size()) / n_mels;
    const int64_t          hidden   = model.decoder.hidden;

    done.n_frames        = n_frames;
    done.n_rows          = w.rows(n_frames);
    done.n_prompt_tokens = done.n_rows + static_cast<int64_t>(model.prompt_before.size() + model.prompt_after.size());
    decoder.rewind(0, 0);
    decoder.reserve(std::min<int64_t>(done.n_prompt_tokens + max_new_tokens + 1, model.decoder.max_positions));

    std::vector<float> mel, rows, block;
    for (int64_t first = 0; first < n_frames; first += windows_at_once * w.window_frames()) {
        const int64_t count  = std::min(windows_at_once * w.window_frames(), n_frames - first);
        const int64_t n_rows = w.rows(count);
        mel.resize(static_cast<size_t>(count * n_mels));
        std::transform(frames.begin() + first * n_mels, frames.begin() + (first + count) * n_mels, mel.begin(),
                       [this](float value) { return LogMel::normalized(value, largest); });
        rows.resize(static_cast<size_t>(n_rows * w.output_dim));
        {
            const Stopwatch watch(done.encoder);
            encoder.encode(mel.data(), count, n_frames < w.chunk_frames, -1, rows.data());
        }

        const size_t before = first == 0 ? model.prompt_before.size() : 0;
        const size_t after  = first + count == n_frames ? model.prompt_after.size() : 0;
        const size_t total  = before + static_cast<size_t>(n_rows) + after;
        block.resize(total * static_cast<size_t>(hidden));
        float * const audio = block.data() + before * static_cast<size_t>(hidden);
        {
            const Stopwatch watch(done.adapter);
            encoder.adapt(rows.data(), n_rows, audio);
        }

        const Stopwatch watch(done.prefill);
        if (before) {
            decoder.embed(model.prompt_before.data(), static_cast<int64_t>(before), block.data());
        }
        if (after) {
            decoder.embed(model.prompt_after.data(), static_cast<int64_t>(after), audio + n_rows * hidden);
            row.resize(static_cast<size_t>(hidden));
        }
        decoder.append(0, block.data(), static_cast<int64_t>(total), -1, after ? row.data() : nullptr);
    }
}

pcr_status Session::next(pcr_token & token) {
    if (state == State::listening) {
        throw Error(PCR_ERROR_ARGUMENT, "tokens were asked for before the end of the audio: end it first");
    }
    if (state == State::failed) {
        throw Error(failure, "an earlier call in this session failed: reset it first");
    }
    if (state == State::complete) {
        return PCR_END;
    }
    Choice choice;
    try {
        compute.throw_if_cancelled();
        if (state == State::heard) {
            prefill();
            state = State::decoding;
        } else if (decoder.length(0) < model.decoder.max_positions) {
            const Stopwatch watch(done.decode);
            const int32_t   sequence = 0;
            decoder.step(&sequence, &last_token, 1, row.data());
        } else {
            done.truncated = 1;
            state          = State::complete;
            return PCR_END;
        }
        const Stopwatch watch(done.decode);
        head.choose(row.data(), 1, &choice);
    } catch (const Error & error) {
        state   = State::failed;
        failure = error.status;
        throw;
    } catch (...) {
        state   = State::failed;
        failure = PCR_ERROR_MEMORY;
        throw;
    }
    token = {sizeof(token), choice.token, choice.probability};
    if (token.id == model.eos_token || done.n_tokens == max_new_tokens) {
        done.ended     = token.id == model.eos_token;
        done.truncated = !done.ended;
        state          = State::complete;
        return PCR_END;
    }
    last_token = token.id;
    done.n_tokens++;
    return PCR_OK;
}

void Session::forget() {
    samples.clear();
    frames.clear();
    largest    = -10.0f;
    last_token = -1;
    done       = {};
    state      = State::listening;
    for (int32_t s = 0; s < decoder.n_sequences(); s++) {
        decoder.rewind(s, 0);
    }
}

void Session::reset() {
    forget();
    compute.cancelled.store(false);
}

pcr_result Session::result() const {
    pcr_result copy = done;
    copy.size       = sizeof(copy);
    copy.n_samples  = static_cast<int64_t>(samples.size());
    return copy;
}

int64_t Session::log_mel(const float * samples_, int64_t n_samples, float * mel) {
    check_length(n_samples);
    check_samples(samples_, n_samples);
    forget();
    const int64_t n_frames = LogMel::frame_count(n_samples);
    model.log_mel.frames(samples_, n_samples, 0, n_frames, mel);
    float * const end  = mel + n_frames * model.encoder.n_mels;
    const float   most = *std::max_element(mel, end);
    std::transform(mel, end, mel, [most](float value) { return LogMel::normalized(value, most); });
    return n_frames;
}

void Session::encode(const float * mel, int64_t n_frames, int32_t n_layers, float * rows) {
    forget();
    const EncoderWeights & w       = model.encoder;
    const int64_t          columns = n_layers < 0 ? w.output_dim : w.d_model;
    for (int64_t first = 0; first < n_frames; first += windows_at_once * w.window_frames()) {
        const int64_t count = std::min(windows_at_once * w.window_frames(), n_frames - first);
        encoder.encode(mel + first * w.n_mels, count, n_frames < w.chunk_frames, n_layers, rows);
        rows += w.rows(count) * columns;
    }
}

void Session::adapt(const float * rows, int64_t n_rows, float * out) {
    forget();
    encoder.adapt(rows, n_rows, out);
}

}  // namespace pcr
