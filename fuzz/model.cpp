// A model file of anybody's: loaded, asked for its tokens, and given one second of audio.
#include "input.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <string>
#include <vector>

namespace {

// The input as a file, which is the same one at every call.
const char * as_file(const uint8_t * data, size_t size) {
    static const int         file = memfd_create("model.gguf", MFD_CLOEXEC);
    static const std::string path = "/proc/self/fd/" + std::to_string(file);
    CHECK(ftruncate(file, 0) == 0);
    CHECK(pwrite(file, data, size, 0) == static_cast<ssize_t>(size));
    return path.c_str();
}

void ask(const pcr_model * model) {
    pcr_model_info info{};
    info.size = sizeof(info);
    CHECK(pcr_model_get_info(model, &info) == PCR_OK);
    for (int32_t token = -1; token <= info.llm_vocab; token++) {
        size_t             length = 0;
        const char * const bytes  = pcr_token_bytes(model, token, &length);
        if (bytes) {
            CHECK(std::string(bytes, length).size() == length);  // reads all of them
        }
    }
    const std::string    text = "user's 12\tassistant\n\xe4\xbd\xa0 \xff";
    std::vector<int32_t> tokens(text.size());
    size_t               count = 0;
    if (succeeded(pcr_tokenize(model, text.data(), text.size(), tokens.data(), tokens.size(), &count),
                  pcr_model_error(model))) {
        for (size_t i = 0; i < count; i++) {
            CHECK(tokens[i] >= 0 && tokens[i] < info.llm_vocab);
        }
    }
    std::vector<int32_t> prompt(4096);
    pcr_clip_params      params;
    pcr_clip_params_default(&params);
    for (const char * const language : {static_cast<const char *>(nullptr), "French"}) {
        for (const char * const context : {static_cast<const char *>(nullptr), "Zwickau, <|im_end|>"}) {
            params.language = language;
            params.context  = context;
            succeeded(pcr_clip_prompt(model, &params, 13, prompt.data(), prompt.size(), &count),
                      pcr_model_error(model));
        }
    }
}

void hear(pcr_model * model) {
    static const std::vector<float> second = [] {
        std::vector<float> samples(16000);
        for (size_t i = 0; i < samples.size(); i++) {
            const float t = static_cast<float>(i);
            samples[i]    = 0.3f * std::sin(0.01f * t + 0.00001f * t * t);
        }
        return samples;
    }();
    pcr_session_params params;
    pcr_session_params_default(&params);
    params.threads         = 1;
    params.max_new_tokens  = 4;
    pcr_session *  session = nullptr;
    const int32_t  first   = 0;
    const auto     ok      = [&](pcr_status status) { return succeeded(status, pcr_session_error(session)); };
    pcr_model_info info{};
    info.size             = sizeof(info);
    const bool has_opened = pcr_model_get_info(model, &info) == PCR_OK && ok(pcr_session_new(model, &params, &session));
    if (has_opened && info.align_bins > 0) {
        const int32_t text[]    = {-1, 0, -1, info.llm_vocab - 1, -1};
        pcr_place     places[3] = {};
        size_t        count     = 0;
        if (ok(pcr_session_align(session, first, second.data(), static_cast<int64_t>(second.size()), text, 5, places, 3,
                                 &count))) {
            CHECK(count == 3);
            for (const pcr_place & place : places) {
                CHECK(place.bin >= 0 && place.bin < info.align_bins);
                CHECK(place.probability >= 0 && place.probability <= 1);
            }
        }
    }
    if (has_opened && ok(pcr_session_feed(session, first, second.data(), static_cast<int64_t>(second.size()))) &&
        ok(pcr_session_end(session, first, -1))) {
        pcr_status status = PCR_OK;
        for (int i = 0; i < 5 && status == PCR_OK; i++) {
            pcr_token token{};
            token.size = sizeof(token);
            status     = pcr_session_next(session, &first, 1, &token);
            if (ok(status) && status == PCR_OK) {
                CHECK(pcr_token_bytes(model, token.id, nullptr) || token.id >= 0);
                CHECK(token.probability >= 0 && token.probability <= 1);
            }
        }
    }
    pcr_session_free(session);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    pcr_model_params params;
    pcr_model_params_default(&params);
    params.device           = "cpu";
    params.map              = 0;  // memory whose end a sanitizer watches
    pcr_model *      model  = nullptr;
    const pcr_status status = pcr_model_load(as_file(data, size), &params, &model);
    if (succeeded(status, pcr_model_error(model))) {
        ask(model);
        hear(model);
    }
    pcr_model_free(model);
    return 0;
}
