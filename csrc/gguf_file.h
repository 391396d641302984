// A GGUF file, mapped or read into memory: metadata by key and type, tensors by name. Everything is checked against the file's size.
#pragma once

#include "error.h"
#include "file_bytes.h"
#include "ggml-cpp.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace pcr {

class GgufFile {
public:
    GgufFile(const std::string & path, bool map);

    bool has(const char * key) const { return key_of(key) >= 0; }

    // A missing key or one of another type is an Error(PCR_ERROR_FORMAT) that names it.
    int32_t                  positive(const char * key, int32_t max) const;  // a whole number in 1..max
    int32_t                  token_id(const char * key, int32_t vocab) const;
    float                    number(const char * key) const;  // finite and > 0
    bool                     boolean(const char * key) const;
    std::string              string(const char * key, const char * otherwise = nullptr) const;
    std::vector<std::string> strings(const char * key) const;
    size_t                   n_strings(const char * key) const;

    // Every number whose key begins with the prefix and ends with ".name" must be this one, where there is any:
    // otherwise an Error(PCR_ERROR_UNSUPPORTED) that names the key and the value.
    void require(const std::string & prefix, const std::string & name, int64_t wanted) const;

    size_t n_tensors() const;

    // nullptr when the file has no tensor of that name.
    ggml_tensor * find(const char * name) const;

    // The tensor's bytes; its whole extent lies inside the file.
    const uint8_t * bytes(const ggml_tensor * tensor) const;

    // As FileBytes': large matrices of which few rows are read do not come into memory by it.
    void read(const uint8_t * bytes, size_t count, void * out) const { file.read(bytes, count, out); }
    void release(const uint8_t * bytes, size_t count) const { file.release(bytes, count); }

    // An Error(PCR_ERROR_FORMAT) where a mapped file is not what it was: see FileBytes.
    void require_unchanged() const { file.require_unchanged(); }

    size_t       size() const { return file.size; }
    const void * base() const { return file.data; }

private:
    int64_t strings_key(const char * key) const;
    int64_t key_of(const char * key) const;  // -1: none
    int64_t whole(const char * key, int64_t low, int64_t high) const;

    FileBytes        file;
    gguf_context_ptr gguf;
    ggml_context_ptr tensors;
};

}  // namespace pcr
