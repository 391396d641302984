// What a sequence of a session holds: the audio of one segment, and its text.
#pragma once

#include "draft.h"
#include "nn/model.h"
#include "ops/ops.h"
#include "pycrispasr.h"

#include <vector>

namespace pcr {

// Greedy decoding of one text: no beam search, no sampling.
struct Text {
    std::vector<Choice> tokens;  // chosen so far, the last of them not yet in the cache
    Draft               draft;
    LoopGuard           guard;
    bool                done = false, ended = false, looped = false;
    size_t              steps = 0;  // that chose these tokens, and the end
    std::vector<float>  attention;  // of the captured heads: [steps][heads][audio rows], or more than these

    // Takes the next token, and decides whether the text ends with it; ends: the model says so. True where the draft had expected it.
    bool accept_token(const Choice & choice, bool ends, int32_t max_new_tokens);
};

struct Clip {
    // listening -> heard (the audio has ended) -> decoding; failed from anywhere. A hypothesis goes the same way, and back
    // to listening.
    enum class State { listening, heard, decoding, failed };

    // What is put back when a hypothesis is over.
    struct Before {
        size_t     frames;
        float      largest;
        pcr_result done;
    };

    struct Window {  // a whole attention window, whose rows are in `rows`
        float smallest;  // of its log10 values
        float floor;  // that they were raised to
    };

    Prompt              prompt;
    int32_t             max_new_tokens    = 0;
    bool                captures          = false;  // the attention of the session's heads
    State               state             = State::listening;
    bool                is_hypothesis     = false;
    Before              before_hypothesis = {};
    pcr_status          failure           = PCR_OK;
    std::vector<float>  samples;
    std::vector<float>  frames;  // log10 mel powers, not yet normalized: [n_frames][n_mels]
    float               largest = silent;  // of all frames, where they have one spectrogram
    std::vector<Window> windows;  // that are encoded
    std::vector<float>  rows;  // that the decoder reads: [windows][window_rows][hidden], and the last window's
    int64_t             appended = 0;  // windows whose rows are in the cache
    Text                text;
    size_t              given = 0;  // tokens
    std::vector<Choice> hypothesis;  // the last one
    pcr_result          done{};

    int64_t n_samples() const { return static_cast<int64_t>(samples.size()); }
    int64_t n_frames(int64_t n_mels) const { return static_cast<int64_t>(frames.size()) / n_mels; }

    // Log-mel frames as far as their samples are known. Only the last call may reflect at the end, or pad.
    void extend_frames(FrontEnd & front_end, const Model & model, bool last);

    // Forgets what lies behind so many samples, as if it had never been fed.
    void cut(int64_t n_samples, const Model & model);

    // log10 of the power that silence is taken to have.
    static constexpr float silent = -10.0f;

    // The values below which nothing is heard.
    float floor() const { return largest - 8.0f; }

    // True where window k is encoded as all frames so far ask for it.
    bool is_current(int64_t k) const;
};

// An Error that says why samples cannot be taken.
void check_samples(const float * samples, int64_t n_samples);
void check_length(int64_t n_samples, int64_t min_samples);

}  // namespace pcr
