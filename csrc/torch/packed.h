// The packed form of a matrix as torch holds it; repeats
// ardiff_kernels/ops/packed_linear/packing.py.
#pragma once

#include "checks.h"

namespace ardiff {

constexpr int64_t kPanelRows = 16;

/// Columns to a word of 4 bytes; 0 for what is no weight.
inline int64_t columns_of_word(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return 1;
    case ScalarType::BFloat16:
      return 2;
    case ScalarType::Char:
      return 4;
    default:
      return 0;
  }
}

/// Words of a packed row: whole steps of eight (float32) or sixteen (the others).
inline int64_t words_of_row(int64_t columns, ScalarType dtype) {
  const int64_t words = dtype == ScalarType::Float ? 8 : 16, step = words * columns_of_word(dtype);
  return (columns + step - 1) / step * words;
}

/// Whether this is the packed form of a matrix of whole panels and whole steps of columns.
inline bool is_packed(const Arg& a) {
  const int64_t word = columns_of_word(a.dtype);
  return a.dim == 4 && word > 0 && a.sizes[2] == kPanelRows && a.sizes[3] == word &&
         a.sizes[1] == words_of_row(a.sizes[1] * word, a.dtype) && a.contiguous();
}

/// Rows and columns of a matrix, packed or not.
inline int64_t matrix_rows(const Arg& a) {
  return a.dim == 4 ? a.sizes[0] * kPanelRows : a.sizes[0];
}
inline int64_t matrix_columns(const Arg& a) {
  return a.dim == 4 ? a.sizes[1] * a.sizes[3] : a.sizes[1];
}

}  // namespace ardiff
