// One listener: audio in, tokens out. Owns everything that changes while a model works.
#pragma once

#include "clip.h"
#include "nn/decoder.h"
#include "nn/encoder.h"

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
    void       finish_early() { compute.finishing_early.store(true); }
    void       reset();                  // forgets every clip, the cancellation and the early finish
    pcr_result result(int32_t sequence) const;
    // What the captured heads attended to: [steps][heads][audio rows]. It stands until the next call.
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

private:
    std::unique_ptr<Ops> ops;

public:
    Decoder decoder;

private:
    Clip &       at(int32_t sequence) { return clips[static_cast<size_t>(sequence)]; }
    const Clip & at(int32_t sequence) const { return clips[static_cast<size_t>(sequence)]; }

    // Runs f. When it throws, the clip can no more be used.
    template <typename F> void or_fail(const int32_t * sequences, int32_t count, F f);

    int64_t          cached_rows(int64_t n_windows) const;
    void             extend_frames(Clip & clip, bool last);
    void             encode_windows(Clip & clip, bool last);
    void             append_windows(int32_t sequence, bool last, Choice * first);
    void             prefill(int32_t sequence, bool last, Choice * first);
    AttentionCapture capture(int32_t sequence, int64_t n_steps);
    void             start_draft(Clip & clip) const;
    bool             accept_token(Text & text, const Choice & choice) const;
    void             follow_draft(int32_t sequence, Text & text);
    void             decode_all(int32_t sequence);
    void             decode_more(const int32_t * sequences, int32_t count);
    void             forget();

    Encoder                   encoder;
    std::unique_ptr<FrontEnd> front_end;
    const int32_t             max_new_tokens;
    const int64_t             windows_at_once;  // attention windows that go through encoder and decoder as one batch
    const int64_t             draft_at_once;  // tokens of a draft that go through the decoder as one batch
    std::vector<Clip>         clips;  // one for each sequence
    std::vector<int32_t>      stepping, step_tokens;
    std::vector<Choice>       choices;
    std::vector<AttentionCapture> captures;
    std::vector<float>            window_mel, encoded, block;
};

}  // namespace pcr
