// Rows of any bytes, from any matrix type to any other and back to float32.
#include "input.h"

#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    static const char * const types[] = {"f32",   "f16",    "bf16",  "q8_0",  "q4_0",   "q4_1",    "q5_0",   "q5_1",
                                         "q2_k",  "q3_k",   "q4_k",  "q5_k",  "q6_k",   "iq2_xxs", "iq2_xs", "iq3_xxs",
                                         "iq1_s", "iq4_nl", "iq3_s", "iq2_s", "iq4_xs", "iq1_m",   "tq1_0",  "tq2_0",
                                         "q8_1",  "q8_k",   "mxfp4", "i32",   "",       "F32"};
    Input                     input{data, size};
    const char * const        from    = types[input.below(std::size(types))];
    const char * const        to      = types[input.below(std::size(types))];
    const uint32_t            shape   = input.take<uint16_t>();
    const int64_t             rows    = 1 + shape % 4;
    const bool                weighed = shape & 4, two_threads = shape & 8;
    int64_t                   length = shape >> 4;
    length = length < 2048 ? length : 32 * (1 + (length - 2048) % 32);  // half of them whole blocks

    const size_t         from_bytes = pcr_row_bytes(from, length), to_bytes = pcr_row_bytes(to, length);
    std::vector<uint8_t> source(from_bytes * static_cast<size_t>(rows)), target(to_bytes * static_cast<size_t>(rows));
    std::vector<float>   importance(weighed ? static_cast<size_t>(length) : 0);
    for (float & weight : importance) {
        weight = static_cast<float>(input.take<uint8_t>());
    }
    for (size_t i = 0; i < source.size(); i++) {  // over and over, so that few bytes fill many rows
        source[i] = input.size > 0 ? input.data[i % input.size] : 0;
    }

    char       message[256] = "";
    const bool done         = succeeded(
        pcr_convert_rows(from, source.data(), to, target.data(), rows, length, weighed ? importance.data() : nullptr,
                         two_threads ? 2 : 1, message, sizeof(message)),
        message);
    CHECK(!done || (from_bytes > 0 && to_bytes > 0));
    if (done) {
        std::vector<float> values(static_cast<size_t>(rows * length));
        CHECK(pcr_convert_rows(to, target.data(), "f32", values.data(), rows, length, nullptr, 1, message,
                               sizeof(message)) == PCR_OK);
    }
    return 0;
}
