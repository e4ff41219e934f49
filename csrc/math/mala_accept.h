// The Metropolis test of mala_accept: the term of one element (or one element per lane) and the
// decision. All backends written in C++ agree to the bit.
#pragma once

#include "accept_uniform.h"
#include "step.h"
#include "sums.h"

namespace ARDIFF_NS {

/// What is added to the trapezoid of the energy difference.
enum class Correction { none, simpson, energies };

/// A row of mala_accept's table, as the terms need it.
template <class F>
struct AcceptRow {
  F g_z, g_d, g_o;
  F c_g, c_d;
  F uses_gradient;  // zero when c_g and c_d are
  F c_v;            // c_v / 2
  F mid;            // 2/3 s_o
  F s_z, s_o;       // -s_z / 2, -s_o / 2
};

template <class F>
ARDIFF_HD AcceptRow<F> accept_row(const float* c) {
  using Column = MalaAcceptColumn;
  const float uses = c[Column::c_g] != 0.0f || c[Column::c_d] != 0.0f ? 1.0f : 0.0f;
  return {F(c[Column::g_z]),         F(c[Column::g_d]),
          F(c[Column::g_o]),         F(c[Column::c_g]),
          F(c[Column::c_d]),         F(uses),
          F(0.5f * c[Column::c_v]),  F(0.66666666666666667f * c[Column::s_o]),
          F(-0.5f * c[Column::s_z]), F(-0.5f * c[Column::s_o])};
}

/// An element of origin and proposal.
template <class F>
struct AcceptPair {
  F x, y, out_x, out_y;
};

/// c_g (G_x - G_y) (G_x + G_y) + c_d (y - x) (G_x + G_y); NaN where y or out_y is NaN or infinite.
template <class F>
ARDIFF_HD F accept_term(const AcceptRow<F>& c, const AcceptPair<F>& p, F anchor) {
  const F g_x = term(c.g_o, p.out_x, term(c.g_d, p.x - anchor, product(c.g_z, p.x)));
  const F g_y = term(c.g_o, p.out_y, term(c.g_d, p.y - anchor, product(c.g_z, p.y)));
  const F factor = term(c.c_g, g_x - g_y, product(c.c_d, p.y - p.x));
  const F t = keep_if_nonzero(c.uses_gradient, g_x + g_y) * factor;
  return fma(F(0.0f), p.y, fma(F(0.0f), p.out_y, t));
}

/// The same where it is finite, but not finite (NaN or infinite) where a dropped value is not. A
/// value that is not finite is never lost, since it meets a product or sum on all its ways.
template <class F>
ARDIFF_HD F accept_term_undropped(const AcceptRow<F>& c, const AcceptPair<F>& p, F anchor) {
  const F g_x = fma(c.g_o, p.out_x, fma(c.g_d, p.x - anchor, c.g_z * p.x));
  const F g_y = fma(c.g_o, p.out_y, fma(c.g_d, p.y - anchor, c.g_z * p.y));
  return (g_x + g_y) * fma(c.c_g, g_x - g_y, c.c_d * (p.y - p.x));
}

/// acc + c_v/2 (v_x - v_y) (v_x + v_y).
template <class F>
ARDIFF_HD F add_kinetic(const AcceptRow<F>& c, F v_x, F v_y, F acc) {
  return term(c.c_v, (v_x - v_y) * (v_x + v_y), acc);
}

/// acc + 2/3 s_o (y - x) (out_mid - (out_x + out_y) / 2): Simpson's rule less the trapezoid. The
/// scores' parts in z cancel.
template <class F>
ARDIFF_HD F add_simpson(const AcceptRow<F>& c, const AcceptPair<F>& p, F out_mid, F acc) {
  return term(c.mid, (p.y - p.x) * fma(F(-0.5f), p.out_x + p.out_y, out_mid), acc);
}

/// acc - (y - x) (score_x + score_y) / 2: takes the trapezoid away, for given energies.
template <class F>
ARDIFF_HD F subtract_trapezoid(const AcceptRow<F>& c, const AcceptPair<F>& p, F acc) {
  const F delta = p.y - p.x;
  acc = term(c.s_z, delta * (p.x + p.y), acc);
  return term(c.s_o, delta * (p.out_x + p.out_y), acc);
}

/// Sums over a chunk, or over chunks in T = double.
template <class T>
struct AcceptSums {
  T log_alpha, delta2, y2;
};

ARDIFF_HD void add_sums(AcceptSums<double>& total, const AcceptSums<double>& part) {
  total.log_alpha += part.log_alpha;
  total.delta2 += part.delta2;
  total.y2 += part.y2;
}

struct Decision {
  bool accepted;
  float log_alpha;
};

/// energy_x - energy_y; NaN, which rejects, where energy_y is not finite.
ARDIFF_HD double energy_drop(float energy_x, float energy_y) {
  const double y = energy_y;
  return (energy_x - y) + 0.0 * y;
}

/// The decision. `energy` is energy_drop, or 0: where it is +inf the origin has no density, and the
/// proposal is accepted. r2 and ball2 bound |y - x|^2 and |y|^2 where they are positive.
ARDIFF_HD Decision accept_decision(const AcceptSums<double>& sums, double energy, float log_u,
                                   double r2, double ball2) {
  const float log_alpha = static_cast<float>(sums.log_alpha + energy);
  const bool defined = 0.0 * sums.log_alpha == 0.0 && energy == energy;
  const bool inside = (r2 <= 0 || sums.delta2 <= r2) && (ball2 <= 0 || sums.y2 <= ball2);
  return {defined && inside && log_u < log_alpha, defined ? log_alpha : from_bits(0xff800000u)};
}

}  // namespace ARDIFF_NS
