// Argument checks of the backward ops, shared by the CPU and CUDA libraries; they repeat
// ardiff_kernels/_backward_checks.py in order and wording.
#pragma once

#include "checks.h"

namespace ardiff {

inline void check_wanted(const char* op, int64_t wanted, int results) {
  const int64_t last = (int64_t{1} << results) - 1;
  if (wanted < 0 || wanted > last) {
    fail(op, ": wanted must lie in [0, ", last, "], got ", wanted);
  }
}

/// The first gradient that is given.
inline const Arg& lead_of(const char* op, const Arg& a, const Arg& b, const Arg& c) {
  if (a.given()) return a;
  if (b.given()) return b;
  if (!c.given()) fail(op, ": pass at least one of ", a.name, ", ", b.name, " and ", c.name);
  return c;
}

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
    fail(op, ": ", lead.name, " must have between 1 and ", 2 * kQuads, " elements a row, got ", d);
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
  if (dtype != ScalarType::Float && dtype != ScalarType::Half && dtype != ScalarType::BFloat16) {
    fail(op, ": dtype must be float32, float16 or bfloat16, got ", name_of(dtype));
  }
  check_wanted(op, wanted, 8);
  check_placement(op,
                  {&lead, &t.grad_z, &t.grad_v, &t.grad_anchor, &t.coef, &t.row, &t.guidance,
                   &t.guidance2, &t.noise_scale},
                  {});
}

/// Gradients of the results of diffusion_step.
struct DiffusionGradientTensors {
  Arg x, memory, x0;
};

inline void check_diffusion_step_backward(const DiffusionGradientTensors& grads, const Arg& x,
                                          const StepTensors& t,
                                          const std::optional<double>& x0_clamp, bool second_memory,
                                          int64_t wanted) {
  const char* op = "diffusion_step_backward";
  if (x.dim != 2) fail(op, ": x must be [B, d], got ", x.dim, " dimensions");
  check_step({op, true, 4, true, false, false}, x, {}, {}, t);
  check_x0_clamp(op, x0_clamp);
  lead_of(op, grads.x, grads.memory, grads.x0);
  const int64_t rows = x.sizes[0], d = x.sizes[1];
  check_matrix(op, grads.x, x.dtype, rows, d);
  check_matrix(op, grads.memory, x.dtype, rows, second_memory ? 2 * d : d);
  check_matrix(op, grads.x0, x.dtype, rows, d);
  check_wanted(op, wanted, 6);
  check_placement(op, {&x, &grads.x, &grads.memory, &grads.x0}, {});
}

}  // namespace ardiff
