// One listener: audio in, tokens out. Owns everything that changes while a model works.
#pragma once

#include "decoder.h"
#include "encoder.h"
#include "head.h"

namespace pcr {

class Session {
public:
    Session(const Model & model, const pcr_session_params & params);

    void       feed(const float * samples, int64_t n_samples);
    void       end();
    pcr_status next(pcr_token & token);  // PCR_OK or PCR_END
    void       cancel() { compute.cancelled.store(true); }
    void       reset();
    pcr_result result() const;

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

    void extend_log_mel(bool last);
    void prefill();
    void forget();

    Encoder       encoder;
    const int32_t max_new_tokens;

    State              state   = State::listening;
    pcr_status         failure = PCR_OK;
    std::vector<float> samples;
    std::vector<float> frames;           // log10 mel powers, not yet normalized: [n_frames][n_mels]
    float              largest = -10.0f;  // of all frames; log10 of the floor
    std::vector<float> row;              // of the last layer, at the last position
    int32_t            last_token = -1;  // given, but not yet appended to the cache
    pcr_result         done{};
};

}  // namespace pcr
