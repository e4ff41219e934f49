// The transposed rows of step.h: gradients of a step's inputs from those of its results, for one
// element (or one element per lane). Order and fused multiply-adds are fixed as there. A zero
// coefficient drops its term whatever the gradient holds, NaN included.
#pragma once

#include "step.h"
#include "step_args.h"

namespace ARDIFF_NS {

/// Weights of model_out, uncond_out and uncond_out2 in the guided output.
struct OutputWeights {
  float cond, uncond, uncond2;
};

/// `ways`: 0 without guidance, 1 with one unconditional output, 2 with two.
ARDIFF_HD OutputWeights output_weights(int ways, float w, float w2) {
  if (ways == 0) return {1.0f, 0.0f, 0.0f};
  if (ways == 1) return {w, 1.0f - w, 0.0f};
  return {w, w2 - w, 1.0f - w2};
}

template <class F>
struct UldGradients {
  F z, v, out, anchor, n1, n2;
};

/// Gradients from those of the new z, v and anchor. `start` is uld_starts_stage of the row.
template <class F>
ARDIFF_HD UldGradients<F> uld_transpose(const UldRow<F>& c, bool start, F g_z, F g_v, F g_anchor) {
  const F d = start ? F(0.0f) : term(c.v_d, g_v, product(c.z_d, g_z));
  F z = term(c.v_z, g_v, product(c.z_z_lo, g_z));
  z = start ? term(c.a_z, g_anchor, term(c.a_z_lo, g_anchor, z)) : z + d;
  return {term(c.z_z, g_z, z),
          term(c.v_v, g_v, product(c.z_v, g_z)),
          term(c.v_o, g_v, product(c.z_o, g_z)),
          start ? F(0.0f) : g_anchor - d,
          term(c.v_1, g_v, product(c.z_1, g_z)),
          product(c.z_2, g_z)};
}

/// Of a row and a call: what diffusion_step's gradients depend on beside the coefficients.
struct DiffusionForm {
  bool keeps_memory, keeps_second_memory, keeps_third_memory;  // of the row
  bool unconditional;  // the row has a term in the prediction of an unconditional output
  int memories;
};

ARDIFF_HD DiffusionForm diffusion_form(const float* c, const DiffusionBackwardArgs& a) {
  return {diffusion_keeps_memory(c), diffusion_keeps_second_memory(c),
          diffusion_keeps_third_memory(c),
          a.uncond_out.data != nullptr && diffusion_takes_unconditional(c), a.memories};
}

/// The gradient that reaches the data prediction, before its clamp.
template <class F>
ARDIFF_HD F data_gradient(const DiffusionRow<F>& c, F g_x, F g_memory, F g_x0) {
  return term(c.m_0, g_memory, term(c.x_0, g_x, g_x0));
}

/// The gradient that reaches the unconditional data prediction, before its clamp: that of the data
/// prediction itself where there is no unconditional output.
template <class F>
ARDIFF_HD F unconditional_gradient(const DiffusionRow<F>& c, F g_x, F g_memory) {
  return term(c.m_u, g_memory, product(c.x_u, g_x));
}

/// g where the data prediction x0 lies within the clamp, else zero.
template <class F>
ARDIFF_HD F within_clamp(F x0, F limit, F g) {
  return keep_if_zero(x0 - clamp(x0, F(0.0f) - limit, limit), g);
}

template <class F>
struct DiffusionGradients {
  F x, memory, memory2, memory3, out, uncond;
};

/// Gradients from those of the new x and memories; `g_0` and `g_u` are the gradients of the data
/// predictions, zero where their clamp holds. `uncond` is the part of the unconditional output that
/// does not come through the guided one.
template <class F>
ARDIFF_HD DiffusionGradients<F> diffusion_transpose(const DiffusionRow<F>& c,
                                                    const DiffusionForm& form, F g_x, F g_memory,
                                                    F g_memory2, F g_memory3, F g_0, F g_u) {
  F x = term(c.m_x_lo, g_memory, product(c.x_x_lo, g_x));
  if (form.memories > 1) x = term(c.s_x, g_memory2, x);
  if (form.unconditional) x = term(c.p_x, g_u, x);
  x = term(c.p_x, g_0, x);
  x = term(c.x_d, g_x, x);
  x = term(c.m_x, g_memory, x);
  x = term(c.x_x, g_x, x);
  const F origin = product(F(0.0f) - c.x_d, g_x);
  F memory = form.memories > 1 ? product(c.s_m, g_memory2) : origin;
  memory = term(c.x_m, g_x, memory);
  if (form.keeps_memory) memory = memory + g_memory;
  F memory2 = form.keeps_second_memory ? origin + g_memory2 : term(c.s_2, g_memory2, origin);
  if (form.memories > 2) memory2 = term(c.t_2, g_memory3, memory2);
  F memory3 = product(c.x_3, g_x);
  if (form.keeps_third_memory) memory3 = memory3 + g_memory3;
  return {x, memory, memory2, memory3, product(c.p_o, g_0), product(c.p_o, g_u)};
}

/// The gradient of the second half of a learned-range output; `deviation` is learned_deviation
/// times the noise scale.
template <class F>
ARDIFF_HD F range_gradient(const DiffusionRow<F>& c, F deviation, F n, F g_x) {
  return product(deviation, n) * (F(0.25f) * (c.lv_max - c.lv_min)) * g_x;
}

}  // namespace ARDIFF_NS
