// At the end of a process the C library destroys static objects while other threads may still compute: a daemon thread
// of Python's would crash inside ggml's tables. Nothing here or in ggml needs to be destroyed then, so that this library
// registers nothing: its own (hidden) __cxa_atexit, which compilers call for every static object, does nothing.
#if !defined(_MSC_VER)

extern "C" {
// NOLINTBEGIN(bugprone-reserved-identifier): the name is the point.
int __cxa_atexit(void (*destroy)(void *), void * object, void * library) noexcept;

int __cxa_atexit(void (*)(void *), void *, void *) noexcept {
    return 0;
}
// NOLINTEND(bugprone-reserved-identifier)
}

#endif
