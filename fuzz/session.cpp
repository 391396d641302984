// Calls of a session in any order, with any samples.
#include "input.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace {

struct Made {
    pcr_session * session;
    bool          is_new;
};

// A session as the first byte says: mostly one that other inputs have used, since to make one takes longer than most
// courses do; of one input in sixteen a new one, with parameters that follow. nullptr where these are refused.
Made make(pcr_model * model, Input & input) {
    static pcr_session * used[2][2] = {};
    const uint8_t        kind       = input.take<uint8_t>();
    const bool           is_new = kind >= 240, importance = kind & 1, with_heads = kind & 2;
    pcr_session *        session = is_new ? nullptr : used[importance][with_heads];
    if (session) {
        CHECK(pcr_session_reset(session) == PCR_OK);
        return {session, false};
    }
    int32_t            heads[] = {0, 1};
    pcr_session_params params;
    pcr_session_params_default(&params);
    params.threads        = 1;
    params.max_new_tokens = 4;
    params.sequences      = 3;
    params.importance     = importance;
    params.heads          = heads;
    params.n_heads        = with_heads;
    if (is_new) {
        params.max_new_tokens = input.take<int8_t>() % 9;
        params.sequences      = input.take<int8_t>() % 4;
        heads[0]              = input.take<int8_t>() % 3;
        heads[1]              = input.take<int8_t>() % 3;
    }
    const pcr_status status = pcr_session_new(model, &params, &session);
    if (!succeeded(status, pcr_session_error(session))) {
        CHECK(is_new);
        pcr_session_free(session);
        return {nullptr, true};
    }
    if (!is_new) {
        used[importance][with_heads] = session;
    }
    return {session, is_new};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    Input      input{data, size};
    const Made made = make(fixed_model(), input);
    if (!made.session) {
        return 0;
    }
    pcr_session * const session  = made.session;
    const auto          succeeds = [&](pcr_status status) { return succeeded(status, pcr_session_error(session)); };
    int64_t             fed      = 0;
    while (input.size > 0 && fed < 3 * 16000) {
        const int32_t sequence = input.take<int8_t>() % 4;
        switch (input.take<uint8_t>() % 15) {
            case 0:
            case 1:
            case 2: {
                const int64_t      count = input.below(4096);  // three windows of the model that make_seeds.py makes
                const float        step  = static_cast<float>(input.take<int16_t>()) * 1e-4f;
                std::vector<float> samples(static_cast<size_t>(count));
                for (size_t i = 0; i < samples.size(); i++) {
                    samples[i] = 0.5f * std::sin(step * static_cast<float>(i));
                }
                if (count > 0) {
                    samples[input.take<uint16_t>() % samples.size()] = input.take<float>();
                }
                fed += count;
                succeeds(pcr_session_feed(session, sequence, samples.data(), count));
                break;
            }
            case 3: succeeds(pcr_session_end(session, sequence, input.take<int16_t>() * int64_t(2))); break;
            case 4:
            case 5: {
                pcr_token tokens[4] = {};
                int32_t   which[4];
                for (int i = 0; i < 4; i++) {
                    tokens[i].size = sizeof(pcr_token);
                    which[i]       = (sequence + i) % 4;
                }
                const int32_t    count  = input.take<int8_t>() % 5;
                const pcr_status status = pcr_session_next(session, which, count, tokens);
                if (succeeds(status)) {
                    for (int i = 0; i < count; i++) {
                        CHECK(tokens[i].id >= -1);
                    }
                }
                break;
            }
            case 6: {
                const size_t           capacity = input.take<uint8_t>() % 16;
                std::vector<pcr_token> tokens(capacity);
                for (pcr_token & token : tokens) {
                    token.size = sizeof(token);
                }
                size_t count = 0;
                if (input.take<uint8_t>() & 1) {
                    succeeds(pcr_session_begin_hypothesis(session, sequence));
                } else {
                    succeeds(pcr_session_end_hypothesis(session, sequence, tokens.data(), capacity, &count));
                }
                break;
            }
            case 7: {
                pcr_clip_params clip;
                pcr_clip_params_default(&clip);
                clip.max_new_tokens = input.take<int8_t>() % 9;
                clip.attention      = input.take<uint8_t>() & 1;
                succeeds(pcr_session_begin(session, sequence, &clip));
                break;
            }
            case 8: succeeds(pcr_session_reset(session)); break;
            case 9:
                if (input.take<uint8_t>() & 1) {
                    pcr_session_cancel(session);
                } else {
                    pcr_session_wake(session);
                }
                break;
            case 11: succeeds(pcr_session_advance(session, sequence, input.take<int8_t>() % 3)); break;
            case 12: {
                const int32_t which[2] = {sequence, (sequence + 1) % 4};
                succeeds(pcr_session_run(session, which, input.take<int8_t>() % 3, 0.0));
                break;
            }
            case 13: {
                const size_t           capacity = input.take<uint8_t>() % 4;
                std::vector<pcr_token> tokens(capacity + 1);
                size_t                 count = 0;
                if (succeeds(pcr_session_take(session, sequence, tokens.data(), capacity, &count))) {
                    CHECK(count <= capacity);
                }
                break;
            }
            case 10: {
                pcr_result result{};
                result.size = sizeof(result);
                succeeds(pcr_session_result(session, sequence, &result));
                break;
            }
            default: {
                std::vector<float> weights(input.take<uint16_t>() % 4096);
                int64_t            steps = 0;
                succeeds(pcr_session_attention(session, sequence, weights.data(), weights.size(), &steps));
            }
        }
    }
    if (made.is_new) {
        pcr_session_free(session);
    }
    return 0;
}
