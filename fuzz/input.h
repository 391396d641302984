// What the targets share: reading choices from the fuzzer's input, and what must hold for every call.
#pragma once

#include "pycrispasr.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define CHECK(condition)                                                         \
    do {                                                                         \
        if (!(condition)) {                                                      \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            std::abort();                                                        \
        }                                                                        \
    } while (0)

// Bytes that are taken from the front; zeros when there are no more.
struct Input {
    const uint8_t * data;
    size_t          size;

    template <typename T> T take() {
        T            value{};
        const size_t count = size < sizeof(T) ? size : sizeof(T);
        if (count > 0) {
            std::memcpy(&value, data, count);
        }
        data += count;
        size -= count;
        return value;
    }
    uint32_t below(uint32_t end) { return take<uint16_t>() % end; }
};

// A failure is told with a message, and is never a bug of the library's own.
inline bool succeeded(pcr_status status, const char * message) {
    CHECK(status != PCR_ERROR_INTERNAL && status != PCR_ERROR_BUSY && status != PCR_ERROR_DEVICE);
    CHECK(status >= PCR_ERROR_INTERNAL && status <= PCR_END);
    CHECK(status >= 0 || message[0] != '\0');
    return status >= 0;
}

// The model file that the targets work with which do not make one of their input.
inline pcr_model * fixed_model() {
    static pcr_model * const model = [] {
        const char * const path = std::getenv("PYCRISPASR_FUZZ_MODEL");
        if (!path) {
            std::fprintf(stderr, "set PYCRISPASR_FUZZ_MODEL to a model file\n");
            std::exit(2);
        }
        pcr_model * loaded = nullptr;
        if (pcr_model_load(path, nullptr, &loaded) != PCR_OK) {
            std::fprintf(stderr, "%s\n", pcr_model_error(loaded));
            std::exit(2);
        }
        return loaded;
    }();
    return model;
}
