// One row of a coefficient table applied to one element (or one element per lane): the arithmetic
// of diffusion_step and uld_step. Every operation and its order are fixed, so all backends written
// in C++ agree to the bit. A term whose coefficient is zero is dropped whatever its tensor holds,
// NaN included.
#pragma once

#include "columns.h"
#include "exp.h"
#include "lane.h"

namespace ARDIFF_NS {

/// c * t, dropped when c is zero.
template <class F>
ARDIFF_HD F product(F c, F t) {
  return c * keep_if_nonzero(c, t);
}

/// acc + c * t, fused; dropped when c is zero.
template <class F>
ARDIFF_HD F term(F c, F t, F acc) {
  return fma(c, keep_if_nonzero(c, t), acc);
}

/// Classifier-free guidance: u + w (c - u).
template <class F>
ARDIFF_HD F guide(F cond, F uncond, F w) {
  return fma(w, cond - uncond, uncond);
}

/// Three-way guidance: u2 + w2 (u1 - u2) + w (c - u1).
template <class F>
ARDIFF_HD F guide(F cond, F uncond1, F uncond2, F w, F w2) {
  return fma(w, cond - uncond1, fma(w2, uncond1 - uncond2, uncond2));
}

/// A row of uld_step's table, its noise coefficients multiplied by the sample's noise scale.
template <class F>
struct UldRow {
  F z_z, z_z_lo, z_d, z_v, z_o, z_1, z_2;
  F v_z, v_d, v_v, v_o, v_1;
  F a_z, a_z_lo;
};

template <class F>
ARDIFF_HD UldRow<F> uld_row(const float* c, float noise_scale) {
  using Column = UldColumn;
  return {F(c[Column::z_z]),
          F(c[Column::z_z_lo]),
          F(c[Column::z_d]),
          F(c[Column::z_v]),
          F(c[Column::z_o]),
          F(c[Column::z_1] * noise_scale),
          F(c[Column::z_2] * noise_scale),
          F(c[Column::v_z]),
          F(c[Column::v_d]),
          F(c[Column::v_v]),
          F(c[Column::v_o]),
          F(c[Column::v_1] * noise_scale),
          F(c[Column::a_z]),
          F(c[Column::a_z_lo])};
}

/// Whether the row begins a stage: the anchor becomes the scaled old z.
ARDIFF_HD bool uld_starts_stage(const float* c) { return c[UldColumn::a_z] != 0.0f; }

template <class F>
struct UldState {
  F z, v, anchor;
};

/// What a row's coefficients of these names multiply: zero where the coefficient is zero.
template <class F>
struct UldTerms {
  F z_v, z_o, z_1, z_2;
  F v_v, v_o, v_1;
};

/// The new state. `start` is uld_starts_stage of the row.
template <class F>
ARDIFF_HD UldState<F> uld_update(const UldRow<F>& c, bool start, F z, F anchor,
                                 const UldTerms<F>& t) {
  const F d = start ? F(0.0f) : z - anchor;
  F z_new = term(c.z_d, d, product(c.z_z_lo, z));
  z_new = fma(c.z_v, t.z_v, z_new);
  z_new = fma(c.z_o, t.z_o, z_new);
  z_new = fma(c.z_1, t.z_1, z_new);
  z_new = fma(c.z_2, t.z_2, z_new);
  z_new = term(c.z_z, z, z_new);
  F v_new = term(c.v_d, d, product(c.v_z, z));
  v_new = fma(c.v_v, t.v_v, v_new);
  v_new = fma(c.v_o, t.v_o, v_new);
  v_new = fma(c.v_1, t.v_1, v_new);
  return {z_new, v_new, start ? term(c.a_z, z, product(c.a_z_lo, z)) : anchor};
}

/// The same from the tensors themselves.
template <class F>
ARDIFF_HD UldState<F> uld_update(const UldRow<F>& c, bool start, F z, F v, F out, F anchor, F n1,
                                 F n2) {
  return uld_update<F>(
      c, start, z, anchor,
      {keep_if_nonzero(c.z_v, v), keep_if_nonzero(c.z_o, out), keep_if_nonzero(c.z_1, n1),
       keep_if_nonzero(c.z_2, n2), keep_if_nonzero(c.v_v, v), keep_if_nonzero(c.v_o, out),
       keep_if_nonzero(c.v_1, n1)});
}

/// A row of diffusion_step's table.
template <class F>
struct DiffusionRow {
  F p_x, p_o;
  F x_x, x_x_lo, x_0, x_m, x_d, x_n;
  F m_x, m_x_lo, m_0;
  F lv_min, lv_max;
  F s_x, s_m, s_2;
  F x_3, t_2;
  F x_u, m_u;
};

template <class F>
ARDIFF_HD DiffusionRow<F> diffusion_row(const float* c) {
  using Column = DiffusionColumn;
  return {F(c[Column::p_x]),    F(c[Column::p_o]),    F(c[Column::x_x]), F(c[Column::x_x_lo]),
          F(c[Column::x_0]),    F(c[Column::x_m]),    F(c[Column::x_d]), F(c[Column::x_n]),
          F(c[Column::m_x]),    F(c[Column::m_x_lo]), F(c[Column::m_0]), F(c[Column::lv_min]),
          F(c[Column::lv_max]), F(c[Column::s_x]),    F(c[Column::s_m]), F(c[Column::s_2]),
          F(c[Column::x_3]),    F(c[Column::t_2]),    F(c[Column::x_u]), F(c[Column::m_u])};
}

/// Whether the row leaves the memory as it is.
ARDIFF_HD bool diffusion_keeps_memory(const float* c) {
  return c[DiffusionColumn::m_x] == 0.0f && c[DiffusionColumn::m_x_lo] == 0.0f &&
         c[DiffusionColumn::m_0] == 0.0f && c[DiffusionColumn::m_u] == 0.0f;
}

/// Whether the row leaves the second memory as it is.
ARDIFF_HD bool diffusion_keeps_second_memory(const float* c) {
  return c[DiffusionColumn::s_x] == 0.0f && c[DiffusionColumn::s_m] == 0.0f &&
         c[DiffusionColumn::s_2] == 0.0f;
}

/// Whether the row leaves the third memory as it is.
ARDIFF_HD bool diffusion_keeps_third_memory(const float* c) {
  return c[DiffusionColumn::t_2] == 0.0f;
}

/// Whether the row has a term in the unconditional data prediction.
ARDIFF_HD bool diffusion_takes_unconditional(const float* c) {
  return c[DiffusionColumn::x_u] != 0.0f || c[DiffusionColumn::m_u] != 0.0f;
}

/// Whether the row has a term in the third memory or in the unconditional data prediction. Few
/// tables have one: the others run without these terms.
ARDIFF_HD bool diffusion_has_more_terms(const float* c) {
  return c[DiffusionColumn::x_3] != 0.0f || diffusion_takes_unconditional(c);
}

/// The standard deviation from the second half r of a [B, 2d] model output; r = -1 and 1 give the
/// log-variances lv_min and lv_max.
template <class F>
ARDIFF_HD F learned_deviation(const DiffusionRow<F>& c, F r) {
  const F fraction = F(0.5f) * (r + F(1.0f));
  return exp_limited(F(0.5f) * fma(fraction, c.lv_max - c.lv_min, c.lv_min));
}

/// The data prediction p_x x + p_o out.
template <class F>
ARDIFF_HD F data_prediction(const DiffusionRow<F>& c, F x, F out) {
  return term(c.p_o, out, product(c.p_x, x));
}

template <class F>
struct DiffusionState {
  F x, memory;
};

/// The terms of rows with diffusion_has_more_terms in the new x and the new memory. Those of others
/// are -0, to which a sum is the same to the bit; where it is known that there are none (`given` is
/// false) they are not even added.
template <class F>
struct MoreTerms {
  bool given;
  F x, memory;
};

/// From the third memory (zero without one) and the (clamped) unconditional data prediction (the
/// data prediction itself without an unconditional output).
template <class F>
ARDIFF_HD MoreTerms<F> more_terms(const DiffusionRow<F>& c, F memory3, F x0u) {
  return {true, term(c.x_3, memory3, product(c.x_u, x0u)), product(c.m_u, x0u)};
}

/// The new memory where the row changes it.
template <class F>
ARDIFF_HD F first_memory(const DiffusionRow<F>& c, F x, F x0, const MoreTerms<F>& more = {}) {
  F memory_new = term(c.m_0, x0, product(c.m_x_lo, x));
  if (more.given) memory_new = memory_new + more.memory;
  return term(c.m_x, x, memory_new);
}

/// The new state from the (clamped) data prediction x0. `deviation` is x_n, or
/// learned_deviation where the model gives it, times the sample's noise scale. `keep_memory` is
/// diffusion_keeps_memory of the row; `origin` is the second memory, or the memory without one.
template <class F>
ARDIFF_HD DiffusionState<F> diffusion_update(const DiffusionRow<F>& c, bool keep_memory, F x, F x0,
                                             F memory, F origin, F deviation, F n,
                                             const MoreTerms<F>& more = {}) {
  F x_new = term(c.x_0, x0, product(c.x_x_lo, x));
  if (more.given) x_new = x_new + more.x;
  x_new = term(c.x_m, memory, x_new);
  x_new = term(c.x_d, x - origin, x_new);
  x_new = term(deviation, n, x_new);
  x_new = term(c.x_x, x, x_new);
  return {x_new, keep_memory ? memory : first_memory(c, x, x0, more)};
}

/// The new second memory, from the old state.
template <class F>
ARDIFF_HD F second_memory(const DiffusionRow<F>& c, F x, F memory, F memory2) {
  return term(c.s_x, x, term(c.s_m, memory, product(c.s_2, memory2)));
}

/// The new third memory where the row changes it, from the old second.
template <class F>
ARDIFF_HD F third_memory(const DiffusionRow<F>& c, F memory2) {
  return product(c.t_2, memory2);
}

}  // namespace ARDIFF_NS
