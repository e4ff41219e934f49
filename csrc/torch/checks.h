// Argument checks of the ops, shared by the CPU and CUDA libraries. These repeat
// ardiff_kernels/ops/_shared/arguments.py, and those of an op in its header here its checks.py, in
// order and wording, so that a mistake reads the same on every backend; all throw
// std::runtime_error, which Python sees as RuntimeError.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>
#include <vector>

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

/// A tensor of this shape; its strides may be any.
inline void check_block(const char* op, const Arg& a, ScalarType dtype,
                        std::initializer_list<int64_t> sizes) {
  const int64_t dim = static_cast<int64_t>(sizes.size());
  if (!a.given() ||
      (a.dtype == dtype && a.dim == dim && std::equal(sizes.begin(), sizes.end(), a.sizes))) {
    return;
  }
  fail(op, ": ", a.name, " must be ", name_of(dtype), " ", list_of(sizes.begin(), dim), ", ",
       got(a));
}

inline void check_exact(const char* op, const Arg& a, ScalarType dtype, const int64_t* sizes,
                        int64_t dim) {
  if (!a.given()) return;
  bool same = a.dtype == dtype && a.dim == dim && a.contiguous();
  for (int64_t i = 0; same && i < dim; ++i) same = a.sizes[i] == sizes[i];
  if (same) return;
  fail(op, ": ", a.name, " must be a contiguous ", name_of(dtype), " ", list_of(sizes, dim), ", ",
       got(a));
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

inline void check_x0_clamp(const char* op, const std::optional<double>& x0_clamp) {
  if (x0_clamp && !(*x0_clamp > 0))
    fail(op, ": x0_clamp must be positive, got ", python_float(*x0_clamp));
}

using ArgList = std::initializer_list<const Arg*>;

/// Where the elements of a tensor lie: `rows` intervals of bytes.
struct Span {
  int64_t begin, rows, stride, width;

  /// Of row-contiguous tensors [B, ...] exactly; of others one interval that holds them all.
  explicit Span(const Arg& a)
      : begin(reinterpret_cast<int64_t>(a.address())), rows(1), stride(1), width(0) {
    if (!begin) return;
    const int64_t size = static_cast<int64_t>(a.tensor->element_size());
    if (a.dim >= 2 && a.contiguous_rows()) {
      width = a.width() * size;
      if (a.row_stride() > 0) rows = a.sizes[0], stride = a.row_stride() * size;
      if (stride == width) width *= rows, rows = 1;
    } else {
      int64_t last = 0;
      for (int64_t i = 0; i < a.dim; ++i) last += (a.sizes[i] - 1) * a.strides[i];
      width = (last + 1) * size;
    }
  }
  int64_t end() const { return begin + (rows - 1) * stride + width; }
};

inline bool meet(const Span& a, const Span& b) {
  if (!a.begin || !b.begin || a.end() <= b.begin || b.end() <= a.begin) return false;
  if (a.rows > b.rows) return meet(b, a);
  for (int64_t i = 0; i < a.rows; ++i) {
    const int64_t at = a.begin + i * a.stride - b.begin;
    // The first row of b that ends behind the begin of this row of a.
    const int64_t k = at < b.width ? 0 : (at - b.width) / b.stride + 1;
    if (k < b.rows && k * b.stride < at + a.width) return true;
  }
  return false;
}

inline std::vector<Span> spans_of(ArgList args) {
  std::vector<Span> spans;
  spans.reserve(args.size());
  for (const Arg* a : args) spans.emplace_back(*a);
  return spans;
}

/// Whether the elements of two tensors lie in the same places, one on one.
inline bool coincide(const Arg& a, const Arg& b) {
  return a.address() == b.address() && a.dtype == b.dtype && has_shape_of(a, b) &&
         a.row_stride() == b.row_stride();
}

/// That `read` lies apart from what is written, or (of a `rowwise` op) coincides with it: each
/// element is read before it is written.
inline void check_apart(const char* op, ArgList written, const std::vector<Span>& spans,
                        const Arg& read, bool rowwise) {
  const Span place(read);
  for (size_t i = 0; i < spans.size(); ++i) {
    const Arg& w = *written.begin()[i];
    if (!meet(spans[i], place) || (rowwise && coincide(w, read))) continue;
    fail(op, ": ", w.name, " is written in place but shares its memory with ", read.name,
         "; clone one");
  }
}

/// That what is written overlaps with nothing else.
inline void check_overlaps(const char* op, ArgList args, ArgList written, bool rowwise) {
  const std::vector<Span> spans = spans_of(written);
  for (size_t i = 0; i < spans.size(); ++i) {
    for (size_t j = i + 1; j < spans.size(); ++j) {
      if (!meet(spans[i], spans[j])) continue;
      fail(op, ": ", written.begin()[i]->name, " and ", written.begin()[j]->name,
           " are written in place but share their memory; clone one");
    }
  }
  for (const Arg* a : args) {
    if (std::find(written.begin(), written.end(), a) == written.end()) {
      check_apart(op, written, spans, *a, rowwise);
    }
  }
}

/// One device, unit stride inside a row, and no overlapping rows where the op writes; of tensors
/// [B, ...] too where the op is `rowwise`.
inline void check_placement(const char* op, ArgList args, ArgList written, bool rowwise = false) {
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
  if (written.size() > 0) check_overlaps(op, args, written, rowwise);
}

inline bool is_model_dtype(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
}

constexpr int64_t kQuads = int64_t{1} << 32;  // quads that one stream can address

}  // namespace ardiff
