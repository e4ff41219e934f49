// What head_step and head_loop have in common as torch calls them, on every backend: a head's
// tensors and their checks, which repeat ardiff_kernels/ops/head_step/checks.py in order and
// wording.
#pragma once

#include <vector>

#include "../math/head.h"
#include "packed.h"

namespace ardiff {

/// The form of a head and its numbers.
struct HeadOptions {
  std::string norm, mlp;
  int64_t depth;
  double eps;
  int64_t ways;

  bool rms_norm() const { return norm == "rms"; }
  bool gated() const { return mlp == "gated"; }
};

constexpr int64_t kMostDepth = int64_t{1} << 24;  // numbers of columns then do not overflow

/// `names` holds what the Args point to.
struct HeadTensors {
  Arg x, modulation;
  std::vector<Arg> weights, scales;
  std::vector<std::string> names;

  /// Outputs of the final layer.
  int64_t outs() const { return matrix_rows(weights.rbegin()[1]); }
};

inline std::vector<Arg> list_of_args(const std::string& name, const std::vector<Tensor>& tensors,
                                     std::vector<std::string>& names) {
  std::vector<Arg> args;
  args.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    names.push_back(name + "[" + std::to_string(i) + "]");
    args.emplace_back(names.back().c_str(), tensors[i]);
  }
  return args;
}

/// The Args of a call; they refer to the tensors.
inline HeadTensors head_tensors(const Tensor& x, const Tensor& modulation,
                                const std::vector<Tensor>& weights,
                                const std::vector<Tensor>& scales) {
  HeadTensors t;
  t.names.reserve(weights.size() + scales.size());
  t.x = Arg("x", x);
  t.modulation = Arg("modulation", modulation);
  t.weights = list_of_args("weights", weights, t.names);
  t.scales = list_of_args("scales", scales, t.names);
  return t;
}

inline bool is_weight_dtype(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Char;
}

/// A contiguous matrix of dtype `one` or `other`, on a CPU packed or not; `letter` names a number
/// of rows that may be any from 1, else it is `rows`.
inline void check_weight(const char* op, const Arg& a, ScalarType one, ScalarType other,
                         const char* letter, int64_t rows, int64_t columns) {
  const bool cpu = a.device_type == aoti_torch_device_type_cpu();
  const bool matrix = (a.dim == 2 && a.contiguous()) || (cpu && is_packed(a));
  if (matrix && (a.dtype == one || a.dtype == other) &&
      (letter ? matrix_rows(a) >= 1 : matrix_rows(a) == rows) && matrix_columns(a) == columns) {
    return;
  }
  const std::string kinds =
      one == other ? name_of(one) : std::string(name_of(one)) + " or " + name_of(other);
  const std::string first = letter ? letter : std::to_string(rows);
  fail(op, ": ", a.name, " must be a contiguous ", kinds, " [", first, ", ", columns,
       "] or, on a CPU, its packed form, ", got(a));
}

inline void check_bias(const char* op, const Arg& a, int64_t rows) {
  if (a.dim == 1 && a.dtype == ScalarType::Float && a.contiguous() &&
      (a.sizes[0] == rows || a.sizes[0] == 0)) {
    return;
  }
  fail(op, ": ", a.name, " must be a contiguous float32 [", rows, "], or [0] for none, ", got(a));
}

/// Returns the width.
inline int64_t check_weights(const char* op, const HeadTensors& t, const HeadOptions& o) {
  const std::vector<Arg>& w = t.weights;
  const size_t count = static_cast<size_t>(4 * o.depth + 4);
  if (w.size() != count) {
    fail(op, ": weights must hold ", count, " tensors at depth ", o.depth,
         " (a matrix and its bias for the input, twice per block, and for the final layer), got ",
         w.size());
  }
  const ScalarType kind = w[2].dtype;
  if (!is_weight_dtype(kind)) {
    fail(op, ": weights[2] must be float32, bfloat16 or int8, got ", name_of(kind));
  }
  check_weight(op, w[0], ScalarType::Float, kind, "w", 0, t.x.sizes[1]);
  const int64_t width = matrix_rows(w[0]);
  check_bias(op, w[1], width);
  for (size_t i = 2; i + 2 < count; i += 4) {
    check_weight(op, w[i], kind, kind, "f", 0, width);
    int64_t inner = matrix_rows(w[i]);
    check_bias(op, w[i + 1], inner);
    if (o.gated()) {
      if (inner % 2) {
        fail(op, ": ", w[i].name, " must hold gate and up, an even number of rows, got ",
             shape_of(w[i]));
      }
      inner /= 2;
    }
    check_weight(op, w[i + 2], kind, kind, nullptr, width, inner);
    check_bias(op, w[i + 3], width);
  }
  check_weight(op, w[count - 2], ScalarType::Float, kind, "out", 0, width);
  check_bias(op, w[count - 1], matrix_rows(w[count - 2]));
  return width;
}

inline void check_scales(const char* op, const HeadTensors& t) {
  size_t count = 0;
  for (size_t i = 0; i < t.weights.size(); i += 2) {
    if (t.weights[i].dtype == ScalarType::Char) count = t.weights.size() / 2;
  }
  if (t.scales.size() != count) {
    fail(op, ": scales must hold ", count,
         " tensors (with int8 matrices one per matrix, else none), got ", t.scales.size());
  }
  for (size_t i = 0; i < count; ++i) {
    const Arg &matrix = t.weights[2 * i], &scale = t.scales[i];
    check_vector(op, scale, ScalarType::Float,
                 matrix.dtype == ScalarType::Char ? matrix_rows(matrix) : 0);
  }
}

inline void check_head_placement(const char* op, const HeadTensors& t) {
  check_placement(op, {&t.x, &t.modulation}, {});
  for (const std::vector<Arg>* list : {&t.weights, &t.scales}) {
    for (const Arg& a : *list) check_placement(op, {&t.x, &a}, {});
  }
}

inline void check_head_step(const char* op, const HeadTensors& t, int64_t set,
                            const HeadOptions& o) {
  const Arg &x = t.x, &m = t.modulation;
  if (x.dim != 2) fail(op, ": x must be [N, d], got ", x.dim, " dimensions");
  if (x.dtype != ScalarType::Float) fail(op, ": x must be float32, got ", name_of(x.dtype));
  if (x.sizes[1] < 1) fail(op, ": x must have at least 1 element per row, got ", shape_of(x));
  if (o.norm != "layer" && o.norm != "rms") fail(op, ": norm must be layer or rms, got ", o.norm);
  if (o.mlp != "plain" && o.mlp != "gated") fail(op, ": mlp must be plain or gated, got ", o.mlp);
  if (o.depth < 1) fail(op, ": depth must be at least 1, got ", o.depth);
  if (o.depth > kMostDepth) {
    fail(op, ": depth must be at most ", kMostDepth, ", got ", o.depth);
  }
  if (o.ways < 1 || o.ways > 3) fail(op, ": ways must be 1, 2 or 3, got ", o.ways);
  if (!(o.eps >= 0)) fail(op, ": eps must be at least 0, got ", python_float(o.eps));
  const int64_t columns = (3 * o.depth + 2) * check_weights(op, t, o);
  check_scales(op, t);
  const int64_t rows = o.ways * x.sizes[0];
  if (m.dim != 3 || (m.dtype != ScalarType::Float && m.dtype != ScalarType::BFloat16) ||
      m.sizes[0] < 1 || m.sizes[2] != columns || !m.contiguous() ||
      (m.sizes[1] != o.ways && m.sizes[1] != rows)) {
    std::string either = std::to_string(o.ways);
    if (x.sizes[0] != 1) either += " or " + std::to_string(rows);
    fail(op, ": modulation must be a contiguous float32 or bfloat16 [S, ", either, ", ", columns,
         "] with S >= 1, ", got(m));
  }
  if (set < 0 || set >= m.sizes[0]) {
    fail(op, ": set must lie in [0, ", m.sizes[0], "), got ", set);
  }
  check_head_placement(op, t);
}

}  // namespace ardiff
