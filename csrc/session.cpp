#include "session.h"

#include "device/cores.h"
#include "ops/ops_ggml.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

namespace pcr {

namespace {

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

// Of all stages.
double seconds_of(const pcr_result & done) {
    return done.log_mel + done.encoder + done.adapter + done.prefill + done.decode;
}

std::vector<AttentionHead> captured_heads(const pcr_session_params & params) {
    std::vector<AttentionHead> heads;
    heads.reserve(static_cast<size_t>(params.n_heads));
    for (int32_t i = 0; i < params.n_heads; i++) {
        heads.push_back({params.heads[2 * i], params.heads[2 * i + 1]});
    }
    return heads;
}

// That go through the encoder as one batch, but for windows that are longer.
constexpr int64_t most_frames_at_once = 32 * LogMel::sample_rate / LogMel::hop;

void require_sound(const Clip & clip) {
    if (clip.state == Clip::State::failed) {
        throw Error(clip.failure, "an earlier call in this session failed: reset it first");
    }
}

void require_listening(const Clip & clip, const char * otherwise) {
    require_sound(clip);
    if (clip.is_hypothesis) {
        throw Error(PCR_ERROR_ARGUMENT, "a hypothesis has begun: end it first");
    }
    if (clip.state != Clip::State::listening) {
        throw Error(PCR_ERROR_ARGUMENT, otherwise);
    }
}

// The first of the largest scores, and its softmax.
Choice most_probable(const float * scores, size_t count) {
    const float * const best = std::max_element(scores, scores + count);
    double              sum  = 0.0;
    for (size_t i = 0; i < count; i++) {
        sum += std::exp(double(scores[i]) - double(*best));
    }
    if (!std::isfinite(*best) || !std::isfinite(sum)) {
        throw not_finite();
    }
    return {static_cast<int32_t>(best - scores), static_cast<float>(1.0 / sum)};
}

void require_text(const Model & model) {
    if (model.alignment.bins > 0) {
        throw Error(PCR_ERROR_UNSUPPORTED, "this model writes no text: it tells when the words of one were said");
    }
}

void require_ended(const Clip & clip) {
    require_sound(clip);
    if (clip.state == Clip::State::listening) {
        throw Error(PCR_ERROR_ARGUMENT, "tokens were asked for before the end of the audio: end it first");
    }
}

}  // namespace

Session::Session(const Model & model_, const pcr_session_params & params)
    : model(model_),
      defaults{sizeof(pcr_clip_params), params.max_new_tokens, params.n_heads > 0, nullptr, nullptr},
      compute(model_.device, params.threads > 0 ? params.threads : usable_cores(), model_.arithmetic),
      importance(params.importance ? std::make_unique<Importance>() : nullptr),
      ops(make_ops(model_, compute, importance.get())),
      decoder(model_, *ops, compute, params.sequences, importance.get(), captured_heads(params)),
      audio_workspace(compute, std::max(Encoder::max_nodes(model_.encoder, *ops), Projector::max_nodes),
                      importance.get()),
      encoder(model_.encoder, *ops, audio_workspace),
      projector(model_.projector, *ops, audio_workspace),
      front_end(make_front_end(model_.log_mel, model_.encoder.n_mels, compute)),
      // Where a row's result could depend on its neighbours, blocks are the same for every way of feeding.
      windows_at_once(!importance && ops->batch_invariant(Path::gemm)
                          ? std::clamp<int64_t>(most_frames_at_once / model.encoder.window_frames(), 1, 4)
                          : 1),
      draft_at_once(!importance && ops->batch_invariant(Path::gemv) ? 24 : 1),
      clips(static_cast<size_t>(params.sequences)) {
    forget();
}

// Prompt, audio rows and a first token have their positions.
bool Session::has_room(const Prompt & prompt, int64_t n_samples) const {
    return prompt.size() + model.positions(model.row_count(n_samples)) < model.decoder.max_positions;
}

void Session::check_room(const Prompt & prompt, int64_t n_samples) const {
    if (has_room(prompt, n_samples)) {
        return;
    }
    const int64_t bare = model.prompt(nullptr, nullptr).size(), positions = model.decoder.max_positions;
    const auto    seconds_behind = [&](int64_t prompt_size) {
        const int64_t room = std::max<int64_t>(0, positions - prompt_size - 1);
        int64_t       rows = room;
        while (model.positions(rows) > room) {
            rows -= model.positions(rows) - room;
        }
        return std::floor(double(rows) / model.encoder.chunk_rows * model.encoder.chunk_frames * LogMel::hop /
                          LogMel::sample_rate);
    };
    const double seconds = double(n_samples) / LogMel::sample_rate;
    if (prompt.size() > bare && seconds <= seconds_behind(bare)) {
        throw Error(
            PCR_ERROR_AUDIO,
            format("a context of %lld tokens leaves no room for %.1f s of audio: this model holds %lld tokens and "
                   "audio rows in all; shorten it",
                   static_cast<long long>(prompt.size() - bare), seconds, static_cast<long long>(positions)));
    }
    throw Error(
        PCR_ERROR_AUDIO,
        format("%.1f s of audio are too long for one pass: this model takes %.0f s at the most; split the recording",
               seconds, seconds_behind(prompt.size())));
}

template <typename F> void Session::or_fail(const int32_t * sequences, int32_t count, F f) {
    const auto fail = [&](pcr_status status) {
        for (int32_t i = 0; i < count; i++) {
            at(sequences[i]).state   = Clip::State::failed;
            at(sequences[i]).failure = status;
        }
    };
    try {
        compute.throw_if_cancelled();
        f();
    } catch (const Error & error) {
        fail(error.status);
        throw;
    } catch (...) {
        fail(PCR_ERROR_MEMORY);
        throw;
    }
}

void Session::begin(int32_t sequence, const pcr_clip_params & params) {
    Prompt prompt       = model.prompt(params.language, params.context);
    Clip & clip         = at(sequence);
    clip                = {};
    clip.prompt         = std::move(prompt);
    clip.max_new_tokens = params.max_new_tokens;
    clip.captures       = params.attention != 0;
    decoder.rewind(sequence, 0);
}

void Session::feed(int32_t sequence, const float * samples, int64_t n_samples) {
    Clip & clip = at(sequence);
    require_listening(clip, "audio was fed after its end: reset the session first");
    compute.throw_if_cancelled();
    check_samples(samples, n_samples);
    clip.samples.insert(clip.samples.end(), samples, samples + n_samples);
    extend_frames(clip, false);
}

void Session::end(int32_t sequence, int64_t n_samples) {
    Clip & clip = at(sequence);
    require_text(model);
    require_listening(clip, "the audio had ended already: reset the session first");
    compute.throw_if_cancelled();
    const int64_t fed = clip.n_samples();
    const int64_t n   = n_samples < 0 ? fed : n_samples;
    if (n > fed) {
        throw Error(PCR_ERROR_ARGUMENT, format("the audio cannot end after %lld samples: %lld were fed",
                                               static_cast<long long>(n), static_cast<long long>(fed)));
    }
    check_length(n, model.min_samples());
    check_room(clip.prompt, n);
    if (n < fed) {
        clip.cut(n, model);
    }
    extend_frames(clip, true);
    clip.state = Clip::State::heard;
    start_draft(clip);
}

void Session::extend_frames(Clip & clip, bool last) {
    const Stopwatch watch(clip.done.log_mel);
    clip.extend_frames(*front_end, model, last);
}

// Time markers in front of one of a clip's first n_rows rows. Which of them a clip has is known of as many as its rows so far
// call for; once its audio has ended, of all.
int64_t Session::markers_before(const Clip & clip, int64_t n_rows) const {
    const int64_t before = model.markers.before(n_rows);
    return clip.state == Clip::State::listening ? before : std::min(before, model.markers.count(clip.done.n_rows));
}

// Windows, at most n of them, whose rows have no other markers among them however much follows n_rows rows.
int64_t Session::settled_windows(int64_t n, int64_t n_rows) const {
    while (n > 0 && model.markers.before(n * model.encoder.window_rows()) > model.markers.count(n_rows)) {
        n--;
    }
    return n;
}

// Rows in the cache in front of the first window that is not appended.
int64_t Session::cached_rows(const Clip & clip) const {
    const int64_t rows = clip.appended * model.encoder.window_rows();
    return rows == 0 ? 0
                     : static_cast<int64_t>(clip.prompt.before.size()) + rows +
                           model.markers.size(markers_before(clip, rows));
}

bool Session::advance(int32_t sequence, int32_t max_windows) {
    require_sound(at(sequence));
    bool more = false;
    or_fail(&sequence, 1, [&] { more = advance_block(sequence, max_windows); });
    return more;
}

// Brings encoder and KV cache up to date with the frames: the opening prompt, then every whole window but the last one
// with its rows, and if this is all of the audio that window too, the closing prompt and the first token.
bool Session::advance_block(int32_t sequence, int64_t max_windows) {
    Clip &                 clip  = at(sequence);
    const EncoderWeights & w     = model.encoder;
    const bool             last  = clip.state == Clip::State::heard;
    const int64_t          n     = clip.n_frames(w.n_mels);
    const int64_t          whole = n > 0 ? (n - 1) / w.window_frames() : 0;
    if (!last && (clip.state != Clip::State::listening || !has_room(clip.prompt, clip.n_samples()))) {
        return false;  // end() says that it is too long
    }
    if (!last && whole <= static_cast<int64_t>(clip.windows.size())) {
        return false;  // what a louder frame has changed waits for the next window, so that work is bounded
    }
    const int64_t n_rows   = last ? model.row_count(clip.n_samples()) : whole * w.window_rows();
    const int64_t n_prompt = clip.prompt.size();
    const int64_t max_rows = std::max(w.rows(n), w.rows(30 * LogMel::sample_rate / LogMel::hop));
    decoder.reserve(sequence, std::min<int64_t>(n_prompt + model.positions(max_rows) + clip.max_new_tokens + 1,
                                                model.decoder.max_positions));
    if (last) {
        clip.done.n_frames        = n;
        clip.done.n_rows          = n_rows;
        clip.done.n_prompt_tokens = model.positions(n_rows) + n_prompt;
    }
    clip.rows.resize(static_cast<size_t>((last ? w.rows(n) : n_rows) * model.decoder.hidden));
    int64_t first = 0;  // window that is not encoded, or not appended
    while (first < whole && first < clip.appended && clip.is_current(first)) {
        first++;
    }
    const int64_t until = last ? whole + 1 : settled_windows(whole, n_rows);
    const int64_t end   = std::min(until, first + std::min(max_windows, windows_at_once));
    encode_windows(clip, first, end);
    Choice     next;
    const bool ends = last && end == until;
    append_windows(sequence, end, ends ? &next : nullptr);
    if (ends) {
        clip.state = Clip::State::decoding;
        accept_token(clip, next);
    }
    return end < until;
}

// What the encoder reads of so many frames.
void Session::normalize(const Clip & clip, int64_t first, int64_t count, float * mel) const {
    const int64_t n_mels = model.encoder.n_mels;
    const int64_t span   = model.window_samples > 0 ? model.window_samples / LogMel::hop : count;
    for (int64_t t = 0; t < count; t += span) {
        const float * const begin = clip.frames.data() + (first + t) * n_mels;
        const float * const end   = begin + std::min(span, count - t) * n_mels;
        const float         most  = model.window_samples > 0 ? *std::max_element(begin, end) : clip.largest;
        std::transform(begin, end, mel + t * n_mels, [most](float value) { return LogMel::normalized(value, most); });
    }
}

// The decoder's rows of those of these windows that need it. A window is encoded once, and once more when a louder frame
// has changed the floor under its values; the cache is written anew from there on.
void Session::encode_windows(Clip & clip, int64_t k, int64_t end) {
    const EncoderWeights & w      = model.encoder;
    const int64_t          n_mels = w.n_mels, hidden = model.decoder.hidden;
    const int64_t          window_frames = w.window_frames(), window_rows = w.window_rows();
    const int64_t          n_frames = clip.n_frames(n_mels), whole = (n_frames - 1) / window_frames;
    while (k < end) {
        int64_t stale = k;  // end of the windows to encode at once
        while (stale < end && !clip.is_current(stale)) {
            stale++;
        }
        if (stale == k) {
            k++;
            continue;
        }
        const int64_t first = k * window_frames, count = std::min(stale * window_frames, n_frames) - first;
        window_mel.resize(static_cast<size_t>(count * n_mels));
        normalize(clip, first, count, window_mel.data());
        float * const rows = clip.rows.data() + k * window_rows * hidden;
        if (model.projector.empty()) {
            const Stopwatch watch(clip.done.encoder);
            encoder.encode(window_mel.data(), count, w.chunk_of(n_frames), -1, rows);
        } else {
            encoded.resize(static_cast<size_t>(w.rows(count) * w.output_dim));
            {
                const Stopwatch watch(clip.done.encoder);
                encoder.encode(window_mel.data(), count, w.chunk_of(n_frames), -1, encoded.data());
            }
            const Stopwatch watch(clip.done.adapter);
            projector.project(encoded.data(), w.rows(count), rows);
        }
        clip.appended = std::min(clip.appended, k);
        for (; k < stale; k++) {
            if (k < whole) {
                clip.windows.resize(std::max(clip.windows.size(), static_cast<size_t>(k) + 1));
                const auto  values   = clip.frames.begin() + k * window_frames * n_mels;
                const float smallest = model.window_samples > 0
                                           ? std::numeric_limits<float>::infinity()  // it does not depend on the others
                                           : *std::min_element(values, values + window_frames * n_mels);
                clip.windows[static_cast<size_t>(k)] = {smallest, clip.floor()};
            }
        }
    }
}

// Appends the rows of the windows before `end` that are not in the cache, with the prompts before and behind them. first:
// the token behind the last window, or null where that is not among them.
void Session::append_windows(int32_t sequence, int64_t end, Choice * first) {
    Clip &                 clip   = at(sequence);
    const EncoderWeights & w      = model.encoder;
    const int64_t          hidden = model.decoder.hidden, window_rows = w.window_rows();
    const int64_t          whole = (clip.n_frames(w.n_mels) - 1) / w.window_frames();
    const TimeMarkers &    marks = model.markers;

    const Stopwatch watch(clip.done.prefill);
    decoder.rewind(sequence, cached_rows(clip));
    for (int64_t k = clip.appended; k < end;) {
        const int64_t block_end  = std::min(k + windows_at_once, end);
        const bool    close      = first && block_end == end;
        const int64_t row        = k * window_rows;
        const int64_t held       = static_cast<int64_t>(clip.rows.size()) / hidden;
        const int64_t end_row    = close ? clip.done.n_rows : std::min(block_end * window_rows, held);
        const int64_t first_mark = markers_before(clip, row) + 1;
        const int64_t last_mark  = close ? marks.count(end_row) : markers_before(clip, end_row);
        block.clear();
        const auto append_rows = [&](int64_t from, int64_t to) {
            block.insert(block.end(), clip.rows.begin() + from * hidden, clip.rows.begin() + to * hidden);
        };
        const auto append_tokens = [&](const int32_t * tokens, int64_t count) {
            const size_t place = block.size();
            block.resize(place + static_cast<size_t>(count * hidden));
            if (count > 0) {
                decoder.embed(tokens, count, block.data() + place);
            }
        };
        if (k == 0) {
            append_tokens(clip.prompt.before.data(), static_cast<int64_t>(clip.prompt.before.size()));
        }
        int64_t from = row;
        for (int64_t mark = first_mark; mark <= last_mark; mark++) {
            append_rows(from, mark * marks.rows());
            append_tokens(marks.tokens_of(mark), marks.size(mark) - marks.size(mark - 1));
            from = mark * marks.rows();
        }
        append_rows(from, end_row);
        if (close) {
            append_tokens(clip.prompt.after.data(), static_cast<int64_t>(clip.prompt.after.size()));
        }
        decoder.append(sequence, block.data(), static_cast<int64_t>(block.size()) / hidden, -1,
                       {nullptr, close ? first : nullptr}, close ? capture(sequence, 1) : AttentionCapture{});
        k             = block_end;
        clip.appended = std::min(block_end, whole);
    }
}

// Room for the attention of the next n_steps steps. A hypothesis has none.
AttentionCapture Session::capture(int32_t sequence, int64_t n_steps) {
    Clip &        clip  = at(sequence);
    const int64_t count = model.positions(clip.done.n_rows);
    const size_t  size  = decoder.n_captured() * static_cast<size_t>(count);  // of a step
    if (size == 0 || !clip.captures || clip.is_hypothesis) {
        return {};
    }
    std::vector<float> & held = clip.text.attention;
    held.resize((clip.text.steps + static_cast<size_t>(n_steps)) * size);
    return {static_cast<int64_t>(clip.prompt.before.size()), count, held.data() + clip.text.steps * size};
}

// The last hypothesis is what the text is expected to be: no draft where verifying it could give other bits.
void Session::start_draft(Clip & clip) const {
    std::vector<int32_t> expected;
    expected.reserve(clip.hypothesis.size());
    for (const Choice & choice : clip.hypothesis) {
        expected.push_back(choice.token);
    }
    clip.text.draft.start(std::move(expected), static_cast<size_t>(draft_at_once));
}

bool Session::accept_token(Clip & clip, const Choice & choice) const {
    return clip.text.accept_token(choice, model.ends_text(choice.token), clip.max_new_tokens);
}

// Verifies what the draft says next, up to the first token that the decoder chooses otherwise: that one is right.
void Session::follow_draft(int32_t sequence) {
    Clip &          clip = at(sequence);
    Text &          text = clip.text;
    const Stopwatch watch(clip.done.decode);
    const int64_t   length = decoder.length(sequence);
    const int64_t   room   = std::min<int64_t>(draft_at_once, model.decoder.max_positions - length);
    step_tokens            = text.draft.ahead(static_cast<size_t>(room - 1));
    step_tokens.insert(step_tokens.begin(), text.tokens.back().token);
    const int64_t count = static_cast<int64_t>(step_tokens.size());
    choices.resize(step_tokens.size());
    decoder.append_tokens(sequence, step_tokens.data(), count, {nullptr, choices.data()}, capture(sequence, count));
    int64_t taken    = 0;  // choice i follows what was put in as token i
    bool    expected = true;
    while (taken < count && expected && !text.done) {
        expected = accept_token(clip, choices[static_cast<size_t>(taken)]);
        taken++;
    }
    decoder.rewind(sequence, length + taken);
}

void Session::begin_hypothesis(int32_t sequence) {
    Clip & clip = at(sequence);
    require_text(model);
    require_listening(clip, "the audio has ended: its text is what the tokens say");
    compute.throw_if_cancelled();
    const bool is_audible = clip.n_samples() >= model.min_samples();
    if (is_audible) {
        check_room(clip.prompt, clip.n_samples());
    }
    clip.text              = {};
    clip.before_hypothesis = {clip.frames.size(), clip.largest, clip.done};
    clip.is_hypothesis     = true;
    if (!is_audible) {
        clip.text.done = true;
        clip.state     = Clip::State::decoding;
        return;
    }
    or_fail(&sequence, 1, [&] {
        extend_frames(clip, true);
        start_draft(clip);
    });
    clip.state = Clip::State::heard;
}

const std::vector<Choice> & Session::end_hypothesis(int32_t sequence) {
    Clip & clip = at(sequence);
    require_sound(clip);
    if (!clip.is_hypothesis) {
        throw Error(PCR_ERROR_ARGUMENT, "no hypothesis has begun");
    }
    Text &       text   = clip.text;
    const size_t passed = std::min(text.draft.position(), clip.hypothesis.size());
    if (!text.done && (text.draft.active() || text.tokens.empty())) {
        text.tokens.insert(text.tokens.end(), clip.hypothesis.begin() + static_cast<std::ptrdiff_t>(passed),
                           clip.hypothesis.end());  // the rest of what was expected is still expected
    }
    std::swap(clip.hypothesis, text.tokens);
    const Clip::Before & before = clip.before_hypothesis;
    const pcr_result     done   = clip.done;
    clip.text                   = {};
    clip.given                  = 0;
    clip.frames.resize(before.frames);
    clip.largest  = before.largest;
    clip.appended = settled_windows(clip.appended, done.n_rows);
    clip.done     = before.done;
    clip.done.hypotheses += seconds_of(done) - seconds_of(before.done);
    clip.is_hypothesis = false;
    clip.state         = Clip::State::listening;
    decoder.rewind(sequence, cached_rows(clip));
    return clip.hypothesis;
}

// A token more for each of these clips whose text goes on: from their drafts, and for the others by a step in one batch.
void Session::decode_step(const int32_t * sequences, int32_t count) {
    stepping.clear();
    for (int32_t i = 0; i < count; i++) {
        Clip & clip = at(sequences[i]);
        if (clip.text.done) {
            continue;
        }
        if (decoder.length(sequences[i]) >= model.decoder.max_positions) {
            clip.text.done = true;
        } else if (clip.text.draft.active()) {
            follow_draft(sequences[i]);
        } else {
            stepping.push_back(sequences[i]);
        }
    }
    if (stepping.empty()) {
        return;
    }
    step_tokens.clear();
    captures.clear();
    for (const int32_t sequence : stepping) {
        step_tokens.push_back(at(sequence).text.tokens.back().token);
        captures.push_back(capture(sequence, 1));
    }
    choices.resize(stepping.size());
    double seconds = 0.0;
    {
        const Stopwatch watch(seconds);
        decoder.step(stepping.data(), step_tokens.data(), static_cast<int32_t>(stepping.size()),
                     {nullptr, choices.data()}, captures.data());
    }
    for (size_t j = 0; j < stepping.size(); j++) {
        Clip & clip = at(stepping[j]);
        clip.done.decode += seconds / static_cast<double>(stepping.size());
        accept_token(clip, choices[j]);
    }
}

void Session::run(const int32_t * sequences, int32_t count, double seconds) {
    for (int32_t i = 0; i < count; i++) {
        require_ended(at(sequences[i]));
        if (at(sequences[i]).state == Clip::State::heard) {
            throw Error(PCR_ERROR_ARGUMENT, "a clip's audio has not been worked on: advance it first");
        }
    }
    const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    or_fail(sequences, count, [&] {
        const auto ended = [this](int32_t sequence) { return at(sequence).text.done; };
        do {
            decode_step(sequences, count);
        } while (std::none_of(sequences, sequences + count, ended) && !woken.load() &&
                 std::chrono::steady_clock::now() < until);
    });
    woken.store(false);
}

pcr_status Session::take(int32_t sequence, pcr_token * tokens, size_t capacity, size_t * count) {
    Clip & clip = at(sequence);
    require_ended(clip);
    *count = std::min(capacity, clip.text.tokens.size() - clip.given);
    for (size_t i = 0; i < *count; i++) {
        const Choice & choice = clip.text.tokens[clip.given++];
        tokens[i]             = {sizeof(pcr_token), choice.token, choice.probability};
    }
    if (!clip.text.done || clip.given < clip.text.tokens.size()) {
        return PCR_OK;
    }
    clip.done.ended     = clip.text.ended;
    clip.done.looped    = clip.text.looped;
    clip.done.truncated = !clip.text.ended && !clip.text.looped;
    return PCR_END;
}

pcr_status Session::next(const int32_t * sequences, int32_t count, pcr_token * tokens) {
    for (int32_t i = 0; i < count; i++) {
        require_ended(at(sequences[i]));
    }
    or_fail(sequences, count, [&] {
        waiting.clear();
        for (int32_t i = 0; i < count; i++) {
            const Clip & clip = at(sequences[i]);
            if (clip.state == Clip::State::decoding && clip.given == clip.text.tokens.size()) {
                waiting.push_back(sequences[i]);
            }
        }
        decode_step(waiting.data(), static_cast<int32_t>(waiting.size()));
        for (int32_t i = 0; i < count; i++) {
            while (at(sequences[i]).state == Clip::State::heard) {
                advance_block(sequences[i], windows_at_once);
            }
        }
    });
    bool any = false;
    for (int32_t i = 0; i < count; i++) {
        tokens[i]    = {sizeof(pcr_token), -1, 0.0f};
        size_t taken = 0;
        take(sequences[i], &tokens[i], 1, &taken);
        any = any || taken > 0;
    }
    return any ? PCR_OK : PCR_END;
}

std::vector<Choice> Session::align(int32_t sequence, const float * samples, int64_t n_samples, const int32_t * tokens,
                                   int64_t count) {
    const Alignment & alignment = model.alignment;
    if (alignment.bins == 0) {
        throw Error(PCR_ERROR_UNSUPPORTED, "this model writes what it hears, and tells no times of another text");
    }
    compute.throw_if_cancelled();
    check_samples(samples, n_samples);
    check_length(n_samples, model.min_samples());
    const double seconds = double(n_samples) / LogMel::sample_rate;
    const double reach   = double(alignment.bins) * alignment.bin_ms * 1e-3;
    if (seconds > reach) {
        throw Error(PCR_ERROR_AUDIO,
                    format("%.1f s of audio are too long to be aligned in one pass: this model's times "
                           "end at %.1f s; align it in parts",
                           seconds, reach));
    }
    begin(sequence, defaults);
    Clip & clip = at(sequence);
    check_room(clip.prompt, n_samples);
    const int64_t n_audio = clip.prompt.size() + model.encoder.rows(model.frame_count(n_samples));
    if (n_audio + count > model.decoder.max_positions) {
        throw Error(
            PCR_ERROR_AUDIO,
            format("a text of %lld tokens and places is too long for one pass: beside %.1f s of audio this model "
                   "has room for %lld; align it in parts",
                   static_cast<long long>(count), seconds,
                   static_cast<long long>(model.decoder.max_positions - n_audio)));
    }
    std::vector<int32_t> closing = clip.prompt.after;
    closing.insert(closing.end(), tokens, tokens + count);
    std::vector<Choice> bins;
    or_fail(&sequence, 1, [&] {
        decoder.reserve(sequence, n_audio + count);
        clip.samples.assign(samples, samples + n_samples);
        extend_frames(clip, true);
        const EncoderWeights & w         = model.encoder;
        const int64_t          n_windows = (clip.n_frames(w.n_mels) - 1) / w.window_frames() + 1;
        clip.done.n_frames               = clip.n_frames(w.n_mels);
        clip.done.n_rows                 = w.rows(clip.done.n_frames);
        clip.done.n_prompt_tokens        = n_audio + count;
        clip.rows.resize(static_cast<size_t>(clip.done.n_rows * model.decoder.hidden));
        for (int64_t first = 0; first < n_windows; first += windows_at_once) {
            const int64_t end = std::min(n_windows, first + windows_at_once);
            encode_windows(clip, first, end);
            append_windows(sequence, end, nullptr);
        }
        classify_places(sequence, std::move(closing), bins);
    });
    clip.text.done = true;
    clip.state     = Clip::State::decoding;
    return bins;
}

// Appends a text to the cache, some of it at a time, and classifies its places, which are -1.
void Session::classify_places(int32_t sequence, std::vector<int32_t> tokens, std::vector<Choice> & bins) {
    constexpr size_t at_once = 256;

    Clip &             clip   = at(sequence);
    const Alignment &  a      = model.alignment;
    const size_t       hidden = static_cast<size_t>(model.decoder.hidden);
    const Stopwatch    watch(clip.done.prefill);
    std::vector<float> rows, scores;
    for (size_t first = 0; first < tokens.size(); first += at_once) {
        const size_t        count = std::min(at_once, tokens.size() - first);
        int32_t * const     some  = tokens.data() + first;
        std::vector<size_t> places;
        for (size_t i = 0; i < count; i++) {
            if (some[i] < 0) {
                some[i] = a.place;
                places.push_back(i);
            }
        }
        block.resize(count * hidden);
        rows.resize(count * hidden);
        decoder.embed(some, static_cast<int64_t>(count), block.data());
        decoder.append_all(sequence, block.data(), static_cast<int64_t>(count), rows.data());
        if (places.empty()) {
            continue;
        }
        for (size_t i = 0; i < places.size(); i++) {
            std::copy_n(rows.data() + places[i] * hidden, hidden, block.data() + i * hidden);
        }
        const size_t n_bins = static_cast<size_t>(a.bins);
        scores.resize(places.size() * n_bins);
        decoder.apply(a.classifier, block.data(), static_cast<int64_t>(places.size()), scores.data());
        for (size_t i = 0; i < places.size(); i++) {
            bins.push_back(most_probable(scores.data() + i * n_bins, n_bins));
        }
    }
}

void Session::forget() {
    for (int32_t s = 0; s < decoder.n_sequences(); s++) {
        begin(s, defaults);
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
    copy.n_samples    = clip.n_samples();
    copy.n_tokens     = static_cast<int64_t>(clip.given);
    return copy;
}

const float * Session::attention(int32_t sequence, int64_t * n_steps) {
    const Clip & clip = at(sequence);
    *n_steps          = clip.captures && !clip.is_hypothesis ? static_cast<int64_t>(clip.text.steps) : 0;
    if (model.markers.empty()) {
        return clip.text.attention.data();
    }
    // Without the markers' columns.
    const int64_t n_rows = clip.done.n_rows, n_marks = model.markers.count(n_rows);
    const int64_t columns = model.positions(n_rows);
    row_attention.clear();
    for (int64_t i = 0; i < *n_steps * static_cast<int64_t>(decoder.n_captured()); i++) {
        const auto weights = clip.text.attention.begin() + i * columns;
        for (int64_t mark = 0, row = 0; mark <= n_marks; mark++) {
            const int64_t end = mark < n_marks ? (mark + 1) * model.markers.rows() : n_rows;
            row_attention.insert(row_attention.end(), weights + row + model.markers.size(mark),
                                 weights + end + model.markers.size(mark));
            row = end;
        }
    }
    return row_attention.data();
}

int64_t Session::log_mel(const float * samples_, int64_t n_samples, float * mel) {
    check_length(n_samples, model.min_samples());
    check_samples(samples_, n_samples);
    forget();
    Clip clip;
    clip.samples.assign(samples_, samples_ + n_samples);
    clip.extend_frames(*front_end, model, true);
    const int64_t n_frames = clip.n_frames(model.encoder.n_mels);
    normalize(clip, 0, n_frames, mel);
    return n_frames;
}

void Session::encode(const float * mel, int64_t n_frames, int32_t n_layers, float * rows) {
    forget();
    const EncoderWeights & w       = model.encoder;
    const int64_t          columns = w.columns(n_layers);
    if (w.tower == Tower::whisper && n_frames % w.window_frames() != 0) {
        throw Error(PCR_ERROR_ARGUMENT,
                    format("%lld frames are no whole windows of %lld", static_cast<long long>(n_frames),
                           static_cast<long long>(w.window_frames())));
    }
    for (int64_t first = 0; first < n_frames; first += windows_at_once * w.window_frames()) {
        const int64_t count = std::min(windows_at_once * w.window_frames(), n_frames - first);
        encoder.encode(mel + first * w.n_mels, count, w.chunk_of(n_frames), n_layers, rows);
        rows += w.rows(count) * columns;
    }
}

void Session::adapt(const float * rows, int64_t n_rows, float * out) {
    forget();
    if (model.projector.empty()) {
        std::copy_n(rows, n_rows * model.decoder.hidden, out);
    } else {
        projector.project(rows, n_rows, out);
    }
}

}  // namespace pcr
