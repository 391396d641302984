#include "quantize.h"

#include "log.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <string>
#include <thread>
#include <vector>

namespace pcr {

namespace {

std::string lower(const char * text) {
    std::string out(text);
    for (char & c : out) {
        c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
    }
    return out;
}

// A block's scale is an F16, and ggml's arithmetic takes for granted that neither a sum nor a reciprocal overflows.
constexpr float largest_value = 65504.0f, largest_importance = 1e15f;
constexpr float smallest_value = 1e-30f;  // what is smaller is zero

bool all_within(const float * values, int64_t count, float least, float most) {
    return std::all_of(values, values + count, [&](float value) { return value >= least && value <= most; });
}

// Some rows, by way of float32: floats [rows][row_length] is scratch.
void convert_some(ggml_type from, const uint8_t * source, ggml_type to, uint8_t * target, int64_t n_rows,
                  int64_t row_length, const float * importance, std::vector<float> & floats) {
    const float * values = reinterpret_cast<const float *>(source);
    if (from != GGML_TYPE_F32) {
        floats.resize(static_cast<size_t>(n_rows * row_length));
        ggml_get_type_traits(from)->to_float(source, floats.data(), n_rows * row_length);
        values = floats.data();
    }
    if (ggml_is_quantized(to) && !all_within(values, n_rows * row_length, -largest_value, largest_value)) {
        throw Error(PCR_ERROR_FORMAT, format("a value is not finite or beyond %g, which %s cannot hold", largest_value,
                                             ggml_type_name(to)));
    }
    const auto is_tiny = [](float value) { return value != 0.0f && std::abs(value) < smallest_value; };
    if (ggml_is_quantized(to) && std::any_of(values, values + n_rows * row_length, is_tiny)) {
        if (values != floats.data()) {
            floats.assign(values, values + n_rows * row_length);
            values = floats.data();
        }
        std::replace_if(floats.begin(), floats.end(), is_tiny, 0.0f);
    }
    ggml_quantize_chunk(to, values, target, 0, n_rows, row_length, importance);
}

}  // namespace

bool is_matrix_type(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32:
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16:
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q5_0:
        case GGML_TYPE_Q5_1:
        case GGML_TYPE_Q2_K:
        case GGML_TYPE_Q3_K:
        case GGML_TYPE_Q4_K:
        case GGML_TYPE_Q5_K:
        case GGML_TYPE_Q6_K: return true;
        default: return false;
    }
}

ggml_type type_named(const char * name) {
    const std::string wanted = lower(name);
    for (int i = 0; i < GGML_TYPE_COUNT; i++) {
        const ggml_type type = static_cast<ggml_type>(i);
        if (is_matrix_type(type) && wanted == lower(ggml_type_name(type))) {
            return type;
        }
    }
    throw Error(PCR_ERROR_UNSUPPORTED, "there is no matrix type '" + std::string(name) + "'");
}

size_t row_bytes(ggml_type type, int64_t row_length) {
    return row_length > 0 && row_length % ggml_blck_size(type) == 0 ? ggml_row_size(type, row_length) : 0;
}

void convert_rows(ggml_type from, const void * source, ggml_type to, void * target, int64_t n_rows, int64_t row_length,
                  const float * importance, int threads) {
    const size_t from_bytes = row_bytes(from, row_length), to_bytes = row_bytes(to, row_length);
    if (from_bytes == 0 || to_bytes == 0) {
        const ggml_type wrong = from_bytes == 0 ? from : to;
        throw Error(PCR_ERROR_UNSUPPORTED, format("rows of %lld values cannot be %s: it needs a multiple of %lld",
                                                  static_cast<long long>(row_length), ggml_type_name(wrong),
                                                  static_cast<long long>(ggml_blck_size(wrong))));
    }
    if (importance && !all_within(importance, row_length, 0.0f, largest_importance)) {
        throw Error(PCR_ERROR_ARGUMENT, format("an importance is not between 0 and %g", largest_importance));
    }
    ggml_quantize_init(to);

    // Threads take blocks of about a million values until none is left.
    const int64_t        block  = std::max<int64_t>(1, (int64_t(1) << 20) / row_length);
    const int64_t        blocks = (n_rows + block - 1) / block;
    std::atomic<int64_t> next{0};
    std::atomic<bool>    failed{false};
    std::exception_ptr   failure;  // of the first that failed
    const auto           work = [&] {
        try {
            std::vector<float> floats;
            for (int64_t i = next++; i < blocks && !failed; i = next++) {
                const int64_t first = i * block, count = std::min(block, n_rows - first);
                convert_some(from, static_cast<const uint8_t *>(source) + static_cast<size_t>(first) * from_bytes, to,
                             static_cast<uint8_t *>(target) + static_cast<size_t>(first) * to_bytes, count, row_length,
                             importance, floats);
            }
        } catch (...) {
            if (!failed.exchange(true)) {
                failure = std::current_exception();
            }
        }
    };
    std::vector<std::thread> helpers;
    try {
        for (int64_t i = 1; i < std::min<int64_t>(threads, blocks); i++) {
            helpers.emplace_back(work);
        }
    } catch (const std::exception & error) {  // fewer threads than wished do the same work
        log(PCR_LOG_DEBUG, std::string("a thread cannot be started: ") + error.what());
    }
    work();
    for (std::thread & helper : helpers) {
        helper.join();
    }
    if (failure) {
        std::rethrow_exception(failure);
    }
}

}  // namespace pcr
