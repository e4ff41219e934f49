// The transposed rows of step.h: gradients of a step's inputs from those of its results, for one
// element (or one element per lane). Order and fused multiply-adds are fixed as there. A zero
// coefficient drops its term whatever the gradient holds, NaN included.
#pragma once

#include "step.h"

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
  bool keeps_memory, keeps_second_memory;  // of the row
  bool second_memory;
};

/// The gradient that reaches the data prediction, before its clamp.
template <class F>
ARDIFF_HD F data_gradient(const DiffusionRow<F>& c, F g_x, F g_memory, F g_x0) {
  return term(c.m_0, g_memory, term(c.x_0, g_x, g_x0));
}

/// g where the data prediction x0 lies within the clamp, else zero.
template <class F>
ARDIFF_HD F within_clamp(F x0, F limit, F g) {
  return keep_if_zero(x0 - clamp(x0, F(0.0f) - limit, limit), g);
}

template <class F>
struct DiffusionGradients {
  F x, memory, memory2, out;
};

/// Gradients from those of the new x and memories; `g_0` is the clamped data_gradient.
template <class F>
ARDIFF_HD DiffusionGradients<F> diffusion_transpose(const DiffusionRow<F>& c,
                                                    const DiffusionForm& form, F g_x, F g_memory,
                                                    F g_memory2, F g_0) {
  F x = term(c.m_x_lo, g_memory, product(c.x_x_lo, g_x));
  if (form.second_memory) x = term(c.s_x, g_memory2, x);
  x = term(c.p_x, g_0, x);
  x = term(c.x_d, g_x, x);
  x = term(c.m_x, g_memory, x);
  x = term(c.x_x, g_x, x);
  const F origin = product(F(0.0f) - c.x_d, g_x);
  F memory = form.second_memory ? product(c.s_m, g_memory2) : origin;
  memory = term(c.x_m, g_x, memory);
  if (form.keeps_memory) memory = memory + g_memory;
  const F memory2 = form.keeps_second_memory ? origin + g_memory2 : term(c.s_2, g_memory2, origin);
  return {x, memory, memory2, product(c.p_o, g_0)};
}

/// The gradient of the second half of a learned-range output; `deviation` is learned_deviation
/// times the noise scale.
template <class F>
ARDIFF_HD F range_gradient(const DiffusionRow<F>& c, F deviation, F n, F g_x) {
  return product(deviation, n) * (F(0.25f) * (c.lv_max - c.lv_min)) * g_x;
}

}  // namespace ARDIFF_NS
