// The bytes of a file.
#pragma once

#include "error.h"

#include <cstddef>
#include <cstdint>
#include <string>

namespace pcr {

struct Mapping;

// A whole file, mapped read-only, or read into memory of this process's own.
class FileBytes {
public:
    FileBytes(const std::string & path, bool map);  // UTF-8
    ~FileBytes();
    FileBytes(const FileBytes &)             = delete;
    FileBytes & operator=(const FileBytes &) = delete;

    // Copies bytes, which a mapping does not make part of this process's memory, where the system can.
    void read(const uint8_t * bytes, size_t count, void * out) const;

    // Gives back the memory that these bytes of a mapping take; they are read from the file again when needed.
    void release(const uint8_t * bytes, size_t count) const;

    // An Error(PCR_ERROR_FORMAT) where a mapped file was shortened or written to since it was opened. Where it was
    // shortened, what is read behind its end is zeros instead of the end of the process.
    void require_unchanged() const;

    const uint8_t * data = nullptr;
    size_t          size = 0;

private:
    // Holds nothing yet. Once it has ended, the destructor cleans up where the other one throws.
    FileBytes(bool map, const std::string & path);

    const std::string path;
    const bool        mapped;
#if defined(_WIN32)
    void * file    = nullptr;
    void * mapping = nullptr;
#else
    int       descriptor = -1;
    int64_t   written[2] = {};        // when the file was written to last: seconds, nanoseconds
    Mapping * mapping    = nullptr;
#endif
};

}  // namespace pcr
