#include "clip.h"

#include <algorithm>
#include <cmath>

namespace pcr {

namespace {

// Frames that need no more than so many samples: frame t ends at 160 t + 200, or at the end of a window that has a
// spectrogram of its own.
int64_t complete_frames(int64_t n_samples, int64_t window_samples) {
    const int64_t whole = window_samples > 0 ? n_samples / window_samples * window_samples : 0;
    return whole / LogMel::hop + std::max<int64_t>(0, (n_samples - whole - LogMel::pad) / LogMel::hop);
}

}  // namespace

bool Text::accept_token(const Choice & choice, bool ends, int32_t max_new_tokens) {
    steps++;
    ended = ends;
    done  = ended || tokens.size() == static_cast<size_t>(max_new_tokens);
    if (done) {
        return false;
    }
    const bool expected = draft.accept(choice.token);
    tokens.push_back(choice);
    looped = guard.add(choice.token) || looped;
    done   = looped;
    return expected;
}

void Clip::extend_frames(FrontEnd & front_end, const Model & model, bool last) {
    const int64_t n = n_samples(), n_mels = model.encoder.n_mels, before = n_frames(n_mels);
    const int64_t length = last ? model.padded(n) : n;
    const int64_t until  = last ? model.frame_count(n) : complete_frames(n, model.window_samples);
    if (until <= before || length < LogMel::min_samples) {
        return;
    }
    frames.resize(static_cast<size_t>(until * n_mels), silent);
    samples.resize(static_cast<size_t>(length));  // with silence, for as long as this takes
    if (model.window_samples == 0) {
        front_end.frames(samples.data(), length, before, until - before, frames.data() + before * n_mels);
        largest = std::max(largest, *std::max_element(frames.begin() + before * n_mels, frames.end()));
    }
    const int64_t window_frames = model.window_samples / LogMel::hop;
    for (int64_t t = before; t < until && window_frames > 0;) {
        const int64_t first = t / window_frames * window_frames, begin = first * LogMel::hop;
        const int64_t span     = std::min(model.window_samples, length - begin),
                      end      = std::min(first + window_frames, until);
        const int64_t sounding = std::min(end, first + (n - begin + LogMel::pad) / LogMel::hop + 1);
        if (t < sounding) {
            front_end.frames(samples.data() + begin, span, t - first, sounding - t, frames.data() + t * n_mels);
        }
        t = end;
    }
    samples.resize(static_cast<size_t>(n));
}

void Clip::cut(int64_t n, const Model & model) {
    const EncoderWeights & encoder = model.encoder;
    samples.resize(static_cast<size_t>(n));
    frames.resize(std::min(frames.size(), static_cast<size_t>(complete_frames(n, model.window_samples)) *
                                              static_cast<size_t>(encoder.n_mels)));
    largest             = frames.empty() ? silent : *std::max_element(frames.begin(), frames.end());
    const int64_t whole = (model.frame_count(n) - 1) / encoder.window_frames();  // the last stands apart
    windows.resize(std::min(windows.size(), static_cast<size_t>(whole)));
    appended = std::min(appended, whole);
}

bool Clip::is_current(int64_t k) const {
    if (k >= static_cast<int64_t>(windows.size())) {
        return false;
    }
    const Window & window = windows[static_cast<size_t>(k)];
    return window.floor == floor() || window.smallest >= std::max(window.floor, floor());
}

void check_samples(const float * samples, int64_t n_samples) {
    for (int64_t i = 0; i < n_samples; i++) {
        if (!std::isfinite(samples[i])) {
            throw Error(PCR_ERROR_AUDIO, format("sample %lld is %g: samples must be finite numbers",
                                                static_cast<long long>(i), double(samples[i])));
        }
    }
}

void check_length(int64_t n_samples, int64_t min_samples) {
    if (n_samples < min_samples) {
        throw Error(PCR_ERROR_AUDIO,
                    format("%lld samples (%.4f s) are too few: at least %lld (%.4f s) are needed",
                           static_cast<long long>(n_samples), double(n_samples) / LogMel::sample_rate,
                           static_cast<long long>(min_samples), double(min_samples) / LogMel::sample_rate));
    }
}

}  // namespace pcr
