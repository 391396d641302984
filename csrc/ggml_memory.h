/* Memory for ggml's own structures, which it takes for granted: where the system has none, its pointers are used all the
 * same, or its checks end the process. cmake/ggml.cmake has ggml-base call these instead of malloc and free. While a thread is inside ggml it has spare memory, taken before (device/ggml_call.h): what the system refuses
 * comes from there, so that ggml finds nothing wrong, and the caller is told when ggml has returned. Large buffers for
 * tensors do not fit in there; those ggml does check.
 */
#ifndef PCR_GGML_MEMORY_H
#define PCR_GGML_MEMORY_H

#include <stddef.h>
#include <stdlib.h>

#if defined(_WIN32) && defined(GGML_SHARED)
#  if defined(GGML_BUILD)
#    define PCR_GGML_MEMORY __declspec(dllexport)
#  else
#    define PCR_GGML_MEMORY __declspec(dllimport)
#  endif
#elif defined(__GNUC__)
#  define PCR_GGML_MEMORY __attribute__((visibility("default")))
#else
#  define PCR_GGML_MEMORY
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* As the standard's. */
PCR_GGML_MEMORY void * pycrispasr_memory_malloc(size_t size);
PCR_GGML_MEMORY void * pycrispasr_memory_calloc(size_t count, size_t size);
PCR_GGML_MEMORY void * pycrispasr_memory_realloc(void * memory, size_t size);
PCR_GGML_MEMORY int    pycrispasr_memory_memalign(void ** memory, size_t alignment, size_t size);
PCR_GGML_MEMORY void   pycrispasr_memory_free(void * memory);

/* Spare memory of so many bytes, or NULL. */
PCR_GGML_MEMORY void * pycrispasr_spare_new(size_t size);
/* What was given out of it stays until it is freed. */
PCR_GGML_MEMORY void pycrispasr_spare_free(void * spare);
/* Makes it this thread's, and gives back the one before, to which the caller must return. NULL: none. */
PCR_GGML_MEMORY void * pycrispasr_spare_use(void * spare);
/* Around a fork, whose child has none of the other threads that may be taking or freeing spare memory. */
PCR_GGML_MEMORY void pycrispasr_spare_before_fork(void);
PCR_GGML_MEMORY void pycrispasr_spare_after_fork(void);
/* Nonzero where the system refused memory since it was new. */
PCR_GGML_MEMORY int pycrispasr_spare_lacked(const void * spare);

#ifdef __cplusplus
}
#endif

#endif
