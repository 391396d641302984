#include "gguf_file.h"

#include "device/ggml_call.h"
#include "log.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

namespace pcr {

namespace {

[[noreturn]] void broken(const std::string & path, size_t size, const std::string & why) {
    throw Error(PCR_ERROR_FORMAT, "'" + path + "' is a broken or truncated GGUF file of " + std::to_string(size) +
                                      " bytes: " + why + "; fetch it again");
}

// Walks through a header, and refuses what ggml would run into: counts and lengths beyond the file, and dimensions that
// are zero or whose product is no size. What is left is for gguf_init_from_buffer to check.
class HeaderCheck {
public:
    HeaderCheck(const std::string & path_, const uint8_t * data, size_t size)
        : path(path_), begin(data), at(data), end(data + size) {}

    // Returns the number of tensors; 0 for a layout that only ggml knows.
    uint64_t run() {
        skip(4);  // magic
        const auto version = number<uint32_t>("its version");
        if (version != 2 && version != GGUF_VERSION) {
            return 0;  // of another layout: ggml says what it reads
        }
        const auto n_tensors = number<uint64_t>("the number of tensors"), n_kv = number<uint64_t>("the number of keys");
        require_room(n_tensors, 8 + 4 + 4 + 8, "tensors");
        require_room(n_kv, 8 + 4 + 1, "keys");
        for (uint64_t i = 0; i < n_kv; i++) {
            const std::string key = text();
            skip_value(number<uint32_t>("a key's type"), key);
        }
        for (uint64_t i = 0; i < n_tensors; i++) {
            const std::string name   = text();
            const auto        n_dims = number<uint32_t>("a tensor's dimensions");
            if (n_dims > GGML_MAX_DIMS) {
                broken(format("tensor '%s' has %u dimensions, more than %d", name.c_str(), n_dims, GGML_MAX_DIMS));
            }
            uint64_t values = 1;
            for (uint32_t d = 0; d < n_dims; d++) {
                const auto ne = number<uint64_t>("a tensor's dimension");
                if (ne == 0 || ne > most_values / values) {
                    broken(format("dimension %u of tensor '%s' is %llu", d, name.c_str(),
                                  static_cast<unsigned long long>(ne)));
                }
                values *= ne;
            }
            const auto type = number<uint32_t>("a tensor's type");
            if (type >= GGML_TYPE_COUNT) {
                broken(format("tensor '%s' has type %u, which there is not", name.c_str(), type));
            }
            skip(sizeof(uint64_t));  // offset
        }
        return n_tensors;
    }

private:
    static constexpr uint64_t most_values = uint64_t(1) << 48;

    [[noreturn]] void broken(const std::string & why) const {
        pcr::broken(path, static_cast<size_t>(end - begin), why);
    }

    size_t left() const { return static_cast<size_t>(end - at); }

    void skip(uint64_t bytes) {
        if (bytes > left()) {
            broken("its header ends too early");
        }
        at += bytes;
    }

    void require_room(uint64_t count, uint64_t least_bytes, const char * what) const {
        if (count > left() / least_bytes) {
            broken(
                format("it tells of %llu %s, more than it has room for", static_cast<unsigned long long>(count), what));
        }
    }

    template <typename T> T number(const char * what) {
        T value;
        if (sizeof(T) > left()) {
            broken(format("its header ends before %s", what));
        }
        std::memcpy(&value, at, sizeof(T));
        at += sizeof(T);
        return value;
    }

    std::string text() {
        const auto length = number<uint64_t>("a name's length");
        const auto start  = at;
        skip(length);
        return {reinterpret_cast<const char *>(start), static_cast<size_t>(std::min<uint64_t>(length, 80))};
    }

    void skip_value(uint32_t type, const std::string & key) {
        if (type == GGUF_TYPE_ARRAY) {
            const auto element = number<uint32_t>("an array's type");
            const auto count   = number<uint64_t>("an array's length");
            if (element == GGUF_TYPE_STRING) {
                require_room(count, sizeof(uint64_t), ("strings in '" + key + "'").c_str());
                for (uint64_t i = 0; i < count; i++) {
                    skip(number<uint64_t>("a string's length"));
                }
            } else {
                const size_t bytes = bytes_of(element, key);
                require_room(count, bytes, ("values in '" + key + "'").c_str());
                skip(count * bytes);
            }
        } else if (type == GGUF_TYPE_STRING) {
            skip(number<uint64_t>("a string's length"));
        } else {
            skip(bytes_of(type, key));
        }
    }

    size_t bytes_of(uint32_t type, const std::string & key) const {
        switch (type) {
            case GGUF_TYPE_UINT8:
            case GGUF_TYPE_INT8:
            case GGUF_TYPE_BOOL: return 1;
            case GGUF_TYPE_UINT16:
            case GGUF_TYPE_INT16: return 2;
            case GGUF_TYPE_UINT32:
            case GGUF_TYPE_INT32:
            case GGUF_TYPE_FLOAT32: return 4;
            case GGUF_TYPE_UINT64:
            case GGUF_TYPE_INT64:
            case GGUF_TYPE_FLOAT64: return 8;
            default: broken(format("key '%s' has type %u, which there is not", key.c_str(), type));
        }
    }

    const std::string & path;
    const uint8_t *     begin;
    const uint8_t *     at;
    const uint8_t *     end;
};

}  // namespace

GgufFile::GgufFile(const std::string & path, bool map) : file(path, map) {
    if (file.size == 0) {
        throw Error(PCR_ERROR_FORMAT, "'" + path + "' is empty");
    }
    if (file.size < 24 || std::memcmp(file.data, "GGUF", 4) != 0) {
        throw Error(PCR_ERROR_FORMAT, "'" + path + "' is not a GGUF file: it does not begin with 'GGUF'" +
                                          (file.size < 24 ? " and its header" : ""));
    }
    const uint64_t   n_tensors = HeaderCheck(path, file.data, file.size).run();
    ggml_context *   context   = nullptr;
    gguf_init_params params    = {/*.no_alloc =*/true, /*.ctx =*/&context};
    CollectErrors    errors;
    call_ggml(
        [&] {
            gguf.reset(gguf_init_from_buffer(file.data, file.size, params));
            tensors.reset(context);
        },
        ggml_tensor_overhead() * (n_tensors + 16) + (size_t(1) << 16));
    if (errors.text.find("bad_alloc") != std::string::npos) {  // which ggml catches for long texts, and logs
        throw std::bad_alloc();
    }
    if (!gguf || !tensors) {
        broken(path, file.size, errors.text.empty() ? "its header cannot be read" : errors.text);
    }
    if (gguf_get_alignment(gguf.get()) % 32 != 0) {
        throw Error(PCR_ERROR_UNSUPPORTED, format("'%s' aligns its tensors to %zu bytes: a multiple of 32 is needed",
                                                  path.c_str(), gguf_get_alignment(gguf.get())));
    }
    const size_t  start = gguf_get_data_offset(gguf.get());
    const int64_t count = gguf_get_n_tensors(gguf.get());
    for (int64_t i = 0; i < count; i++) {
        const size_t offset = gguf_get_tensor_offset(gguf.get(), i);
        const size_t bytes  = gguf_get_tensor_size(gguf.get(), i);
        if (start > file.size || offset > file.size - start || bytes > file.size - start - offset) {
            throw Error(PCR_ERROR_FORMAT,
                        format("'%s' is truncated: tensor '%s' needs %zu bytes at %zu, the file ends at %zu; fetch it "
                               "again",
                               path.c_str(), gguf_get_tensor_name(gguf.get(), i), bytes, start + offset, file.size));
        }
    }
}

int64_t GgufFile::key_of(const char * key) const {
    return gguf_find_key(gguf.get(), key);
}

int64_t GgufFile::whole(const char * key, int64_t low, int64_t high) const {
    const int64_t id = key_of(key);
    if (id < 0) {
        throw Error(PCR_ERROR_FORMAT, format("the file lacks the metadata key '%s'", key));
    }
    uint64_t value    = 0;
    bool     negative = false;
    switch (gguf_get_kv_type(gguf.get(), id)) {
        case GGUF_TYPE_UINT32: value = gguf_get_val_u32(gguf.get(), id); break;
        case GGUF_TYPE_UINT64: value = gguf_get_val_u64(gguf.get(), id); break;
        case GGUF_TYPE_INT32: {
            const int32_t v = gguf_get_val_i32(gguf.get(), id);
            negative        = v < 0;
            value           = negative ? 0 : static_cast<uint64_t>(v);
            break;
        }
        default:
            throw Error(PCR_ERROR_FORMAT, format("the metadata key '%s' holds %s where a whole number is needed", key,
                                                 gguf_type_name(gguf_get_kv_type(gguf.get(), id))));
    }
    if (negative || value < static_cast<uint64_t>(low) || value > static_cast<uint64_t>(high)) {
        throw Error(PCR_ERROR_FORMAT, format("the metadata key '%s' is %s%llu, outside %lld..%lld", key,
                                             negative ? "below " : "", static_cast<unsigned long long>(value),
                                             static_cast<long long>(low), static_cast<long long>(high)));
    }
    return static_cast<int64_t>(value);
}

int32_t GgufFile::positive(const char * key, int32_t max) const {
    return static_cast<int32_t>(whole(key, 1, max));
}

int32_t GgufFile::token_id(const char * key, int32_t vocab) const {
    return static_cast<int32_t>(whole(key, 0, vocab - 1));
}

void GgufFile::require(const std::string & prefix, const std::string & name, int64_t wanted) const {
    const std::string ending = "." + name;
    for (int64_t id = 0; id < gguf_get_n_kv(gguf.get()); id++) {
        const std::string key = gguf_get_key(gguf.get(), id);
        if (key.size() < ending.size() || key.compare(0, prefix.size(), prefix) != 0 ||
            key.compare(key.size() - ending.size(), ending.size(), ending) != 0) {
            continue;
        }
        double value = 0;
        switch (gguf_get_kv_type(gguf.get(), id)) {
            case GGUF_TYPE_UINT8: value = gguf_get_val_u8(gguf.get(), id); break;
            case GGUF_TYPE_INT8: value = gguf_get_val_i8(gguf.get(), id); break;
            case GGUF_TYPE_UINT16: value = gguf_get_val_u16(gguf.get(), id); break;
            case GGUF_TYPE_INT16: value = gguf_get_val_i16(gguf.get(), id); break;
            case GGUF_TYPE_UINT32: value = gguf_get_val_u32(gguf.get(), id); break;
            case GGUF_TYPE_INT32: value = gguf_get_val_i32(gguf.get(), id); break;
            case GGUF_TYPE_UINT64: value = static_cast<double>(gguf_get_val_u64(gguf.get(), id)); break;
            case GGUF_TYPE_INT64: value = static_cast<double>(gguf_get_val_i64(gguf.get(), id)); break;
            case GGUF_TYPE_FLOAT32: value = double(gguf_get_val_f32(gguf.get(), id)); break;
            case GGUF_TYPE_FLOAT64: value = gguf_get_val_f64(gguf.get(), id); break;
            default: continue;
        }
        if (!(value == static_cast<double>(wanted))) {
            throw Error(PCR_ERROR_UNSUPPORTED, format("the metadata key '%s' is %g: this runtime computes with %lld",
                                                      key.c_str(), value, static_cast<long long>(wanted)));
        }
    }
}

float GgufFile::number(const char * key) const {
    const int64_t id = key_of(key);
    if (id < 0 || gguf_get_kv_type(gguf.get(), id) != GGUF_TYPE_FLOAT32) {
        throw Error(PCR_ERROR_FORMAT, format("the file lacks the metadata key '%s' as a 32-bit float", key));
    }
    const float value = gguf_get_val_f32(gguf.get(), id);
    if (!std::isfinite(value) || value <= 0) {
        throw Error(PCR_ERROR_FORMAT, format("the metadata key '%s' is %g: it must be above 0", key, value));
    }
    return value;
}

bool GgufFile::boolean(const char * key) const {
    const int64_t id = key_of(key);
    if (id < 0 || gguf_get_kv_type(gguf.get(), id) != GGUF_TYPE_BOOL) {
        throw Error(PCR_ERROR_FORMAT, format("the file lacks the metadata key '%s' as true or false", key));
    }
    return gguf_get_val_bool(gguf.get(), id);
}

std::string GgufFile::string(const char * key, const char * otherwise) const {
    const int64_t id = key_of(key);
    if (id >= 0 && gguf_get_kv_type(gguf.get(), id) == GGUF_TYPE_STRING) {
        return gguf_get_val_str(gguf.get(), id);
    }
    if (!otherwise) {
        throw Error(PCR_ERROR_FORMAT, format("the file lacks the metadata key '%s' as a string", key));
    }
    return otherwise;
}

int64_t GgufFile::strings_key(const char * key) const {
    const int64_t id = key_of(key);
    if (id < 0 || gguf_get_kv_type(gguf.get(), id) != GGUF_TYPE_ARRAY ||
        gguf_get_arr_type(gguf.get(), id) != GGUF_TYPE_STRING) {
        throw Error(PCR_ERROR_FORMAT, format("the file lacks the metadata key '%s' as an array of strings", key));
    }
    return id;
}

size_t GgufFile::n_strings(const char * key) const {
    return gguf_get_arr_n(gguf.get(), strings_key(key));
}

std::vector<std::string> GgufFile::strings(const char * key) const {
    const int64_t            id = strings_key(key);
    std::vector<std::string> values(gguf_get_arr_n(gguf.get(), id));
    for (size_t i = 0; i < values.size(); i++) {
        values[i] = gguf_get_arr_str(gguf.get(), id, i);
    }
    return values;
}

size_t GgufFile::n_tensors() const {
    return static_cast<size_t>(gguf_get_n_tensors(gguf.get()));
}

ggml_tensor * GgufFile::find(const char * name) const {
    return ggml_get_tensor(tensors.get(), name);
}

const uint8_t * GgufFile::bytes(const ggml_tensor * tensor) const {
    const int64_t id = gguf_find_tensor(gguf.get(), ggml_get_name(tensor));
    return file.data + gguf_get_data_offset(gguf.get()) + gguf_get_tensor_offset(gguf.get(), id);
}

}  // namespace pcr
