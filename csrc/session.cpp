#include "session.h"

#include "device/cores.h"
#include "ops/product.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace pcr {

namespace {

// A text whose last tokens are one phrase again and again does not end by itself: so many tokens and turns are a loop.
constexpr int32_t loop_period = 64;  // tokens of the longest phrase that is looked for
constexpr int32_t loop_tokens = 24;
constexpr int32_t loop_turns  = 6;

constexpr size_t draft_search = 8;  // tokens before and behind the expected one, where a wrong draft may be right again

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

// As long as it lives, hurry stops the work.
class Interruptible {
public:
    explicit Interruptible(Compute & compute_) : compute(compute_) { compute.interruptible.store(true); }
    ~Interruptible() { compute.interruptible.store(false); }
    Interruptible(const Interruptible &)             = delete;
    Interruptible & operator=(const Interruptible &) = delete;

private:
    Compute & compute;
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

// Frames that end within so many samples: frame t ends at 160 t + 200.
int64_t complete_frames(int64_t n_samples) {
    return std::max<int64_t>(0, (n_samples - LogMel::pad) / LogMel::hop);
}

// Prompt, audio rows and a first token have their positions.
bool has_room(const Model & model, int64_t n_samples) {
    const int64_t prompt = static_cast<int64_t>(model.prompt_before.size() + model.prompt_after.size());
    return prompt + model.encoder.rows(LogMel::frame_count(n_samples)) < model.decoder.max_positions;
}

void check_room(const Model & model, int64_t n_samples) {
    if (!has_room(model, n_samples)) {
        const int64_t prompt = static_cast<int64_t>(model.prompt_before.size() + model.prompt_after.size());
        const double  most   = double(model.decoder.max_positions - prompt - 1) / model.encoder.chunk_rows *
                               model.encoder.chunk_frames * LogMel::hop / LogMel::sample_rate;
        throw Error(PCR_ERROR_AUDIO, format("%.1f s of audio are too long for one pass: this model takes %.0f s at "
                                            "the most; split the recording",
                                            double(n_samples) / LogMel::sample_rate, std::floor(most)));
    }
}

std::vector<WatchedHead> watched_heads(const Model & model, const pcr_session_params & params) {
    if (params.n_heads > 0 && !model.arithmetic.kernels) {  // every stage is of ggml's operations
        throw Error(PCR_ERROR_UNSUPPORTED,
                    "attention, and with it the times of words, can be read out on the CPU only");
    }
    std::vector<WatchedHead> heads;
    for (int32_t i = 0; i < params.n_heads; i++) {
        heads.push_back({params.heads[2 * i], params.heads[2 * i + 1]});
    }
    return heads;
}

}  // namespace

Session::Session(const Model & model_, const pcr_session_params & params)
    : model(model_),
      compute(model_.device, params.threads > 0 ? params.threads : usable_cores(), model_.arithmetic),
      importance(params.importance ? std::make_unique<Importance>() : nullptr),
      decoder(model_, compute, params.sequences, importance.get(), watched_heads(model_, params)),
      head(model_, compute, importance.get()),
      device_log_mel(compute.on_device()
                         ? std::make_unique<DeviceLogMel>(model_.log_mel, model_.encoder.n_mels, compute)
                         : nullptr),
      encoder(model_, compute, importance.get()),
      max_new_tokens(params.max_new_tokens),
      // Where a row's result could depend on its neighbours, blocks are the same for every way of feeding.
      windows_at_once(!importance && rows_stand_alone(model_, /*each =*/false) ? 4 : 1),
      draft_at_once(!importance && rows_stand_alone(model_, /*each =*/true) ? 24 : 1),
      clips(static_cast<size_t>(params.sequences)) {}

template <typename F> void Session::or_fail(const int32_t * sequences, int32_t count, F f) {
    const auto fail = [&](pcr_status status) {
        for (int32_t i = 0; i < count; i++) {
            at(sequences[i]).state   = State::failed;
            at(sequences[i]).failure = status;
        }
    };
    try {
        compute.throw_if_stopped();
        f();
    } catch (const Error & error) {
        fail(error.status);
        throw;
    } catch (...) {
        fail(PCR_ERROR_MEMORY);
        throw;
    }
}

void Session::feed(int32_t sequence, const float * samples, int64_t n_samples) {
    Clip & clip = at(sequence);
    if (clip.state == State::failed) {
        throw Error(clip.failure, "an earlier call in this session failed: reset it first");
    }
    if (clip.state != State::listening) {
        throw Error(PCR_ERROR_ARGUMENT, "audio was fed after its end: reset the session first");
    }
    compute.throw_if_stopped();
    check_samples(samples, n_samples);
    clip.samples.insert(clip.samples.end(), samples, samples + n_samples);
    extend_log_mel(clip, false);
    or_fail(&sequence, 1, [&] { prefill(sequence, /*last =*/false, nullptr); });
}

void Session::end(int32_t sequence, int64_t n_samples) {
    Clip & clip = at(sequence);
    if (clip.state == State::failed) {
        throw Error(clip.failure, "an earlier call in this session failed: reset it first");
    }
    if (clip.state != State::listening) {
        throw Error(PCR_ERROR_ARGUMENT, "the audio had ended already: reset the session first");
    }
    compute.throw_if_stopped();
    const int64_t fed = static_cast<int64_t>(clip.samples.size());
    const int64_t n   = n_samples < 0 ? fed : n_samples;
    if (n > fed) {
        throw Error(PCR_ERROR_ARGUMENT, format("the audio cannot end after %lld samples: %lld were fed",
                                               static_cast<long long>(n), static_cast<long long>(fed)));
    }
    check_length(n);
    check_room(model, n);
    if (n < fed) {
        const size_t n_mels = static_cast<size_t>(model.encoder.n_mels);
        clip.samples.resize(static_cast<size_t>(n));
        clip.frames.resize(std::min(clip.frames.size(), static_cast<size_t>(complete_frames(n)) * n_mels));
        clip.largest        = clip.frames.empty() ? -10.0f : *std::max_element(clip.frames.begin(), clip.frames.end());
        const int64_t whole = (LogMel::frame_count(n) - 1) / model.encoder.window_frames();  // the last stands apart
        clip.windows.resize(std::min(clip.windows.size(), static_cast<size_t>(whole)));
        clip.appended = std::min(clip.appended, whole);
    }
    extend_log_mel(clip, true);
    clip.state = State::heard;
    expect(clip.text, clip.hypothesis);
}

void Session::log_mel_frames(const float * samples, int64_t n_samples, int64_t first, int64_t count, float * out) {
    if (device_log_mel) {
        device_log_mel->frames(samples, n_samples, first, count, out);
    } else {
        model.log_mel.frames(samples, n_samples, first, count, out);
    }
}

// Log-mel frames as far as their samples are known. Only the last call may reflect at the end.
void Session::extend_log_mel(Clip & clip, bool last) {
    const Stopwatch watch(clip.done.log_mel);
    const int64_t   n      = static_cast<int64_t>(clip.samples.size());
    const int64_t   n_mels = model.encoder.n_mels;
    const int64_t   first  = static_cast<int64_t>(clip.frames.size()) / n_mels;
    const int64_t   until  = last ? LogMel::frame_count(n) : complete_frames(n);
    if (until <= first || n < LogMel::min_samples) {
        return;
    }
    clip.frames.resize(static_cast<size_t>(until * n_mels));
    log_mel_frames(clip.samples.data(), n, first, until - first, clip.frames.data() + first * n_mels);
    clip.largest = std::max(clip.largest, *std::max_element(clip.frames.begin() + first * n_mels, clip.frames.end()));
}

// Rows in the cache in front of a window.
int64_t Session::cached_rows(int64_t n_windows) const {
    return n_windows == 0 ? 0
                          : static_cast<int64_t>(model.prompt_before.size()) + n_windows * model.encoder.window_rows();
}

// Brings encoder and KV cache up to date with the frames: the opening prompt, then every whole window but the last one
// with its rows, and if this is all of the audio that window too and the closing prompt. A window is encoded once, and
// once more when a louder frame has changed the floor under its values; the cache is written anew from there on.
// row: the last layer's, at the last position.
void Session::prefill(int32_t sequence, bool last, float * row) {
    Clip &                 clip          = at(sequence);
    pcr_result &           done          = clip.done;
    const EncoderWeights & w             = model.encoder;
    const int64_t          n_mels        = w.n_mels;
    const int64_t          hidden        = model.decoder.hidden;
    const int64_t          n_frames      = static_cast<int64_t>(clip.frames.size()) / n_mels;
    const int64_t          window_frames = w.window_frames(), window_rows = w.window_rows();
    const int64_t          whole = n_frames > 0 ? (n_frames - 1) / window_frames : 0, n_windows = whole + last;
    const float            floor = clip.largest - 8.0f;
    if (n_windows == 0 || !has_room(model, static_cast<int64_t>(clip.samples.size()))) {
        return;  // too long: end() will say so
    }

    const auto current = [&](int64_t k) {
        if (k >= static_cast<int64_t>(clip.windows.size())) {
            return false;
        }
        const Window & window = clip.windows[static_cast<size_t>(k)];
        return window.floor == floor || window.smallest >= std::max(window.floor, floor);
    };
    if (!last && whole <= static_cast<int64_t>(clip.windows.size())) {
        return;  // what a louder frame has changed waits for the next window, so that work is bounded
    }
    const int64_t n_rows    = w.rows(n_frames);
    const int64_t n_prompt  = static_cast<int64_t>(model.prompt_before.size() + model.prompt_after.size());
    const int64_t most_rows = std::max(n_rows, w.rows(30 * LogMel::sample_rate / LogMel::hop));
    decoder.reserve(std::min<int64_t>(n_prompt + most_rows + max_new_tokens + 1, model.decoder.max_positions));
    if (last) {
        done.n_frames        = n_frames;
        done.n_rows          = n_rows;
        done.n_prompt_tokens = n_rows + n_prompt;
    }
    clip.rows.resize(static_cast<size_t>((last ? n_rows : whole * window_rows) * hidden));

    std::vector<float> mel, encoded, block;
    for (int64_t k = 0; k < n_windows;) {
        int64_t end = k;  // of the windows to encode at once
        while (end < n_windows && end - k < windows_at_once && !current(end)) {
            end++;
        }
        if (end == k) {
            k++;
            continue;
        }
        const int64_t first = k * window_frames, count = std::min(end * window_frames, n_frames) - first;
        mel.resize(static_cast<size_t>(count * n_mels));
        std::transform(clip.frames.begin() + first * n_mels, clip.frames.begin() + (first + count) * n_mels,
                       mel.begin(), [&clip](float value) { return LogMel::normalized(value, clip.largest); });
        encoded.resize(static_cast<size_t>(w.rows(count) * w.output_dim));
        {
            const Stopwatch watch(done.encoder);
            encoder.encode(mel.data(), count, n_frames < w.chunk_frames, -1, encoded.data());
        }
        {
            const Stopwatch watch(done.adapter);
            encoder.adapt(encoded.data(), w.rows(count), clip.rows.data() + k * window_rows * hidden);
        }
        clip.appended = std::min(clip.appended, k);
        for (; k < end; k++) {
            if (k < whole) {
                clip.windows.resize(std::max(clip.windows.size(), static_cast<size_t>(k) + 1));
                const auto values                    = clip.frames.begin() + k * window_frames * n_mels;
                clip.windows[static_cast<size_t>(k)] = {*std::min_element(values, values + window_frames * n_mels),
                                                        floor};
            }
        }
    }

    const Stopwatch watch(done.prefill);
    decoder.rewind(sequence, cached_rows(clip.appended));
    for (int64_t k = clip.appended; k < n_windows;) {
        const int64_t end    = std::min(k + windows_at_once, n_windows);
        const bool    close  = last && end == n_windows;
        const size_t  before = k == 0 ? model.prompt_before.size() : 0;
        const size_t  after  = close ? model.prompt_after.size() : 0;
        const int64_t rows   = std::min(end * window_rows, n_rows) - k * window_rows;
        const size_t  total  = before + static_cast<size_t>(rows) + after;
        block.resize(total * static_cast<size_t>(hidden));
        float * const audio = block.data() + before * static_cast<size_t>(hidden);
        std::copy_n(clip.rows.begin() + k * window_rows * hidden, rows * hidden, audio);
        if (before) {
            decoder.embed(model.prompt_before.data(), static_cast<int64_t>(before), block.data());
        }
        if (after) {
            decoder.embed(model.prompt_after.data(), static_cast<int64_t>(after), audio + rows * hidden);
        }
        decoder.append(sequence, block.data(), static_cast<int64_t>(total), -1, close ? row : nullptr,
                       close ? look(sequence, 1) : Look{});
        k             = end;
        clip.appended = std::min(end, whole);
    }
}

// Room for the attention of the next n_steps steps. A hypothesis has none.
Look Session::look(int32_t sequence, int64_t n_steps) {
    Clip &       clip = at(sequence);
    const size_t size = decoder.n_watched() * static_cast<size_t>(clip.done.n_rows);  // of a step
    if (size == 0 || clip.state == State::listening) {
        return {};
    }
    std::vector<float> & held = clip.text.attention;
    held.resize((clip.text.steps + static_cast<size_t>(n_steps)) * size);
    return {static_cast<int64_t>(model.prompt_before.size()), clip.done.n_rows, held.data() + clip.text.steps * size};
}

const float * Session::attention(int32_t sequence, int64_t * n_steps) const {
    const Text & text = at(sequence).text;
    *n_steps          = static_cast<int64_t>(text.steps);
    return text.attention.data();
}

// What the text is expected to be. Nothing, where checking it many tokens at a time could give other bits.
void Session::expect(Text & text, const std::vector<Choice> & choices_) const {
    text.draft.clear();
    if (draft_at_once > 1) {
        for (const Choice & choice : choices_) {
            text.draft.push_back(choice.token);
        }
    }
    text.draft_at = 0;
    text.right    = static_cast<size_t>(draft_at_once);  // until it is wrong
    text.on_draft = !text.draft.empty();
}

// The next token. Decides whether the text ends with it. True when it is what the draft says.
bool Session::take(Text & text, const Choice & choice) {
    text.steps++;
    text.ended = choice.token == model.eos_token;
    text.done  = text.ended || text.tokens.size() == static_cast<size_t>(max_new_tokens);
    if (text.done) {
        return false;
    }
    const auto matches  = [&](size_t j) { return j < text.draft.size() && text.draft[j] == choice.token; };
    const bool expected = text.on_draft && matches(text.draft_at);
    if (expected) {
        text.draft_at++;
        text.right++;
    } else {
        // The nearest place where it says this token; else another one may stand in the place of this one.
        const size_t at = text.draft_at++;
        text.right      = 0;
        text.on_draft   = false;
        for (size_t d = 0; d <= draft_search && !text.on_draft; d++) {
            if (matches(at + d) || (d <= at && matches(at - d))) {
                text.draft_at = (matches(at + d) ? at + d : at - d) + 1;
                text.on_draft = true;
            }
        }
    }
    text.tokens.push_back(choice);
    text.repeated.resize(loop_period, 0);
    const size_t n = text.tokens.size();
    for (int32_t p = 1; p <= loop_period && static_cast<size_t>(p) < n; p++) {
        int32_t & run = text.repeated[static_cast<size_t>(p) - 1];
        run           = text.tokens[n - 1 - static_cast<size_t>(p)].token == choice.token ? run + 1 : 0;
        text.looped   = text.looped || run + p >= std::max(loop_tokens, loop_turns * p);
    }
    text.done = text.looped;
    return expected;
}

// One token behind each of count sequences, and the choices that follow it.
void Session::step(const int32_t * sequences, const int32_t * tokens, int32_t count, Choice * out) {
    if (compute.on_device()) {
        decoder.step_and_choose(sequences, tokens, count, out);
        return;
    }
    last_rows.resize(std::max(last_rows.size(), static_cast<size_t>(count * model.decoder.hidden)));
    decoder.step(sequences, tokens, count, last_rows.data());
    head.choose(last_rows.data(), count, out);
}

// Takes what the draft says next, up to the first token that the decoder chooses otherwise: that one is right. A draft
// that was wrong is asked for few tokens, and for more the longer it is right.
void Session::follow_draft(int32_t sequence, Text & text) {
    const int64_t length = decoder.length(sequence);
    const int64_t room   = std::min<int64_t>(draft_at_once, model.decoder.max_positions - length);
    const int64_t left   = static_cast<int64_t>(text.draft.size() - std::min(text.draft.size(), text.draft_at));
    const int64_t count  = std::min({room, left + 1, 2 * static_cast<int64_t>(text.right) + 2});
    step_tokens.assign(1, text.tokens.back().token);
    if (count > 1) {
        const auto next = text.draft.begin() + static_cast<std::ptrdiff_t>(text.draft_at);
        step_tokens.insert(step_tokens.end(), next, next + count - 1);
    }
    last_rows.resize(static_cast<size_t>(count * model.decoder.hidden));
    choices.resize(static_cast<size_t>(count));
    decoder.append_tokens(sequence, step_tokens.data(), count, last_rows.data(), look(sequence, count));
    head.choose(last_rows.data(), count, choices.data());
    int64_t taken = 0;  // choice i follows what was put in as token i
    while (taken < count && take(text, choices[static_cast<size_t>(taken++)]) && !text.done) {
    }
    decoder.rewind(sequence, length + taken);
}

const std::vector<Choice> & Session::hypothesis(int32_t sequence) {
    Clip & clip = at(sequence);
    if (clip.state == State::failed) {
        throw Error(clip.failure, "an earlier call in this session failed: reset it first");
    }
    if (clip.state != State::listening) {
        throw Error(PCR_ERROR_ARGUMENT, "the audio has ended: its text is what the tokens say");
    }
    const int64_t n = static_cast<int64_t>(clip.samples.size());
    clip.text       = {};
    if (n >= LogMel::min_samples) {
        check_room(model, n);
        const size_t     known   = clip.frames.size();
        const float      largest = clip.largest;
        const pcr_result before  = clip.done;
        double           seconds = 0.0;
        or_fail(&sequence, 1, [&] {
            const Stopwatch watch(seconds);
            Text &          text = clip.text;
            expect(text, clip.hypothesis);
            const Interruptible here(compute);
            try {
                extend_log_mel(clip, true);
                last_rows.resize(static_cast<size_t>(model.decoder.hidden));
                prefill(sequence, /*last =*/true, last_rows.data());
                Choice first;
                head.choose(last_rows.data(), 1, &first);
                take(text, first);
                while (!text.done && decoder.length(sequence) < model.decoder.max_positions) {
                    if (text.on_draft) {
                        follow_draft(sequence, text);
                    } else {
                        step(&sequence, &text.tokens.back().token, 1, &first);
                        take(text, first);
                    }
                }
            } catch (const Hurried &) {
                // The rest of what was expected is still expected.
                if (text.on_draft || text.tokens.empty()) {
                    const auto rest = clip.hypothesis.begin() + static_cast<std::ptrdiff_t>(text.draft_at);
                    text.tokens.insert(text.tokens.end(), rest, clip.hypothesis.end());
                }
            }
        });
        clip.frames.resize(known);
        clip.largest = largest;
        clip.done    = before;
        clip.done.hypotheses += seconds;
        decoder.rewind(sequence, cached_rows(clip.appended));
    }
    std::swap(clip.hypothesis, clip.text.tokens);
    clip.text = {};
    return clip.hypothesis;
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
    or_fail(sequences, count, [&] {
        // Those that have no token waiting: from their drafts, or by a step in one batch; then the first of new ones.
        stepping.clear();
        for (int32_t i = 0; i < count; i++) {
            Clip & clip = at(sequences[i]);
            if (clip.state != State::decoding || clip.text.done || clip.given < clip.text.tokens.size()) {
                continue;
            }
            if (decoder.length(sequences[i]) >= model.decoder.max_positions) {
                clip.text.done = true;
            } else if (clip.text.on_draft) {
                const Stopwatch watch(clip.done.decode);
                follow_draft(sequences[i], clip.text);
            } else {
                stepping.push_back(sequences[i]);
            }
        }
        const auto n_stepping = static_cast<int32_t>(stepping.size());
        last_rows.resize(static_cast<size_t>(count * hidden));
        choices.resize(static_cast<size_t>(count));
        step_tokens.clear();
        for (const int32_t sequence : stepping) {
            step_tokens.push_back(at(sequence).text.tokens.back().token);
        }
        looks.clear();
        for (const int32_t sequence : stepping) {
            looks.push_back(look(sequence, 1));
        }
        double  seconds = 0.0;
        int32_t n_known = 0;  // of the choices
        if (n_stepping > 0) {
            const Stopwatch watch(seconds);
            if (compute.on_device()) {
                decoder.step_and_choose(stepping.data(), step_tokens.data(), n_stepping, choices.data());
                n_known = n_stepping;
            } else {
                decoder.step(stepping.data(), step_tokens.data(), n_stepping, last_rows.data(), looks.data());
            }
        }
        for (int32_t i = 0; i < count; i++) {
            Clip & clip = at(sequences[i]);
            if (clip.state == State::heard) {
                prefill(sequences[i], /*last =*/true,
                        last_rows.data() + static_cast<int64_t>(stepping.size()) * hidden);
                clip.state = State::decoding;
                stepping.push_back(sequences[i]);
            }
        }
        const auto n_chosen = static_cast<int32_t>(stepping.size());
        if (n_chosen > n_known) {
            const Stopwatch watch(seconds);
            head.choose(last_rows.data() + n_known * hidden, n_chosen - n_known, choices.data() + n_known);
        }
        for (int32_t j = 0; j < n_chosen; j++) {
            Clip & clip = at(stepping[static_cast<size_t>(j)]);
            clip.done.decode += seconds / n_chosen;
            take(clip.text, choices[static_cast<size_t>(j)]);
        }
    });
    bool any = false;
    for (int32_t i = 0; i < count; i++) {
        Clip & clip = at(sequences[i]);
        tokens[i]   = {sizeof(pcr_token), -1, 0.0f};
        if (clip.state == State::decoding && clip.given < clip.text.tokens.size()) {
            const Choice & choice = clip.text.tokens[clip.given++];
            tokens[i]             = {sizeof(pcr_token), choice.token, choice.probability};
            any                   = true;
        } else if (clip.state == State::decoding) {
            clip.done.ended     = clip.text.ended;
            clip.done.looped    = clip.text.looped;
            clip.done.truncated = !clip.text.ended && !clip.text.looped;
            clip.state          = State::complete;
        }
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
    compute.hurried.store(false);
}

pcr_result Session::result(int32_t sequence) const {
    const Clip & clip = at(sequence);
    pcr_result   copy = clip.done;
    copy.size         = sizeof(copy);
    copy.n_samples    = static_cast<int64_t>(clip.samples.size());
    copy.n_tokens     = static_cast<int64_t>(clip.given);
    return copy;
}

int64_t Session::log_mel(const float * samples_, int64_t n_samples, float * mel) {
    check_length(n_samples);
    check_samples(samples_, n_samples);
    forget();
    const int64_t n_frames = LogMel::frame_count(n_samples);
    log_mel_frames(samples_, n_samples, 0, n_frames, mel);
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
