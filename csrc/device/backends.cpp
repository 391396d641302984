// A portable build's backends: libraries in the folder of this one, or in that of our package for CUDA, and never from
// elsewhere.
#include "device/devices.h"
#include "log.h"

#if defined(PCR_BACKENDS)
#  include "ggml-backend-impl.h"

#  include <filesystem>
#  include <system_error>

#  if defined(_WIN32)
#    define WIN32_LEAN_AND_MEAN
#    include <windows.h>
#  else
#    include <dlfcn.h>
#  endif
#endif

namespace pcr {

#if !defined(PCR_BACKENDS)

std::vector<BackendLibrary> load_backends() {
    return {};
}

#else

namespace {

#  if defined(_WIN32)

using Name = std::wstring;

Name own_folder() {
    HMODULE self = nullptr;
    GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT,
                       reinterpret_cast<LPCWSTR>(&load_backends), &self);
    Name path(32768, L'\0');
    path.resize(GetModuleFileNameW(self, path.data(), static_cast<DWORD>(path.size())));
    return path.substr(0, path.find_last_of(L"\\/") + 1);
}

void * open_library(const Name & path) {
    return LoadLibraryExW(path.c_str(), nullptr, LOAD_WITH_ALTERED_SEARCH_PATH);
}

void close_library(void * library) {
    FreeLibrary(static_cast<HMODULE>(library));
}

void * function_of(void * library, const char * name) {
    return reinterpret_cast<void *>(GetProcAddress(static_cast<HMODULE>(library), name));
}

std::string why_not() {
    return format("error %lu", GetLastError());
}

#  else

using Name = std::string;

Name own_folder() {
    Dl_info self;
    if (!dladdr(reinterpret_cast<const void *>(&load_backends), &self) || !self.dli_fname) {
        return "";
    }
    const Name path = self.dli_fname;
    return path.substr(0, path.find_last_of('/') + 1);
}

void * open_library(const Name & path) {
    return dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
}

void close_library(void * library) {
    dlclose(library);
}

void * function_of(void * library, const char * name) {
    return dlsym(library, name);
}

std::string why_not() {
    const char * reason = dlerror();
    return reason ? reason : "no reason given";
}

#  endif

// Why it cannot be used; "" when its devices are there from now on.
std::string start(void * library) {
    const auto init = reinterpret_cast<ggml_backend_init_t>(function_of(library, "ggml_backend_init"));
    if (!init) {
        return "it is no backend of ggml's";
    }
    ggml_backend_reg_t backend = init();
    if (!backend) {
        return "it does not start";
    }
    if (backend->api_version != GGML_BACKEND_API_VERSION) {
        return format("it was built for another version of this package (%d, not %d)", backend->api_version,
                      GGML_BACKEND_API_VERSION);
    }
    ggml_backend_register(backend);
    return "";
}

}  // namespace

std::vector<BackendLibrary> load_backends() {
    const Name                  folder   = own_folder();
    void *                      cpu      = nullptr;  // the best of them, so far
    int                         cpu_fits = 0;
    std::vector<BackendLibrary> found;
    for (const std::string file : {PCR_BACKENDS}) {
        const Name path = folder + Name(file.begin(), file.end());
        // A package of its own may be there or not.
        std::error_code unknown;
        if (file.compare(0, 3, "../") == 0 && !std::filesystem::exists(path, unknown)) {
            continue;
        }
        found.push_back({file, ""});
        void * const library = open_library(path);
        if (!library) {
            found.back().error = why_not();
            continue;
        }
        const auto score  = reinterpret_cast<ggml_backend_score_t>(function_of(library, "ggml_backend_score"));
        const int  fits   = score ? score() : 1;  // 0: not for this machine
        const bool is_cpu = file.find("pycrispasr-cpu") != std::string::npos;
        if (fits <= (is_cpu ? cpu_fits : 0)) {
            close_library(library);
        } else if (is_cpu) {
            if (cpu) {
                close_library(cpu);
            }
            cpu      = library;
            cpu_fits = fits;
        } else {
            found.back().error = start(library);
        }
    }
    if (cpu) {
        start(cpu);
    }
    for (const BackendLibrary & library : found) {
        if (!library.error.empty()) {
            log(PCR_LOG_WARNING, "'" + library.file + "' cannot be used: " + library.error);
        }
    }
    return found;
}

#endif

}  // namespace pcr
