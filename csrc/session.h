// One listener: audio in, tokens out. Owns everything that changes while a model works.
#pragma once

#include "decoder.h"
#include "encoder.h"
#include "head.h"

namespace pcr {

class Session {
public:
    Session(const Model & model, const pcr_session_params & params);

    // Each sequence holds one clip: its audio, then its text.
    void feed(int32_t sequence, const float * samples, int64_t n_samples);
    void end(int32_t sequence);
    // The next token of each of count different sequences, -1 where the text is complete. PCR_END: everywhere.
    pcr_status next(const int32_t * sequences, int32_t count, pcr_token * tokens);
    void       clear(int32_t sequence);  // forgets its clip
    void       cancel() { compute.cancelled.store(true); }
    void       reset();                  // forgets every clip and the cancellation
    pcr_result result(int32_t sequence) const;

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

    struct Clip {
        State              state   = State::listening;
        pcr_status         failure = PCR_OK;
        std::vector<float> samples;
        std::vector<float> frames;            // log10 mel powers, not yet normalized: [n_frames][n_mels]
        float              largest    = -10.0f;  // of all frames; log10 of the floor
        int32_t            last_token = -1;   // given, but not yet appended to the cache
        pcr_result         done{};
    };

    Clip &       at(int32_t sequence) { return clips[static_cast<size_t>(sequence)]; }
    const Clip & at(int32_t sequence) const { return clips[static_cast<size_t>(sequence)]; }

    void extend_log_mel(Clip & clip, bool last);
    void prefill(int32_t sequence, float * row);
    void forget();

    Encoder              encoder;
    const int32_t        max_new_tokens;
    std::vector<Clip>    clips;  // one for each sequence
    std::vector<int32_t> stepping, step_tokens;
    std::vector<float>   last_rows;  // of the last layer: [count][hidden]
    std::vector<Choice>  choices;
};

}  // namespace pcr
