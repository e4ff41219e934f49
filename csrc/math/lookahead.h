// lookahead_draft and lookahead_verify: the arithmetic of one element (or one element per lane),
// and what is decided of a row from a sample's sums (csrc/math/sums.h). All backends written in C++
// agree to the bit. A row is run by the functions of step.h, in the order of the step ops, so a
// state that is kept has the bits that diffusion_step and uld_step give.
//
// DiffusionWindow and UldWindow are the two kinds of rows, with one interface. A row's guess D or
// data prediction x0 goes in; of two normals per element a row of diffusion_step takes the first.
// Where there is no second memory its place in MemoryOf has the memory.
#pragma once

#include "accept_uniform.h"
#include "step.h"
#include "sums.h"

namespace ARDIFF_NS {

/// The smaller; NaN where a is.
ARDIFF_HD float at_most(float a, float bound) { return a > bound ? bound : a; }

/// Both memories of an element; the same one twice where there is no second.
template <class F>
struct MemoryOf {
  F first, second;
};

template <class F>
struct WindowState {
  F x, v;
  MemoryOf<F> memory;
};

/// The plan's part of a row.
template <class F>
struct PlanRow {
  F p_x, p_o, o_0, r_x, r_0, unit;
};

template <class F>
ARDIFF_HD PlanRow<F> plan_row(const float* p) {
  using Column = LookaheadColumn;
  return {F(p[Column::p_x]), F(p[Column::p_o]), F(p[Column::o_0]),
          F(p[Column::r_x]), F(p[Column::r_0]), F(p[Column::unit])};
}

/// The guess of a row that is known: X0 + G (x - X).
template <class F>
ARDIFF_HD F known_guess(F x, F known_x, F known_0, F gain) {
  return fma(gain, x - known_x, known_0);
}

/// x - r_x x_ - r_0 D_, of the state and data prediction of the row before.
template <class F>
ARDIFF_HD F beside_the_mean(const PlanRow<F>& p, F x, F x_before, F before) {
  return fma(F(0.0f) - p.r_0, before, fma(F(0.0f) - p.r_x, x_before, x));
}

/// The guess of a row that is not known: D_ + G (x - r_x x_ - r_0 D_).
template <class F>
ARDIFF_HD F fresh_guess(const PlanRow<F>& p, F x, F x_before, F before, F gain) {
  return fma(gain, beside_the_mean(p, x, x_before, before), before);
}

/// The data prediction of the model's output, not clamped.
template <class F>
ARDIFF_HD F predicted(const PlanRow<F>& p, F x, F out) {
  return term(p.p_o, out, product(p.p_x, x));
}

/// 1 / scale, or 0 where that is 0.
ARDIFF_HD float inverse(float scale) { return scale != 0.0f ? 1.0f / scale : 0.0f; }

/// m' - m of position and velocity, and delta of the two normals.
template <class F>
struct Difference {
  F x, v, one, two;
};

/// A row of diffusion_step.
template <class F>
struct DiffusionWindow {
  static constexpr bool kKinetic = false;
  DiffusionRow<F> c;
  F deviation, over;
  bool keep, keep_second;

  ARDIFF_HD DiffusionWindow(const float* coef, const PlanRow<F>&, float scale)
      : c(diffusion_row<F>(coef)),
        deviation(coef[DiffusionColumn::x_n] * scale),
        over(inverse(coef[DiffusionColumn::x_n] * scale)),
        keep(diffusion_keeps_memory(coef)),
        keep_second(diffusion_keeps_second_memory(coef)) {}

  /// Whether the normals enter.
  ARDIFF_HD static bool noisy(const float* coef, float scale) {
    return coef[DiffusionColumn::x_n] * scale != 0.0f;
  }
  /// Whether the memory, or the second, changes.
  ARDIFF_HD static bool moves_memory(const float* coef) {
    return !diffusion_keeps_memory(coef) || !diffusion_keeps_second_memory(coef);
  }

  /// The memory after the row, from the state before it.
  template <bool kSecond>
  ARDIFF_HD MemoryOf<F> remember(F x, F x0, MemoryOf<F> m) const {
    const F first = keep ? m.first : first_memory(c, x, x0);
    if constexpr (!kSecond) return {first, first};
    return {first, keep_second ? m.second : second_memory(c, x, m.first, m.second)};
  }

  /// The output that stands for a data prediction; not used.
  ARDIFF_HD F output(F, F x0) const { return x0; }

  template <bool kSecond>
  ARDIFF_HD WindowState<F> advance(const WindowState<F>& s, F x0, F n1, F) const {
    const DiffusionState<F> next =
        diffusion_update(c, true, s.x, x0, s.memory.first, s.memory.second, deviation, n1);
    return {next.x, s.v, remember<kSecond>(s.x, x0, s.memory)};
  }
  /// The same of the model's output, of which the row takes the data prediction alone.
  template <bool kSecond>
  ARDIFF_HD WindowState<F> advance_by(const WindowState<F>& s, F x0, F, F n1, F n2) const {
    return advance<kSecond>(s, x0, n1, n2);
  }

  /// `apart` is the guess less the data prediction.
  ARDIFF_HD Difference<F> difference(F apart, const MemoryOf<F>& drafted,
                                     const MemoryOf<F>& memory) const {
    F dx = term(c.x_m, drafted.first - memory.first, product(c.x_0, apart));
    dx = term(c.x_d, memory.second - drafted.second, dx);
    return {dx, F(0.0f), product(over, dx), F(0.0f)};
  }
};

/// A row of uld_step, whose output is (D - p_x z) o_0, or the model's own.
template <class F>
struct UldWindow {
  static constexpr bool kKinetic = true;
  UldRow<F> c;
  F p_x, o_0, over_v, over_z;
  bool start;

  ARDIFF_HD UldWindow(const float* coef, const PlanRow<F>& p, float scale)
      : c(uld_row<F>(coef, scale)),
        p_x(p.p_x),
        o_0(p.o_0),
        over_v(inverse(coef[UldColumn::v_1] * scale)),
        over_z(inverse(coef[UldColumn::z_2] * scale)),
        start(uld_starts_stage(coef)) {}

  ARDIFF_HD static bool noisy(const float* coef, float scale) {
    return coef[UldColumn::z_1] * scale != 0.0f || coef[UldColumn::z_2] * scale != 0.0f ||
           coef[UldColumn::v_1] * scale != 0.0f;
  }
  ARDIFF_HD static bool moves_memory(const float* coef) { return uld_starts_stage(coef); }

  template <bool kSecond>
  ARDIFF_HD MemoryOf<F> remember(F x, F, MemoryOf<F> m) const {
    const F first = start ? term(c.a_z, x, product(c.a_z_lo, x)) : m.first;
    return {first, kSecond ? m.second : first};
  }

  ARDIFF_HD F output(F x, F x0) const { return (x0 - product(p_x, x)) * o_0; }

  template <bool kSecond>
  ARDIFF_HD WindowState<F> advance(const WindowState<F>& s, F x0, F n1, F n2) const {
    return advance_by<kSecond>(s, x0, output(s.x, x0), n1, n2);
  }
  template <bool kSecond>
  ARDIFF_HD WindowState<F> advance_by(const WindowState<F>& s, F, F out, F n1, F n2) const {
    const UldState<F> next = uld_update(c, start, s.x, s.v, out, s.memory.first, n1, n2);
    return {next.z, next.v, {next.anchor, kSecond ? s.memory.second : next.anchor}};
  }

  ARDIFF_HD Difference<F> difference(F apart, const MemoryOf<F>&, const MemoryOf<F>&) const {
    const F out = apart * o_0;
    const F dz = product(c.z_o, out), dv = product(c.v_o, out);
    const F one = product(over_v, dv);
    return {dz, dv, one, product(over_z, dz - c.z_1 * one)};
  }
};

/// What tells whether a row holds: the coupling, the drafted state being the one that the row gives
/// with the model's output, or a residual.
enum class Rule { law, equal, within };

/// Of a row whose plan couples (or not), in a call with a tolerance (or not).
ARDIFF_HD Rule rule_of(bool couples, bool by_tolerance, double bound) {
  if (by_tolerance) return bound > 0.0 ? Rule::within : Rule::equal;
  return couples ? Rule::law : Rule::equal;
}

/// Adds an element to the two sums of a row's decision. law: |delta|^2 and Z.delta; within: the
/// squared residual.
template <Rule kRule, class F>
ARDIFF_HD void add_decision(const PlanRow<F>& p, const Difference<F>& apart, F n1, F n2, F& first,
                            F& second) {
  if constexpr (kRule == Rule::law) {
    first = fma(apart.two, apart.two, fma(apart.one, apart.one, first));
    second = fma(n2, apart.two, fma(n1, apart.one, second));
  } else {
    static_assert(kRule == Rule::within);
    const F r = p.unit * apart.x;
    first = fma(r, r, first);
  }
}

/// Adds an element to the first sum where Rule::equal decides: how many differ of the state that
/// the row gives and the drafted one, x and v.
template <class F>
ARDIFF_HD void add_unequal(const WindowState<F>& given, F x, F v, F& first) {
  const F other = select_zero(bits(given.v - v) << 1, F(0.0f), F(1.0f));
  first = first + select_zero(bits(given.x - x) << 1, other, F(1.0f));
}

/// Sums of a row over a sample's elements: of its decision, and |dx|^2 and dx.d0 of the gain.
struct RowSums {
  double first, second, square, product;
};

ARDIFF_HD void add_sums(RowSums& total, const RowSums& part) {
  total.first += part.first;
  total.second += part.second;
  total.square += part.square;
  total.product += part.product;
}

/// Whether a row holds, and the factor of delta by which its normals are reflected if it does not.
struct RowDecision {
  bool holds;
  float factor;
};

/// `log_u` is log_accept_uniform at the row's draw; used by the law alone.
ARDIFF_HD RowDecision decide_row(Rule rule, const RowSums& sums, float log_u, double bound) {
  if (rule == Rule::equal) return {sums.first == 0.0, 0.0f};
  if (rule == Rule::within) return {sums.first <= bound, 0.0f};
  const float log_ratio = static_cast<float>(-sums.second - 0.5 * sums.first);
  const bool turns = sums.first > 0.0 && 0.0 * sums.first == 0.0;
  return {log_u <= log_ratio, turns ? static_cast<float>(-2.0 * sums.second / sums.first) : 0.0f};
}

/// The gain of a row that has not been evaluated, from the row before where one has been.
ARDIFF_HD float kept_gain(const float* plan, bool before, float gain_before) {
  using Column = LookaheadColumn;
  return before ? at_most(gain_before * plan[Column::g_s], plan[Column::g_max]) : plan[Column::g_0];
}

/// The gain of an evaluated row; `measured` where another state of it, or the row before, was.
ARDIFF_HD float measured_gain(const float* plan, const RowSums& sums, bool measured, float kept) {
  const float gain = static_cast<float>(sums.product / sums.square);
  if (!measured || !(0.0f * gain == 0.0f)) return kept;
  return at_most(gain > 0.0f ? gain : 0.0f, plan[LookaheadColumn::g_max]);
}

}  // namespace ARDIFF_NS
