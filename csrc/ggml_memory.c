#if !defined(_WIN32)
#  define _POSIX_C_SOURCE 200809L
#endif
#include "ggml_memory.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#if defined(__APPLE__)
#  include <malloc/malloc.h>
#else
#  include <malloc.h>
#endif

/* glibc ends the process where it has no memory for a thread's first access to a library's variables. */
#if defined(__GLIBC__)
#  define PCR_THREAD_LOCAL static _Thread_local __attribute__((tls_model("initial-exec")))
#else
#  define PCR_THREAD_LOCAL static _Thread_local
#endif

enum { PCR_ALIGNMENT = 64 };

/* Behind it lies what is given out, once from the beginning to the end. */
typedef struct pcr_spare {
    struct pcr_spare * next; /* of those of which something is given out */
    char *             at;
    char *             end;
    int                lacked;
    int                given; /* pieces that were not freed yet */
    int                owned; /* by who made it */
} pcr_spare;

PCR_THREAD_LOCAL pcr_spare * current;

static pcr_spare * used; /* a list, under the lock */
static atomic_int  n_used;
static atomic_flag lock = ATOMIC_FLAG_INIT; /* held for some instructions, when memory is lacking */

static void take_lock(void) {
    while (atomic_flag_test_and_set_explicit(&lock, memory_order_acquire)) {
    }
}

static void leave_lock(void) {
    atomic_flag_clear_explicit(&lock, memory_order_release);
}

static void forget(pcr_spare * spare) {
    for (pcr_spare ** place = &used; *place; place = &(*place)->next) {
        if (*place == spare) {
            *place = spare->next;
            atomic_fetch_sub(&n_used, 1);
            return;
        }
    }
}

static void * from_spare(size_t size, size_t alignment) {
    pcr_spare * const spare = current;
    if (!spare) {
        return NULL;
    }
    spare->lacked          = 1;
    alignment              = alignment < PCR_ALIGNMENT ? PCR_ALIGNMENT : alignment;
    const uintptr_t at     = (uintptr_t)spare->at;
    const size_t    unused = (size_t)((alignment - at % alignment) % alignment);
    const size_t    room   = (size_t)(spare->end - spare->at);
    if (room < unused || size > room - unused) {
        return NULL;
    }
    char * const memory = spare->at + unused;
    spare->at           = memory + size;
    take_lock();
    if (spare->given++ == 0) {
        spare->next = used;
        used        = spare;
        atomic_fetch_add(&n_used, 1);
    }
    leave_lock();
    return memory;
}

void * pycrispasr_memory_malloc(size_t size) {
    void * const memory = malloc(size);
    return memory ? memory : from_spare(size, 0);
}

void * pycrispasr_memory_calloc(size_t count, size_t size) {
    void * memory = calloc(count, size);
    if (!memory && (size == 0 || count <= SIZE_MAX / size)) {
        memory = from_spare(count * size, 0);
        if (memory) {
            memset(memory, 0, count * size);
        }
    }
    return memory;
}

/* Of spare memory; NULL: none of it. */
static pcr_spare * spare_of(const void * memory) {
    pcr_spare * spare = used;
    while (spare && ((const char *)memory < (const char *)spare || (const char *)memory >= spare->end)) {
        spare = spare->next;
    }
    return spare;
}

void pycrispasr_memory_free(void * memory) {
    if (memory && atomic_load(&n_used) > 0) {
        take_lock();
        pcr_spare * const spare = spare_of(memory);
        if (spare && --spare->given == 0) {
            forget(spare);
        }
        const int is_last = spare && spare->given == 0 && !spare->owned;
        leave_lock();
        if (is_last) {
            free(spare);
        }
        if (spare) {
            return;
        }
    }
    free(memory);
}

void * pycrispasr_memory_realloc(void * memory, size_t size) {
    size_t old_size = 0;
    if (memory && atomic_load(&n_used) > 0) {
        take_lock();
        const pcr_spare * const spare = spare_of(memory);
        old_size                      = spare ? (size_t)(spare->end - (const char *)memory) : 0;
        leave_lock();
    }
    if (old_size == 0) { /* the system's */
        void * const moved = realloc(memory, size);
        if (moved || !memory) {
            return moved ? moved : from_spare(size, 0);
        }
#if defined(__APPLE__)
        old_size = malloc_size(memory);
#elif defined(_WIN32)
        old_size = _msize(memory);
#else
        old_size = malloc_usable_size(memory);
#endif
    }
    void * const moved = pycrispasr_memory_malloc(size);
    if (moved) {
        memcpy(moved, memory, old_size < size ? old_size : size);
        pycrispasr_memory_free(memory);
    }
    return moved;
}

#if !defined(_WIN32)
int pycrispasr_memory_memalign(void ** memory, size_t alignment, size_t size) {
    const int status = posix_memalign(memory, alignment, size);
    if (status == ENOMEM) {
        void * const spare = from_spare(size, alignment);
        if (spare) {
            *memory = spare;
            return 0;
        }
    }
    return status;
}
#endif

void * pycrispasr_spare_new(size_t size) {
    pcr_spare * const spare = malloc(sizeof(pcr_spare) + size);
    if (spare) {
        memset(spare, 0, sizeof(*spare));
        spare->at    = (char *)(spare + 1);
        spare->end   = spare->at + size;
        spare->owned = 1;
    }
    return spare;
}

void pycrispasr_spare_free(void * memory) {
    pcr_spare * const spare = memory;
    if (!spare || !spare->lacked) { /* nothing of it was ever given out */
        free(spare);
        return;
    }
    take_lock();
    spare->owned       = 0;
    const int is_given = spare->given > 0;
    leave_lock();
    if (!is_given) {
        free(spare);
    }
}

void pycrispasr_spare_before_fork(void) {
    take_lock();
}

void pycrispasr_spare_after_fork(void) {
    leave_lock();
}

void * pycrispasr_spare_use(void * spare) {
    void * const outer = current;
    current            = spare;
    return outer;
}

int pycrispasr_spare_lacked(const void * spare) {
    return ((const pcr_spare *)spare)->lacked;
}
