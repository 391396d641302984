// One listener: audio in, tokens out. Owns everything that changes while a model works.
#pragma once

#include "clip.h"
#include "nn/decoder.h"
#include "nn/encoder.h"
#include "nn/projector.h"

namespace pcr {

class Session {
public:
    Session(const Model & model, const pcr_session_params & params);

    // Each sequence holds one clip: its audio, then its text. Begins another one, and forgets the one before.
    void begin(int32_t sequence, const pcr_clip_params & params);
    void feed(int32_t sequence, const float * samples, int64_t n_samples);
    // n_samples: of those that were fed; the rest is forgotten. Negative: all.
    void end(int32_t sequence, int64_t n_samples);
    // From one to the other the clip is as if its audio ended here. Returns its tokens so far, and what the hypothesis
    // before expects behind them; they stand until the next call.
    void                        begin_hypothesis(int32_t sequence);
    const std::vector<Choice> & end_hypothesis(int32_t sequence);
    // Encodes a block of the clip's audio, at most so many windows, and has the decoder read it. A window is taken as
    // soon as it is known that it is not the last; that one when the audio has ended. False: nothing is left to do.
    bool advance(int32_t sequence, int32_t max_windows);
    // Decodes count different sequences until one of their texts is complete, wake() is called, or the time is over.
    void run(const int32_t * sequences, int32_t count, double seconds);
    // The tokens that were not taken yet, at most so many. PCR_END: the text is complete, and these are its last ones.
    pcr_status take(int32_t sequence, pcr_token * tokens, size_t capacity, size_t * count);
    // The next token of each of count different sequences, -1 where the text is complete. PCR_END: everywhere.
    pcr_status next(const int32_t * sequences, int32_t count, pcr_token * tokens);
    void       wake() { woken.store(true); }
    void       cancel() { compute.cancelled.store(true); }
    void       reset();  // forgets every clip, and the cancellation
    pcr_result result(int32_t sequence) const;
    size_t     bytes() const { return decoder.bytes() + audio_workspace.bytes(); }
    // What the captured heads attended to: [steps][heads][audio rows]. It stands until the next call.
    const float * attention(int32_t sequence, int64_t * n_steps);

    // When the words of a text were said: for each place among its tokens, which is -1 there, the best bin of time and its
    // probability. The sequence's clip is that audio and that text then; it has no tokens to take.
    std::vector<Choice> align(int32_t sequence, const float * samples, int64_t n_samples, const int32_t * tokens,
                              int64_t count);

    // The stages on their own. They forget what was fed.
    int64_t log_mel(const float * samples, int64_t n_samples, float * mel);  // normalized, [frames][n_mels]
    void    encode(const float * mel, int64_t n_frames, int32_t n_layers, float * rows);
    void    adapt(const float * rows, int64_t n_rows, float * out);

    const Model &         model;
    const pcr_clip_params defaults;  // of clips

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

    int64_t          markers_before(const Clip & clip, int64_t n_rows) const;
    int64_t          settled_windows(int64_t n, int64_t n_rows) const;
    int64_t          cached_rows(const Clip & clip) const;
    void             check_room(const Prompt & prompt, int64_t n_samples) const;
    bool             has_room(const Prompt & prompt, int64_t n_samples) const;
    void             extend_frames(Clip & clip, bool last);
    bool             advance_block(int32_t sequence, int64_t max_windows);
    void             normalize(const Clip & clip, int64_t first, int64_t count, float * mel) const;
    void             encode_windows(Clip & clip, int64_t first, int64_t end);
    void             append_windows(int32_t sequence, int64_t end, Choice * first);
    AttentionCapture capture(int32_t sequence, int64_t n_steps);
    void             start_draft(Clip & clip) const;
    bool             accept_token(Clip & clip, const Choice & choice) const;
    void             follow_draft(int32_t sequence);
    void             decode_step(const int32_t * sequences, int32_t count);
    void             classify_places(int32_t sequence, std::vector<int32_t> tokens, std::vector<Choice> & bins);
    void             forget();

    Workspace                 audio_workspace;
    Encoder                   encoder;
    Projector                 projector;
    std::unique_ptr<FrontEnd> front_end;
    const int64_t             windows_at_once;  // attention windows that go through encoder and decoder as one batch
    const int64_t             draft_at_once;  // tokens of a draft that go through the decoder as one batch
    std::vector<Clip>         clips;  // one for each sequence
    std::atomic<bool>         woken{false};
    std::vector<int32_t>      waiting, stepping, step_tokens;
    std::vector<Choice>       choices;
    std::vector<AttentionCapture> captures;
    std::vector<float>            window_mel, encoded, block, row_attention;
};

}  // namespace pcr
