// The one exception of this library. api.cpp turns it into a status and a message.
#pragma once

#include "pycrispasr.h"

#include <stdexcept>
#include <string>

namespace pcr {

class Error : public std::runtime_error {
public:
    Error(pcr_status status_, const std::string & message) : std::runtime_error(message), status(status_) {}

    pcr_status status;
};

// printf into a std::string.
#if defined(__MINGW32__)
__attribute__((format(gnu_printf, 1, 2)))
#elif defined(__GNUC__)
__attribute__((format(printf, 1, 2)))
#endif
std::string format(const char * pattern, ...);

}  // namespace pcr
