// packed_linear as torch calls it: arguments, checks, which repeat
// ardiff_kernels/ops/packed_linear/checks.py in order and wording, and the result, for every
// backend.
#pragma once

#include <torch/csrc/stable/library.h>

#include "packed.h"

namespace ardiff {

struct PackedLinearTensors {
  Arg x, weight, scale, bias, norm, gate, residual;
};

/// What packed_linear is told beside its tensors.
struct PackedLinearOptions {
  int64_t rows;  // of the matrix
  double eps;
  std::string activation;

  bool swiglu() const { return activation == "swiglu"; }
  /// Columns of the result.
  int64_t outputs() const { return swiglu() ? rows / 2 : rows; }
};

constexpr int64_t kMostMatrixRows = (int64_t{1} << 31) - 16;

inline void check_packed_weight(const char* op, const Arg& a, int64_t rows, int64_t columns) {
  const int64_t word = columns_of_word(a.dtype);
  if (word == 0) {
    fail(op, ": weight must be float32, bfloat16 or int8, got ", name_of(a.dtype));
  }
  const int64_t panels = (rows + kPanelRows - 1) / kPanelRows;
  const int64_t shape[] = {panels, words_of_row(columns, a.dtype), kPanelRows, word};
  if (a.dim == 4 && std::equal(shape, shape + 4, a.sizes) && a.contiguous()) return;
  fail(op, ": weight must be a contiguous ", name_of(a.dtype), " ", list_of(shape, 4),
       ", as ardiff_kernels.pack_linear makes of a matrix ", shape_of(rows, columns), ", ", got(a));
}

/// A matrix [n, columns], or [1, columns] where it may be shared.
inline void check_result_shaped(const char* op, const Arg& a, ScalarType dtype, int64_t n,
                                int64_t columns, bool shared) {
  if (!a.given() ||
      (a.dtype == dtype && (has_shape(a, n, columns) || (shared && has_shape(a, 1, columns))))) {
    return;
  }
  std::string shapes = shape_of(n, columns);
  if (shared && n != 1) shapes += " or " + shape_of(1, columns);
  fail(op, ": ", a.name, " must be ", name_of(dtype), " ", shapes, ", ", got(a));
}

inline void check_packed_linear(const char* op, const PackedLinearTensors& t,
                                const PackedLinearOptions& o) {
  const Arg& x = t.x;
  if (x.dim != 2) fail(op, ": x must be [N, K], got ", x.dim, " dimensions");
  if (x.dtype != ScalarType::Float && x.dtype != ScalarType::BFloat16) {
    fail(op, ": x must be float32 or bfloat16, got ", name_of(x.dtype));
  }
  const int64_t n = x.sizes[0], columns = x.sizes[1];
  if (columns < 1) fail(op, ": x must have at least 1 element per row, got ", shape_of(x));
  if (o.activation != "none" && o.activation != "silu" && o.activation != "swiglu") {
    fail(op, ": activation must be none, silu or swiglu, got ", o.activation);
  }
  if (o.rows < 1 || o.rows > kMostMatrixRows) {
    fail(op, ": rows must lie in [1, ", kMostMatrixRows, "], got ", o.rows);
  }
  if (o.swiglu() && o.rows % 2) {
    fail(op, ": rows must be even with swiglu, whose matrix holds gate above up, got ", o.rows);
  }
  if (!(o.eps >= 0)) fail(op, ": eps must be at least 0, got ", python_float(o.eps));
  check_packed_weight(op, t.weight, o.rows, columns);
  const bool codes = t.weight.dtype == ScalarType::Char;
  if (codes && !t.scale.given()) fail(op, ": int8 weights need scale, a factor per row");
  if (!codes && t.scale.given()) {
    fail(op, ": scale goes with int8 weights only, got ", name_of(t.weight.dtype), " weights");
  }
  check_vector(op, t.scale, ScalarType::Float, o.rows);
  check_vector(op, t.bias, ScalarType::Float, o.rows);
  check_vector(op, t.norm, ScalarType::Float, columns);
  check_result_shaped(op, t.gate, ScalarType::Float, n, o.outputs(), true);
  check_result_shaped(op, t.residual, x.dtype, n, o.outputs(), false);
  check_placement(op, {&x, &t.weight, &t.scale, &t.bias, &t.norm, &t.gate, &t.residual}, {});
}

/// kRun evaluates the layer with checked arguments, of one row of x at least, into `out`, which is
/// contiguous [N, outputs] in the dtype of x.
template <void (*kRun)(const PackedLinearTensors&, const PackedLinearOptions&, void* out)>
struct PackedLinear {
  using Optional = std::optional<Tensor>;

  static Tensor functional(Tensor x, Tensor weight, int64_t rows, Optional scale, Optional bias,
                           Optional norm, double eps, std::string activation, Optional gate,
                           Optional residual) {
    const PackedLinearTensors t{
        {"x", x},       {"weight", weight}, {"scale", scale},       {"bias", bias},
        {"norm", norm}, {"gate", gate},     {"residual", residual},
    };
    const PackedLinearOptions options{rows, eps, activation};
    check_packed_linear("packed_linear", t, options);
    const int64_t sizes[] = {t.x.sizes[0], options.outputs()};
    Tensor out = fresh_tensor(t.x, t.x.dtype, 2, sizes);
    if (sizes[0] > 0) kRun(t, options, out.mutable_data_ptr());
    return out;
  }
};

}  // namespace ardiff
