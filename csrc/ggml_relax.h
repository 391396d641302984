/* Included before ggml-cpu's C sources (cmake/ggml.cmake): lets its waiting threads give way.
 *
 * At the end of every node ggml's threads spin until the last one arrives. On a machine with more runnable threads than
 * cores the last one may not be running at all, and a spinning thread holds the core that it needs until the scheduler's
 * next tick: milliseconds, at each of a graph's thousand nodes. So after some microseconds of spinning, yield.
 *
 * ggml_thread_cpu_relax is a static inline function there. As a macro with one parameter, its name expands
 * differently where it is defined, "(void)", and where it is called, "()".
 */
#ifndef PCR_GGML_RELAX_H
#define PCR_GGML_RELAX_H

#if defined(_WIN32)
#  define WIN32_LEAN_AND_MEAN
#  ifndef NOMINMAX
#    define NOMINMAX
#  endif
#  include <windows.h>
#  define PCR_YIELD() SwitchToThread()
/* What ggml-cpu uses of a newer SDK than MinGW's older headers know. */
#  if defined(__MINGW32__) && !defined(THREAD_POWER_THROTTLING_CURRENT_VERSION)
#    define THREAD_POWER_THROTTLING_CURRENT_VERSION 1
#    define THREAD_POWER_THROTTLING_EXECUTION_SPEED 1
typedef struct {
    ULONG Version, ControlMask, StateMask;
} THREAD_POWER_THROTTLING_STATE;
#  endif
#else
#  include <sched.h>
#  define PCR_YIELD() sched_yield()
#endif
#if defined(__x86_64__) || defined(_M_X64)
#  include <immintrin.h>
#  define PCR_PAUSE() _mm_pause()
#elif defined(__aarch64__) && (defined(__clang__) || defined(__GNUC__))
#  define PCR_PAUSE() __asm__ volatile("yield" ::: "memory")
#else
#  define PCR_PAUSE() ((void)0)
#endif

#if defined(_MSC_VER)
#  define PCR_THREAD_LOCAL __declspec(thread)
#else
#  define PCR_THREAD_LOCAL __thread
#endif

static inline void pcr_relax(void) {
    static PCR_THREAD_LOCAL unsigned rounds;
    PCR_PAUSE();
    if (++rounds % 64 == 0) {
        PCR_YIELD();
    }
}

#define ggml_thread_cpu_relax(argument) PCR_RELAX_##argument
#define PCR_RELAX_void ggml_thread_cpu_relax_unused(void)
#define PCR_RELAX_ pcr_relax()

#endif
