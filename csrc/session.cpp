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
      max_new_tokens(params.max_new_tokens),
      clips(static_cast<size_t>(params.sequences)) {}

void Session::feed(int32_t sequence, const float * samples, int64_t n_samples) {
    Clip & clip = at(sequence);
    if (clip.state != State::listening) {
        throw Error(PCR_ERROR_ARGUMENT, "audio was fed after its end: reset the session first");
    }
    compute.throw_if_cancelled();
    check_samples(samples, n_samples);
    clip.samples.insert(clip.samples.end(), samples, samples + n_samples);
    extend_log_mel(clip, false);
}

void Session::end(int32_t sequence) {
    Clip & clip = at(sequence);
    if (clip.state != State::listening) {
        throw Error(PCR_ERROR_ARGUMENT, "the audio had ended already: reset the session first");
    }
    compute.throw_if_cancelled();
    const int64_t n = static_cast<int64_t>(clip.samples.size());
    check_length(n);
    const int64_t n_rows = model.encoder.rows(LogMel::frame_count(n));
    const int64_t prompt = static_cast<int64_t>(model.prompt_before.size() + model.prompt_after.size());
    if (prompt + n_rows >= model.decoder.max_positions) {
        const double most = double(model.decoder.max_positions - prompt - 1) / model.encoder.chunk_rows *
                            model.encoder.chunk_frames * LogMel::hop / LogMel::sample_rate;
        throw Error(PCR_ERROR_AUDIO, format("%.1f s of audio are too long for one pass: this model takes %.0f s at "
                                            "the most; split the recording",
                                            double(n) / LogMel::sample_rate, std::floor(most)));
    }
    extend_log_mel(clip, true);
    clip.state = State::heard;
}

// Log-mel frames as far as their samples are known. Only the last call may reflect at the end.
void Session::extend_log_mel(Clip & clip, bool last) {
    const Stopwatch watch(clip.done.log_mel);
    const int64_t   n      = static_cast<int64_t>(clip.samples.size());
    const int64_t   n_mels = model.encoder.n_mels;
    const int64_t   first  = static_cast<int64_t>(clip.frames.size()) / n_mels;
    const int64_t until = last ? LogMel::frame_count(n) : (n - LogMel::pad) / LogMel::hop;  // frame t ends at 160t+200
    if (until <= first || n < LogMel::min_samples) {
        return;
    }
    clip.frames.resize(static_cast<size_t>(until * n_mels));
    model.log_mel.frames(clip.samples.data(), n, first, until - first, clip.frames.data() + first * n_mels);
    clip.largest = std::max(clip.largest, *std::max_element(clip.frames.begin() + first * n_mels, clip.frames.end()));
}

// Encodes the audio some windows at a time and appends their rows to the KV cache, the opening prompt before the first,
// the closing prompt behind the last. row: the last layer's, at the last position.
void Session::prefill(int32_t sequence, float * row) {
    Clip &                 clip     = at(sequence);
    pcr_result &           done     = clip.done;
    const EncoderWeights & w        = model.encoder;
    const int64_t          n_mels   = w.n_mels;
    const int64_t          n_frames = static_cast<int64_t>(clip.frames.size()) / n_mels;
    const int64_t          hidden   = model.decoder.hidden;

    done.n_frames        = n_frames;
    done.n_rows          = w.rows(n_frames);
    done.n_prompt_tokens = done.n_rows + static_cast<int64_t>(model.prompt_before.size() + model.prompt_after.size());
    decoder.rewind(sequence, 0);
    decoder.reserve(std::min<int64_t>(done.n_prompt_tokens + max_new_tokens + 1, model.decoder.max_positions));

    std::vector<float> mel, encoded, block;
    for (int64_t first = 0; first < n_frames; first += windows_at_once * w.window_frames()) {
        const int64_t count  = std::min(windows_at_once * w.window_frames(), n_frames - first);
        const int64_t n_rows = w.rows(count);
        mel.resize(static_cast<size_t>(count * n_mels));
        std::transform(clip.frames.begin() + first * n_mels, clip.frames.begin() + (first + count) * n_mels,
                       mel.begin(), [&clip](float value) { return LogMel::normalized(value, clip.largest); });
        encoded.resize(static_cast<size_t>(n_rows * w.output_dim));
        {
            const Stopwatch watch(done.encoder);
            encoder.encode(mel.data(), count, n_frames < w.chunk_frames, -1, encoded.data());
        }

        const size_t before = first == 0 ? model.prompt_before.size() : 0;
        const size_t after  = first + count == n_frames ? model.prompt_after.size() : 0;
        const size_t total  = before + static_cast<size_t>(n_rows) + after;
        block.resize(total * static_cast<size_t>(hidden));
        float * const audio = block.data() + before * static_cast<size_t>(hidden);
        {
            const Stopwatch watch(done.adapter);
            encoder.adapt(encoded.data(), n_rows, audio);
        }

        const Stopwatch watch(done.prefill);
        if (before) {
            decoder.embed(model.prompt_before.data(), static_cast<int64_t>(before), block.data());
        }
        if (after) {
            decoder.embed(model.prompt_after.data(), static_cast<int64_t>(after), audio + n_rows * hidden);
        }
        decoder.append(sequence, block.data(), static_cast<int64_t>(total), -1, after ? row : nullptr);
    }
}

pcr_status Session::next(const int32_t * sequences, int32_t count, pcr_token * tokens) {
    for (int32_t i = 0; i < count; i++) {
        const Clip & clip = at(sequences[i]);
        if (clip.state == State::listening) {
            throw Error(PCR_ERROR_ARGUMENT, "tokens were asked for before the end of the audio: end it first");
        }
        if (clip.state == State::failed) {
            throw Error(clip.failure, "an earlier call in this session failed: reset it first");
        }
    }
    const int64_t hidden = model.decoder.hidden;
    last_rows.resize(static_cast<size_t>(count * hidden));
    choices.resize(static_cast<size_t>(count));
    stepping.clear();
    step_tokens.clear();
    const auto complete = [](Clip & clip, bool ended) {
        clip.done.ended     = ended;
        clip.done.truncated = !ended;
        clip.state          = State::complete;
    };
    try {
        compute.throw_if_cancelled();
        // Rows to choose from: those of the sequences that take a step, in one batch, then those of new ones.
        for (int32_t i = 0; i < count; i++) {
            Clip & clip = at(sequences[i]);
            if (clip.state == State::decoding && decoder.length(sequences[i]) >= model.decoder.max_positions) {
                complete(clip, false);
            } else if (clip.state == State::decoding) {
                stepping.push_back(sequences[i]);
                step_tokens.push_back(clip.last_token);
            }
        }
        const auto n_stepping = static_cast<int32_t>(stepping.size());
        double     seconds    = 0.0;
        if (n_stepping > 0) {
            const Stopwatch watch(seconds);
            decoder.step(stepping.data(), step_tokens.data(), n_stepping, last_rows.data());
        }
        for (int32_t i = 0; i < count; i++) {
            if (at(sequences[i]).state == State::heard) {
                prefill(sequences[i], last_rows.data() + static_cast<int64_t>(stepping.size()) * hidden);
                stepping.push_back(sequences[i]);
            }
        }
        const auto n_chosen = static_cast<int32_t>(stepping.size());
        if (n_chosen > 0) {
            const Stopwatch watch(seconds);
            head.choose(last_rows.data(), n_chosen, choices.data());
        }
        for (int32_t j = 0; j < n_chosen; j++) {
            at(stepping[static_cast<size_t>(j)]).done.decode += seconds / n_chosen;
        }
    } catch (const Error & error) {
        for (int32_t i = 0; i < count; i++) {
            at(sequences[i]).state   = State::failed;
            at(sequences[i]).failure = error.status;
        }
        throw;
    } catch (...) {
        for (int32_t i = 0; i < count; i++) {
            at(sequences[i]).state   = State::failed;
            at(sequences[i]).failure = PCR_ERROR_MEMORY;
        }
        throw;
    }
    bool any = false;
    for (int32_t i = 0; i < count; i++) {
        Clip & clip  = at(sequences[i]);
        tokens[i]    = {sizeof(pcr_token), -1, 0.0f};
        const auto j = std::find(stepping.begin(), stepping.end(), sequences[i]) - stepping.begin();
        if (j == static_cast<std::ptrdiff_t>(stepping.size())) {
            continue;
        }
        const Choice & choice = choices[static_cast<size_t>(j)];
        clip.state            = State::decoding;
        if (choice.token == model.eos_token || clip.done.n_tokens == max_new_tokens) {
            complete(clip, choice.token == model.eos_token);
            continue;
        }
        tokens[i]       = {sizeof(pcr_token), choice.token, choice.probability};
        clip.last_token = choice.token;
        clip.done.n_tokens++;
        any = true;
    }
    return any ? PCR_OK : PCR_END;
}

void Session::clear(int32_t sequence) {
    at(sequence) = {};
    decoder.rewind(sequence, 0);
}

void Session::forget() {
    for (int32_t s = 0; s < decoder.n_sequences(); s++) {
        clear(s);
    }
}

void Session::reset() {
    forget();
    compute.cancelled.store(false);
}

pcr_result Session::result(int32_t sequence) const {
    const Clip & clip = at(sequence);
    pcr_result   copy = clip.done;
    copy.size         = sizeof(copy);
    copy.n_samples    = static_cast<int64_t>(clip.samples.size());
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
