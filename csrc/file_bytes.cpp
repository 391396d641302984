#include "file_bytes.h"

#include "locks.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <new>
#include <system_error>

#if defined(_WIN32)
#  define WIN32_LEAN_AND_MEAN
#  include <windows.h>
#else
#  include <fcntl.h>
#  include <signal.h>
#  include <sys/mman.h>
#  include <sys/stat.h>
#  include <unistd.h>
#endif

namespace pcr {

#if !defined(_WIN32)

// A range that is mapped, which the handler of SIGBUS looks for. They stay in their list for ever, and are used again.
struct Mapping {
    std::atomic<const uint8_t *> begin{nullptr};  // null: free
    std::atomic<size_t>          size{0};
    std::atomic<bool>            lost{false};  // pages that the file had no more
    Mapping *                    next = nullptr;
};

#endif

namespace {

[[noreturn]] void io_error(const std::string & path, int code, const char * what) {
    if (std::error_code(code, std::system_category()) == std::errc::not_enough_memory) {
        throw std::bad_alloc();
    }
    throw Error(PCR_ERROR_IO,
                "cannot " + std::string(what) + " '" + path + "': " + std::system_category().message(code));
}

[[maybe_unused]] constexpr std::align_val_t alignment{4096};  // a page, as in a mapping
constexpr size_t                            read_piece = size_t(1) << 26;

#if !defined(_WIN32)

#  if defined(__APPLE__)
#    define PCR_WRITTEN st_mtimespec
#  else
#    define PCR_WRITTEN st_mtim
#  endif

int64_t seconds_of(const struct stat & status) {
    return static_cast<int64_t>(status.PCR_WRITTEN.tv_sec);
}

int64_t nanoseconds_of(const struct stat & status) {
    return static_cast<int64_t>(status.PCR_WRITTEN.tv_nsec);
}

std::atomic<Mapping *> mappings{nullptr};
struct sigaction       before = {};  // what SIGBUS did

// A page behind the end of its file is read: it becomes zeros, and is told of later. All other faults are somebody else's.
// Calls only what a signal handler may call, and mmap, which is a system call here.
void on_bus_error(int signal, siginfo_t * info, void * context) {
    const auto * const at = static_cast<const uint8_t *>(info->si_addr);
    for (Mapping * mapping = mappings.load(); mapping; mapping = mapping->next) {
        const uint8_t * const begin = mapping->begin.load();
        if (!begin || at < begin || at >= begin + mapping->size.load()) {
            continue;
        }
        const auto   page  = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        const size_t first = static_cast<size_t>(at - begin) / page * page;
        mapping->lost      = true;
        if (mmap(const_cast<uint8_t *>(begin) + first, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                 0) != MAP_FAILED) {
            return;
        }
    }
    if (before.sa_flags & SA_SIGINFO) {
        before.sa_sigaction(signal, info, context);
    } else if (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN) {
        sigaction(signal, &before, nullptr);
        raise(signal);  // which does what it did before once this handler returns
    } else {
        before.sa_handler(signal);
    }
}

// The list under its lock; the handler is there from the first mapping on.
Mapping * remember(const uint8_t * begin, size_t size) {
    const std::lock_guard<std::mutex> lock(mappings_mutex);
    static bool                       installed = false;
    if (!installed) {
        struct sigaction action = {};
        action.sa_sigaction     = on_bus_error;
        action.sa_flags         = SA_SIGINFO | SA_ONSTACK;
        sigemptyset(&action.sa_mask);
        installed = sigaction(SIGBUS, &action, &before) == 0;
    }
    Mapping * mapping = mappings.load();
    while (mapping && mapping->begin.load()) {
        mapping = mapping->next;
    }
    if (!mapping) {
        mapping       = new Mapping;
        mapping->next = mappings.load();
        mappings      = mapping;
    }
    mapping->lost  = false;
    mapping->size  = size;
    mapping->begin = begin;
    return mapping;
}

#endif

}  // namespace

FileBytes::FileBytes(bool map, const std::string & path_) : path(path_), mapped(map) {}

#if defined(_WIN32)

FileBytes::FileBytes(const std::string & path_, bool map) : FileBytes(map, path_) {
    const int    length = MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path.c_str(), -1, nullptr, 0);
    std::wstring wide(length > 0 ? static_cast<size_t>(length) : 0, L'\0');
    if (length <= 0) {
        throw Error(PCR_ERROR_ARGUMENT, "the path '" + path + "' is not UTF-8");
    }
    MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path.c_str(), -1, wide.data(), length);
    const HANDLE handle = CreateFileW(wide.c_str(), GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_DELETE, nullptr,
                                      OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
    if (handle == INVALID_HANDLE_VALUE) {
        io_error(path, static_cast<int>(GetLastError()), "open");
    }
    file = handle;
    LARGE_INTEGER bytes;
    if (!GetFileSizeEx(handle, &bytes)) {
        io_error(path, static_cast<int>(GetLastError()), "read");
    }
    size = static_cast<size_t>(bytes.QuadPart);
    if (size == 0) {
        return;
    }
    if (mapped) {
        mapping = CreateFileMappingW(handle, nullptr, PAGE_READONLY, 0, 0, nullptr);
        if (mapping) {
            data = static_cast<const uint8_t *>(MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0));
        }
        if (!data) {
            io_error(path, static_cast<int>(GetLastError()), "map");
        }
        return;
    }
    auto * const memory = static_cast<uint8_t *>(VirtualAlloc(nullptr, size, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE));
    if (!memory) {
        throw std::bad_alloc();
    }
    data = memory;
    for (size_t at = 0; at < size;) {
        const DWORD piece = static_cast<DWORD>(std::min(size - at, read_piece));
        DWORD       got   = 0;
        if (!ReadFile(handle, memory + at, piece, &got, nullptr) || got == 0) {
            io_error(path, static_cast<int>(GetLastError()), "read");
        }
        at += got;
    }
}

FileBytes::~FileBytes() {
    if (data && mapped) {
        UnmapViewOfFile(data);
    } else if (data) {
        VirtualFree(const_cast<uint8_t *>(data), 0, MEM_RELEASE);
    }
    if (mapping) {
        CloseHandle(mapping);
    }
    if (file) {
        CloseHandle(file);
    }
}

#else

FileBytes::FileBytes(const std::string & path_, bool map) : FileBytes(map, path_) {
    // O_NONBLOCK: opening a FIFO must not wait for its writer.
    descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) {
        io_error(path, errno, "open");
    }
    struct stat status;
    if (fstat(descriptor, &status) != 0) {
        io_error(path, errno, "read");
    }
    if (!S_ISREG(status.st_mode)) {
        throw Error(PCR_ERROR_IO, "'" + path + "' is not a regular file: name a .gguf file");
    }
    size       = static_cast<size_t>(status.st_size);
    written[0] = seconds_of(status);
    written[1] = nanoseconds_of(status);
    if (size == 0) {
        return;
    }
    if (mapped) {
        void * const address = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
        if (address == MAP_FAILED) {
            io_error(path, errno, "map");
        }
        data    = static_cast<const uint8_t *>(address);
        mapping = remember(data, size);
        return;
    }
    auto * const memory = static_cast<uint8_t *>(::operator new(size, alignment));
    data                = memory;
    for (size_t at = 0; at < size;) {
        const ssize_t got = pread(descriptor, memory + at, std::min(size - at, read_piece), static_cast<off_t>(at));
        if (got == 0) {
            throw Error(PCR_ERROR_FORMAT, format("'%s' became shorter while it was read: %zu bytes instead of %zu; "
                                                 "wait until it is complete",
                                                 path.c_str(), at, size));
        }
        if (got < 0 && errno != EINTR) {
            io_error(path, errno, "read");
        }
        at += got > 0 ? static_cast<size_t>(got) : 0;
    }
}

FileBytes::~FileBytes() {
    if (mapping) {
        mapping->begin = nullptr;
    }
    if (data && mapped) {
        munmap(const_cast<uint8_t *>(data), size);
    } else if (data) {
        ::operator delete(const_cast<uint8_t *>(data), alignment);
    }
    if (descriptor >= 0) {
        close(descriptor);
    }
}

#endif

void FileBytes::require_unchanged() const {
#if !defined(_WIN32)  // where nobody can write to a file that is mapped
    if (!mapping) {
        return;
    }
    struct stat status;
    const bool  is_known = fstat(descriptor, &status) == 0;
    if (mapping->lost || (is_known && static_cast<size_t>(status.st_size) < size)) {
        throw Error(PCR_ERROR_FORMAT, "'" + path +
                                          "' was cut short while it was open: fetch it again, and open the model "
                                          "anew, with mmap=False if others write to its file");
    }
    if (is_known && (seconds_of(status) != written[0] || nanoseconds_of(status) != written[1])) {
        throw Error(PCR_ERROR_FORMAT, "'" + path +
                                          "' was written to while it was open: open the model anew, with mmap=False "
                                          "if others write to its file");
    }
#endif
}

void FileBytes::read(const uint8_t * bytes, size_t count, void * out) const {
#if !defined(_WIN32)
    if (mapped) {
        const ssize_t got = pread(descriptor, out, count, static_cast<off_t>(bytes - data));
        if (got == static_cast<ssize_t>(count)) {
            return;
        }
    }
#endif
    std::memcpy(out, bytes, count);
}

void FileBytes::release(const uint8_t * bytes, size_t count) const {
#if !defined(_WIN32)
    if (mapped) {
        const size_t page  = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        const size_t first = static_cast<size_t>(bytes - data);  // the mapping begins with a page
        const size_t begin = (first + page - 1) / page * page, end = (first + count) / page * page;
        if (begin < end) {
            madvise(const_cast<uint8_t *>(data) + begin, end - begin, MADV_DONTNEED);  // advice: a refusal costs memory
        }
    }
#else
    (void)bytes;
    (void)count;
#endif
}

}  // namespace pcr
