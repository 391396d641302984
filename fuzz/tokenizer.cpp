// Any bytes as text for the bundled model's tokenizer. The tokens' bytes are the text again.
#include "input.h"

#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    pcr_model * const    model = fixed_model();
    const std::string    text(reinterpret_cast<const char *>(data), size);
    std::vector<int32_t> tokens(size);
    size_t               count = 0;
    CHECK(pcr_tokenize(model, text.data(), size, tokens.data(), size, &count) == PCR_OK);
    CHECK(count <= size);

    std::string again;
    for (size_t i = 0; i < count; i++) {
        size_t             length = 0;
        const char * const bytes  = pcr_token_bytes(model, tokens[i], &length);
        CHECK(bytes && length > 0);
        again.append(bytes, length);
    }
    CHECK(again == text);

    if (count > 0) {  // too little room: the count is told, and nothing is written behind the end
        std::vector<int32_t> some(count - 1);
        size_t               needed = 0;
        CHECK(pcr_tokenize(model, text.data(), size, some.data(), some.size(), &needed) == PCR_ERROR_ARGUMENT);
        CHECK(needed == count);
    }
    return 0;
}
