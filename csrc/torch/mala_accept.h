// mala_accept as torch calls it, on every backend: arguments, checks, both forms. The checks repeat
// ardiff_kernels/ops/mala_accept/checks.py in order and wording.
#pragma once

#include <tuple>

#include "../math/step_args.h"
#include "checks.h"
#include "operands.h"

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
  if (d < 1) fail(op, ": x must have at least 1 element per row, got ", d);
  check_rows(op, t.y, ScalarType::Float, t.x);
  const ScalarType out = t.out_x.dtype;
  if (!is_model_dtype(out)) {
    fail(op, ": out_x must be float32, float16 or bfloat16, got ", name_of(out));
  }
  if (!has_shape_of(t.out_x, t.x)) {
    fail(op, ": out_x must have the shape of x ", shape_of(t.x), ", got ", shape_of(t.out_x));
  }
  check_rows(op, t.out_y, out, t.x);
  check_rows(op, t.anchor, ScalarType::Float, t.x);
  check_table(op, t.coef);
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
    check_placement(op, all, {&t.y, &t.out_y, &t.v_y, &t.energy_y, &t.accepted, &t.log_alpha},
                    true);
  } else {
    check_placement(op, all, {}, true);
  }
}

/// The parameters of both forms, and what AcceptTensors takes of them.
#define ARDIFF_ACCEPT_PARAMETERS                                                            \
  Tensor x, Tensor y, Tensor out_x, Tensor out_y, Tensor anchor, Tensor coef, Tensor row,   \
      Tensor draw, Tensor key, Tensor stream, Optional v_x, Optional v_y, Optional out_mid, \
      Optional energy_x, Optional energy_y, Optional ball_radius
#define ARDIFF_ACCEPT_ARGUMENTS                                                              \
  Arg("x", x), Arg("y", y), Arg("out_x", out_x), Arg("out_y", out_y), Arg("anchor", anchor), \
      Arg("coef", coef), Arg("row", row), Arg("draw", draw), Arg("key", key),                \
      Arg("stream", stream), Arg("v_x", v_x), Arg("v_y", v_y), Arg("out_mid", out_mid),      \
      Arg("energy_x", energy_x), Arg("energy_y", energy_y), Arg("ball_radius", ball_radius)

/// kRun decides and selects for checked arguments, on the device of that index.
template <void (*kRun)(const AcceptArgs&, int32_t)>
struct MalaAccept {
  using Optional = std::optional<Tensor>;
  using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

  static Results functional(ARDIFF_ACCEPT_PARAMETERS) {
    AcceptTensors t{ARDIFF_ACCEPT_ARGUMENTS, {}, {}};
    check_accept("mala_accept", t, false);
    const int64_t rows = t.x.sizes[0], none = 0;
    constexpr ScalarType f32 = ScalarType::Float;
    Tensor x_new = fresh(t.x, f32), out_new = fresh(t.x, t.out_x.dtype);
    Tensor v_new = t.v_x.given() ? fresh(t.x, f32) : no_result(t.x, f32);
    Tensor energy_new = fresh_tensor(t.x, f32, 1, t.energy_x.given() ? &rows : &none);
    Tensor accepted = fresh_tensor(t.x, ScalarType::Bool, 1, &rows);
    Tensor log_alpha = fresh_tensor(t.x, f32, 1, &rows);
    t.accepted = {"accepted", accepted};
    t.log_alpha = {"log_alpha", log_alpha};
    run(t, {"x", x_new}, {"out", out_new}, {"v", v_new}, {"energy", energy_new});
    return {x_new, out_new, v_new, energy_new, accepted, log_alpha};
  }

  static void in_place(ARDIFF_ACCEPT_PARAMETERS, Tensor accepted, Tensor log_alpha) {
    const AcceptTensors t{
        ARDIFF_ACCEPT_ARGUMENTS, {"accepted", accepted}, {"log_alpha", log_alpha}};
    check_accept("mala_accept_", t, true);
    run(t, t.y, t.out_y, t.v_y, t.energy_y);
  }

 private:
  /// The results go to x_new and so on, in the in-place form y and what belongs to it.
  static void run(const AcceptTensors& t, const Arg& x_new, const Arg& out_new, const Arg& v_new,
                  const Arg& energy_new) {
    AcceptArgs a{};
    a.B = t.x.sizes[0];
    a.d = t.x.width();
    a.T = t.coef.sizes[0];
    a.coef = pointer<float>(t.coef);
    a.row = per_sample<int32_t>(t.row);
    a.address.key = pointer<int64_t>(t.key);
    a.address.stream = pointer<int64_t>(t.stream);
    a.address.draw = per_sample<int32_t>(t.draw);
    a.x = input(t.x);
    a.y = input(t.y);
    a.out_x = input(t.out_x);
    a.out_y = input(t.out_y);
    a.anchor = input(t.anchor);
    a.v_x = input(t.v_x);
    a.v_y = input(t.v_y);
    a.out_mid = input(t.out_mid);
    a.energy_x = pointer<float>(t.energy_x);
    a.energy_y = pointer<float>(t.energy_y);
    a.ball_radius = per_sample<float>(t.ball_radius);
    a.x_new = output(x_new);
    a.out_new = output(out_new);
    if (t.v_y.given()) a.v_new = output(v_new);
    if (t.energy_y.given()) a.energy_new = target<float>(energy_new);
    a.accepted = target<bool>(t.accepted);
    a.log_alpha = target<float>(t.log_alpha);
    kRun(a, t.x.device_index);
  }
};

#undef ARDIFF_ACCEPT_PARAMETERS
#undef ARDIFF_ACCEPT_ARGUMENTS

}  // namespace ardiff
