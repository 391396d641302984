// Matrices from one of ggml's types to another, on all cores.
#pragma once

#include "error.h"
#include "ggml.h"

#include <cstdint>

namespace pcr {

// Types that a matrix may have: those which every CPU build of ggml multiplies, looks rows up in and converts.
bool is_matrix_type(ggml_type type);

// The type that ggml calls so ("f32", "f16", "q4_K", any case). An Error(PCR_ERROR_UNSUPPORTED) for one that cannot be
// converted.
ggml_type type_named(const char * name);

// Bytes of a row; 0 when row_length is no multiple of the type's block.
size_t row_bytes(ggml_type type, int64_t row_length);

// from [n_rows][row_length] -> to. importance: how much each column matters, or nullptr: all the same.
void convert_rows(ggml_type from, const void * source, ggml_type to, void * target, int64_t n_rows, int64_t row_length,
                  const float * importance, int threads);

}  // namespace pcr
