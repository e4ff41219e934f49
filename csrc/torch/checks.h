// Argument checks of the ops, shared by the CPU and CUDA libraries. These repeat
// ardiff_kernels/ops/_shared/arguments.py, and those of an op in its header here its checks.py, in
// order and wording, so that a mistake reads the same on every backend; all throw
// std::runtime_error, which Python sees as RuntimeError.
#pragma once

#include <initializer_list>
#include <string>

#include "../math/columns.h"
#include "arg.h"

namespace ardiff {

inline bool has_shape(const Arg& a, int64_t rows, int64_t columns) {
  return a.dim == 2 && a.sizes[0] == rows && a.sizes[1] == columns;
}

/// A contiguous 1-D tensor of `rows` elements, or of `other` where that is allowed (>= 0).
inline void check_vector(const char* op, const Arg& a, ScalarType dtype, int64_t rows,
                         int64_t other = -1) {
  if (!a.given()) return;
  if (a.dim == 1 && a.dtype == dtype && (a.sizes[0] == rows || a.sizes[0] == other) &&
      a.contiguous()) {
    return;
  }
  std::string lengths = "[" + std::to_string(rows) + "]";
  if (other >= 0 && other != rows) lengths += " or [" + std::to_string(other) + "]";
  fail(op, ": ", a.name, " must be a contiguous ", name_of(dtype), " ", lengths, ", ", got(a));
}

inline void check_matrix(const char* op, const Arg& a, ScalarType dtype, int64_t rows,
                         int64_t columns) {
  if (!a.given() || (a.dtype == dtype && has_shape(a, rows, columns))) return;
  fail(op, ": ", a.name, " must be ", name_of(dtype), " ", shape_of(rows, columns), ", ", got(a));
}

/// Whether `a` has the shape [B, n, ...] of `lead`, or [B, times n, ...].
inline bool has_shape_of(const Arg& a, const Arg& lead, int64_t times = 1) {
  if (a.dim != lead.dim) return false;
  for (int64_t i = 0; i < a.dim; ++i) {
    if (a.sizes[i] != (i == 1 ? times : 1) * lead.sizes[i]) return false;
  }
  return true;
}

/// How that shape is printed.
inline std::string shape_of(const Arg& lead, int64_t times) {
  std::string s = "[";
  for (int64_t i = 0; i < lead.dim; ++i) {
    s += (i ? ", " : "") + std::to_string((i == 1 ? times : 1) * lead.sizes[i]);
  }
  return s + "]";
}

/// A tensor that has the shape of `lead`.
inline void check_rows(const char* op, const Arg& a, ScalarType dtype, const Arg& lead) {
  if (!a.given() || (a.dtype == dtype && has_shape_of(a, lead))) return;
  fail(op, ": ", a.name, " must be ", name_of(dtype), " ", shape_of(lead), ", ", got(a));
}

inline void check_dimensions(const char* op, const Arg& lead) {
  if (lead.dim >= 2) return;
  fail(op, ": ", lead.name, " must be [B, d] or [B, ...], got ", lead.dim, " dimensions");
}

inline void check_table(const char* op, const Arg& coef) {
  if (coef.dtype != ScalarType::Float || coef.dim != 2 || coef.sizes[1] != kColumns ||
      coef.sizes[0] < 1 || !coef.contiguous()) {
    fail(op, ": coef must be a contiguous float32 [T, ", kColumns, "] table with T >= 1, ",
         got(coef));
  }
}

/// One device, unit stride inside a row, and no overlapping rows where the op writes; of tensors
/// [B, ...] too where the op is `rowwise`.
inline void check_placement(const char* op, std::initializer_list<const Arg*> args,
                            std::initializer_list<const Arg*> written, bool rowwise = false) {
  const Arg& first = **args.begin();
  for (const Arg* a : args) {
    if (!a->given()) continue;
    if (a->device_type != first.device_type || a->device_index != first.device_index) {
      fail(op, ": all tensors must be on one device, but ", first.name, " is on ", device_of(first),
           " and ", a->name, " on ", device_of(*a));
    }
  }
  for (const Arg* a : args) {
    if (!a->given() || (rowwise ? a->dim < 2 : a->dim != 2)) continue;
    const int64_t rows = a->sizes[0], d = a->width();
    if (rows > 0 && !a->contiguous_rows()) {
      const char* rule =
          a->dim == 2 ? "have unit stride in its last dimension" : "be contiguous inside a row";
      fail(op, ": ", a->name, " must ", rule, ", got strides ", list_of(a->strides, a->dim),
           "; call .contiguous() first");
    }
    for (const Arg* w : written) {
      if (w == a && rows > 1 && a->strides[0] < d) {
        fail(op, ": ", a->name, " is written in place but its rows overlap (row stride ",
             a->strides[0], ", ", d, " elements per row); clone it first");
      }
    }
  }
  for (const Arg* const* w = written.begin(); w != written.end(); ++w) {
    for (const Arg* const* o = w + 1; o != written.end(); ++o) {
      if ((*w)->address() && (*w)->address() == (*o)->address()) {
        fail(op, ": ", (*w)->name, " and ", (*o)->name,
             " are written in place but share their memory; clone one");
      }
    }
  }
}

inline bool is_model_dtype(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
}

constexpr int64_t kQuads = int64_t{1} << 32;  // quads that one stream can address

}  // namespace ardiff
