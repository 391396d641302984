// One listener: audio in, tokens out. Owns everything that changes while a model works.
#pragma once

#include "nn/decoder.h"
#include "nn/encoder.h"
#include "nn/head.h"

namespace pcr {

class Session {
public:
    Session(const Model & model, const pcr_session_params & params);

    // Each sequence holds one clip: its audio, then its text. Audio is encoded and read by the decoder window by window,
    // as soon as it is known that a window is not the last.
    void feed(int32_t sequence, const float * samples, int64_t n_samples);
    // n_samples: of those that were fed; the rest is forgotten. Negative: all.
    void end(int32_t sequence, int64_t n_samples);
    // The text of what was fed so far, as if it ended here. Returns its tokens; they stand until the next call.
    const std::vector<Choice> & hypothesis(int32_t sequence);
    // The next token of each of count different sequences, -1 where the text is complete. PCR_END: everywhere.
    pcr_status next(const int32_t * sequences, int32_t count, pcr_token * tokens);
    void       clear(int32_t sequence);  // forgets its clip
    void       cancel() { compute.cancelled.store(true); }
    void       hurry() { compute.hurried.store(true); }
    void       reset();                  // forgets every clip, the cancellation and the hurry
    pcr_result result(int32_t sequence) const;
    // What the watched heads attended to: [steps][heads][audio rows]. It stands until the next call.
    const float * attention(int32_t sequence, int64_t * n_steps) const;

    // The stages on their own. They forget what was fed.
    int64_t log_mel(const float * samples, int64_t n_samples, float * mel);  // normalized, [frames][n_mels]
    void    encode(const float * mel, int64_t n_frames, int32_t n_layers, float * rows);
    void    adapt(const float * rows, int64_t n_rows, float * out);

    const Model & model;

private:
    Compute compute;

public:
    const std::unique_ptr<Importance> importance;  // what was collected, or none
    Decoder                           decoder;
    Head                              head;

private:
    enum class State { listening, heard, decoding, complete, failed };

    // Greedy decoding of one clip. A draft is what the text is expected to be: its tokens go through the decoder many at
    // a time, and are kept as far as the decoder would have chosen them itself. Where it chose another one, the draft is
    // followed again from where the two agree.
    struct Text {
        std::vector<Choice>  tokens;      // chosen so far, the last of them not yet in the cache
        std::vector<int32_t> draft;
        size_t               draft_at = 0;      // its token that is expected next
        size_t               right    = 0;      // tokens that it has foreseen since it was last wrong
        bool                 on_draft = false;  // it is followed
        std::vector<int32_t> repeated;    // [p]: how many of the last tokens equal those p + 1 places before them
        bool                 done = false, ended = false, looped = false;
        size_t               steps = 0;  // that chose these tokens, and the end
        std::vector<float>   attention;  // of the watched heads: [steps][heads][audio rows], or more than these
    };

    struct Window {      // a whole attention window, whose rows are in Clip::rows
        float smallest;  // of its log10 values
        float floor;     // that they were raised to
    };

    struct Clip {
        State               state   = State::listening;
        pcr_status          failure = PCR_OK;
        std::vector<float>  samples;
        std::vector<float>  frames;            // log10 mel powers, not yet normalized: [n_frames][n_mels]
        float               largest = -10.0f;  // of all frames; log10 of the floor
        std::vector<Window> windows;           // that are encoded
        std::vector<float>  rows;  // of the adapter: [windows][window_rows][hidden], and the last window's
        int64_t             appended = 0;  // windows whose rows are in the cache
        Text                text;
        size_t              given = 0;  // tokens
        std::vector<Choice> hypothesis;
        pcr_result          done{};
    };

    Clip &       at(int32_t sequence) { return clips[static_cast<size_t>(sequence)]; }
    const Clip & at(int32_t sequence) const { return clips[static_cast<size_t>(sequence)]; }

    // Runs f. When it throws, the clip can no more be used.
    template <typename F> void or_fail(const int32_t * sequences, int32_t count, F f);

    void    log_mel_frames(const float * samples, int64_t n_samples, int64_t first, int64_t count, float * out);
    void    extend_log_mel(Clip & clip, bool last);
    int64_t cached_rows(int64_t n_windows) const;
    void    prefill(int32_t sequence, bool last, float * row);
    Look    look(int32_t sequence, int64_t n_steps);
    void    expect(Text & text, const std::vector<Choice> & choices_) const;
    bool    take(Text & text, const Choice & choice);
    void    step(const int32_t * sequences, const int32_t * tokens, int32_t count, Choice * out);
    void    follow_draft(int32_t sequence, Text & text);
    void    forget();

    std::unique_ptr<DeviceLogMel> device_log_mel;  // on a device

    Encoder              encoder;
    const int32_t        max_new_tokens;
    const int64_t        windows_at_once;  // attention windows that go through encoder and decoder as one batch
    const int64_t        draft_at_once;  // tokens of a draft that go through the decoder as one batch
    std::vector<Clip>    clips;  // one for each sequence
    std::vector<int32_t> stepping, step_tokens;
    std::vector<float>   last_rows;  // of the last layer: [count][hidden]
    std::vector<Choice>  choices;
    std::vector<Look>    looks;
};

}  // namespace pcr
