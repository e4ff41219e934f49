// uld_step_backward as torch calls it, on every backend: arguments and checks.
#pragma once

#include <tuple>

#include "backward.h"

namespace ardiff {

/// The arguments of uld_step_backward.
struct UldBackwardTensors {
  Arg grad_z, grad_v, grad_anchor, coef, row, guidance, guidance2, noise_scale;
};

inline void check_uld_step_backward(const UldBackwardTensors& t, ScalarType dtype, int64_t wanted) {
  const char* op = "uld_step_backward";
  const Arg& lead = lead_of(op, t.grad_z, t.grad_v, t.grad_anchor);
  if (lead.dim != 2) {
    fail(op, ": ", lead.name, " must be [B, d], got ", lead.dim, " dimensions");
  }
  const int64_t rows = lead.sizes[0], d = lead.sizes[1];
  if (d < 1 || d > 2 * kQuads) {
    fail(op, ": ", lead.name, " must have between 1 and ", 2 * kQuads, " elements per row, got ",
         d);
  }
  for (const Arg* g : {&t.grad_z, &t.grad_v, &t.grad_anchor}) {
    check_matrix(op, *g, ScalarType::Float, rows, d);
  }
  check_table(op, t.coef);
  check_vector(op, t.row, ScalarType::Int, rows, 1);
  if (!t.guidance.given() && t.guidance2.given()) {
    fail(op, ": guidance2 goes only beside guidance");
  }
  for (const Arg* v : {&t.guidance, &t.guidance2, &t.noise_scale}) {
    check_vector(op, *v, ScalarType::Float, rows, 1);
  }
  if (!is_model_dtype(dtype)) {
    fail(op, ": dtype must be float32, float16 or bfloat16, got ", name_of(dtype));
  }
  check_wanted(op, wanted, 8);
  check_placement(op,
                  {&lead, &t.grad_z, &t.grad_v, &t.grad_anchor, &t.coef, &t.row, &t.guidance,
                   &t.guidance2, &t.noise_scale},
                  {});
}

/// kRun computes the gradients of checked arguments, on the device of that index.
template <void (*kRun)(const UldBackwardArgs&, int32_t)>
struct UldStepBackward {
  using Optional = std::optional<Tensor>;
  using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

  static Gradients functional(Optional grad_z, Optional grad_v, Optional grad_anchor, Tensor coef,
                              Tensor row, Optional guidance, Optional guidance2,
                              Optional noise_scale, ScalarType dtype, int64_t wanted) {
    const UldBackwardTensors t{{"grad_z", grad_z},
                               {"grad_v", grad_v},
                               {"grad_anchor", grad_anchor},
                               {"coef", coef},
                               {"row", row},
                               {"guidance", guidance},
                               {"guidance2", guidance2},
                               {"noise_scale", noise_scale}};
    check_uld_step_backward(t, dtype, wanted);
    const Arg& lead = lead_of("uld_step_backward", t.grad_z, t.grad_v, t.grad_anchor);
    UldBackwardArgs a{};
    a.B = lead.sizes[0];
    a.d = lead.sizes[1];
    a.T = t.coef.sizes[0];
    a.coef = pointer<float>(t.coef);
    a.row = per_sample<int32_t>(t.row);
    a.guidance = per_sample<float>(t.guidance);
    a.guidance2 = per_sample<float>(t.guidance2);
    a.noise_scale = per_sample<float>(t.noise_scale);
    a.grad_z = input(t.grad_z);
    a.grad_v = input(t.grad_v);
    a.grad_anchor = input(t.grad_anchor);

    const int ways = t.guidance.given() + t.guidance2.given();
    const Results results{lead, wanted, a.B};
    constexpr ScalarType f32 = ScalarType::Float;
    Tensor z = results.make(0, f32, a.d), v = results.make(1, f32, a.d);
    Tensor out = results.make(2, dtype, a.d), anchor = results.make(3, f32, a.d);
    Tensor uncond = results.make(4, dtype, a.d, ways > 0);
    Tensor uncond2 = results.make(5, dtype, a.d, ways > 1);
    Tensor n1 = results.make(6, f32, a.d), n2 = results.make(7, f32, a.d);
    a.outputs = {ways, type_of(dtype), output(result("model_out", out)),
                 output(result("uncond_out", uncond)), output(result("uncond_out2", uncond2))};
    a.z = output(result("z", z));
    a.v = output(result("v", v));
    a.anchor = output(result("anchor", anchor));
    a.n1 = output(result("noise", n1));
    a.n2 = output(result("noise2", n2));
    kRun(a, lead.device_index);
    return {z, v, out, anchor, uncond, uncond2, n1, n2};
  }
};

}  // namespace ardiff
