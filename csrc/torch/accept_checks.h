// Argument checks and results of mala_accept, shared by the CPU and CUDA libraries. The checks
// repeat ardiff_kernels/_accept_checks.py in order and wording.
#pragma once

#include <tuple>

#include "checks.h"

namespace ardiff {

struct AcceptTensors {
  Arg x, y, out_x, out_y, anchor, coef, row, draw, key, stream;
  Arg v_x, v_y, out_mid, energy_x, energy_y, ball_radius, accepted, log_alpha;
};

inline void check_together(const char* op, const Arg& a, const char* first, const Arg& b,
                           const char* second) {
  if (a.given() != b.given()) {
    fail(op, ": ", first, " and ", second, " go together: pass both or neither");
  }
}

inline void check_accept(const char* op, const AcceptTensors& t, bool in_place) {
  check_dimensions(op, t.x);
  if (t.x.dtype != ScalarType::Float) {
    fail(op, ": x must be float32, got ", name_of(t.x.dtype));
  }
  const int64_t rows = t.x.sizes[0], d = t.x.width();
  if (d < 1) fail(op, ": x must have at least 1 element a row, got ", d);
  check_rows(op, t.y, ScalarType::Float, t.x);
  const ScalarType out = t.out_x.dtype;
  if (out != ScalarType::Float && out != ScalarType::Half && out != ScalarType::BFloat16) {
    fail(op, ": out_x must be float32, float16 or bfloat16, got ", name_of(out));
  }
  if (!has_shape_of(t.out_x, t.x)) {
    fail(op, ": out_x must have the shape of x ", shape_of(t.x), ", got ", shape_of(t.out_x));
  }
  check_rows(op, t.out_y, out, t.x);
  check_rows(op, t.anchor, ScalarType::Float, t.x);
  if (t.coef.dtype != ScalarType::Float || t.coef.dim != 2 || t.coef.sizes[1] != 16 ||
      t.coef.sizes[0] < 1 || !t.coef.contiguous()) {
    fail(op, ": coef must be a contiguous float32 [T, 16] table with T >= 1, ", got(t.coef));
  }
  check_vector(op, t.row, ScalarType::Int, rows, 1);
  check_vector(op, t.draw, ScalarType::Int, rows, 1);
  check_vector(op, t.key, ScalarType::Long, 1);
  check_vector(op, t.stream, ScalarType::Long, rows);
  check_together(op, t.v_x, "v_x", t.v_y, "v_y");
  check_together(op, t.energy_x, "energy_x", t.energy_y, "energy_y");
  if (t.out_mid.given() && t.energy_x.given()) {
    fail(op, ": out_mid and energies exclude each other: pass one or neither");
  }
  check_rows(op, t.v_x, ScalarType::Float, t.x);
  check_rows(op, t.v_y, ScalarType::Float, t.x);
  check_rows(op, t.out_mid, out, t.x);
  check_vector(op, t.energy_x, ScalarType::Float, rows);
  check_vector(op, t.energy_y, ScalarType::Float, rows);
  check_vector(op, t.ball_radius, ScalarType::Float, rows, 1);
  check_vector(op, t.accepted, ScalarType::Bool, rows);
  check_vector(op, t.log_alpha, ScalarType::Float, rows);
  const std::initializer_list<const Arg*> all = {
      &t.x,       &t.y,        &t.out_x,    &t.out_y,       &t.anchor,   &t.coef,
      &t.row,     &t.draw,     &t.key,      &t.stream,      &t.v_x,      &t.v_y,
      &t.out_mid, &t.energy_x, &t.energy_y, &t.ball_radius, &t.accepted, &t.log_alpha};
  if (in_place) {
    check_placement(op, all, {&t.y, &t.out_y, &t.v_y}, true);
  } else {
    check_placement(op, all, {}, true);
  }
}

/// What the functional form returns.
using AcceptResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

/// Fresh contiguous tensors for the results, on the device of x.
inline AcceptResults fresh_results(const AcceptTensors& t) {
  const Arg& x = t.x;
  const auto rows_of = [&](ScalarType dtype) { return fresh_tensor(x, dtype, x.dim, x.sizes); };
  const auto vector = [&](ScalarType dtype, int64_t n) { return fresh_tensor(x, dtype, 1, &n); };
  constexpr ScalarType f32 = ScalarType::Float;
  return {rows_of(f32),
          rows_of(t.out_x.dtype),
          t.v_x.given() ? rows_of(f32) : vector(f32, 0),
          vector(f32, t.energy_x.given() ? x.sizes[0] : 0),
          vector(ScalarType::Bool, x.sizes[0]),
          vector(f32, x.sizes[0])};
}

}  // namespace ardiff
