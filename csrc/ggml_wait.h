/* How ggml's threads wait for each other at the end of a node: included before ggml-cpu's C sources (cmake/ggml.cmake),
 * whose barrier is rewritten to call it.
 *
 * They spin for some microseconds, which is all that a node's last thread takes on a machine of its own; then they sleep. On a
 * machine with more runnable threads than cores the last one may not be running at all, and spinning would take from it the
 * core that it needs. Two threads that the system has put on one CPU do not spin at all: one of them waits for the other to
 * leave.
 */
#ifndef PCR_GGML_WAIT_H
#define PCR_GGML_WAIT_H

#include <stdatomic.h>
#include <string.h>

#if defined(_WIN32)
#  define WIN32_LEAN_AND_MEAN
#  ifndef NOMINMAX
#    define NOMINMAX
#  endif
#  include <windows.h>
/* What ggml-cpu uses of a newer SDK than MinGW's older headers know. */
#  if defined(__MINGW32__) && !defined(THREAD_POWER_THROTTLING_CURRENT_VERSION)
#    define THREAD_POWER_THROTTLING_CURRENT_VERSION 1
#    define THREAD_POWER_THROTTLING_EXECUTION_SPEED 1
typedef struct {
    ULONG Version, ControlMask, StateMask;
} THREAD_POWER_THROTTLING_STATE;
#  endif
#elif defined(__linux__)
#  include <linux/futex.h>
#  include <sched.h>
#  include <sys/syscall.h>
#  include <unistd.h>
#endif
#include <time.h>
#if defined(__x86_64__) || defined(_M_X64)
#  include <immintrin.h>
#  define PCR_PAUSE() _mm_pause()
#elif defined(__aarch64__) && (defined(__clang__) || defined(__GNUC__))
#  define PCR_PAUSE() __asm__ volatile("yield" ::: "memory")
#else
#  define PCR_PAUSE() ((void)0)
#endif

enum {
    PCR_SPINS = 2000, /* 20 to 80 microseconds */
    PCR_CPUS  = 256 /* beyond so many, two CPUs share a place below: their threads may sleep too early */
};

struct pcr_waiting {
    atomic_int sleeping; /* threads that do not look at the barrier's number */
    struct {
        _Alignas(64) atomic_int arrived; /* the number of the barrier at which a thread came last on this CPU, ... */
        atomic_int crowded; /* ... and of that at which two did */
    } cpus[PCR_CPUS];
};

static inline void pcr_start_waiting(struct pcr_waiting * waiting) {
    memset(waiting, 0x80, sizeof(*waiting)); /* far from the first barriers' numbers */
    atomic_store_explicit(&waiting->sleeping, 0, memory_order_relaxed);
}

/* The CPU of this thread, or -1 where it cannot be told at once. */
static inline int pcr_cpu(void) {
#if defined(_WIN32)
    return (int)GetCurrentProcessorNumber();
#elif defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
}

/* Whether threads on one CPU wait asleep at the moment. For 16 of 128 milliseconds they spin all the same: only while the
 * system sees both of them run will it move one to another CPU, should that have become idle. */
static inline int pcr_gives_way(void) {
#if defined(_WIN32)
    return GetTickCount64() % 128 >= 16;
#else
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (now.tv_sec * 1000 + now.tv_nsec / 1000000) % 128 >= 16;
#endif
}

/* Called by a thread that comes to the barrier number `passed`. Whether another one came on the same CPU to this or to the
 * one before: most likely it is still there. */
static inline int pcr_arrive(struct pcr_waiting * waiting, int passed) {
    const int cpu = pcr_cpu();
    if (cpu < 0) {
        return 0;
    }
    atomic_int * const arrived = &waiting->cpus[cpu % PCR_CPUS].arrived;
    atomic_int * const crowded = &waiting->cpus[cpu % PCR_CPUS].crowded;
    if (atomic_exchange_explicit(arrived, passed, memory_order_relaxed) == passed) {
        atomic_store_explicit(crowded, passed, memory_order_relaxed);
    }
    return (unsigned)passed - (unsigned)atomic_load_explicit(crowded, memory_order_relaxed) <= 1 && pcr_gives_way();
}

/* Returns once *value is no longer `old`. */
static inline void pcr_wait(atomic_int * value, int old, struct pcr_waiting * waiting, int crowded) {
    for (int i = 0; !crowded && i < PCR_SPINS; i++) {
        if (atomic_load_explicit(value, memory_order_relaxed) != old) {
            return;
        }
        PCR_PAUSE();
    }
    /* Whoever changes the value looks at `sleeping` afterwards, and whoever sleeps at the value after this. */
    atomic_fetch_add_explicit(&waiting->sleeping, 1, memory_order_seq_cst);
    while (atomic_load_explicit(value, memory_order_seq_cst) == old) {
#if defined(_WIN32)
        WaitOnAddress(value, &old, sizeof(old), INFINITE);
#elif defined(__linux__)
        syscall(SYS_futex, value, FUTEX_WAIT_PRIVATE, old, (void *)0, (void *)0, 0);
#else
        const struct timespec moment = {0, 20000};
        nanosleep(&moment, (struct timespec *)0);
#endif
    }
    atomic_fetch_sub_explicit(&waiting->sleeping, 1, memory_order_seq_cst);
}

/* Called after the value was changed. */
static inline void pcr_wake(atomic_int * value, struct pcr_waiting * waiting) {
    if (atomic_load_explicit(&waiting->sleeping, memory_order_seq_cst) == 0) {
        return;
    }
#if defined(_WIN32)
    WakeByAddressAll(value);
#elif defined(__linux__)
    syscall(SYS_futex, value, FUTEX_WAKE_PRIVATE, 0x7fffffff, (void *)0, (void *)0, 0);
#else
    (void)value;
#endif
}

#endif
