// A row of a table on one element, drafted and verified: the arithmetic of lookahead_draft and
// lookahead_verify on that of the step ops (csrc/math/step.h).
#pragma once

#include "../../math/step.h"
#include "../phases.cuh"

namespace ardiff {

/// Row i of a table, of its plan, and its noise scale.
struct LookaheadRow {
  const float *c, *p;
  bool kinetic;  // of uld_step, else of diffusion_step
  float scale;

  ARDIFF_DEVICE float plan(int column) const { return p[column]; }
  /// Whether the row is kept by coupling.
  ARDIFF_DEVICE bool couples() const {
    return plan(LookaheadColumn::couples) != 0.0f && scale != 0.0f;
  }
  ARDIFF_DEVICE bool calls() const { return plan(LookaheadColumn::calls) != 0.0f; }
  ARDIFF_DEVICE bool noisy() const {
    if (scale == 0.0f) return false;
    return kinetic
               ? c[UldColumn::z_1] != 0.0f || c[UldColumn::z_2] != 0.0f || c[UldColumn::v_1] != 0.0f
               : c[DiffusionColumn::x_n] != 0.0f;
  }
};

/// Memory (of a kinetic row the anchor) and the second memory; without one, `origin` is `first`.
struct LookaheadMemory {
  float first, second;
  bool two;

  ARDIFF_DEVICE float origin() const { return two ? second : first; }
};

struct LookaheadState {
  float x, v;
};

/// p_x x + p_o out.
ARDIFF_DEVICE float row_data(const LookaheadRow& r, float x, float out) {
  return term(r.plan(LookaheadColumn::p_o), out, product(r.plan(LookaheadColumn::p_x), x));
}

/// The output that belongs to a data prediction.
ARDIFF_DEVICE float row_output(const LookaheadRow& r, float x, float x0) {
  return (x0 - product(r.plan(LookaheadColumn::p_x), x)) * r.plan(LookaheadColumn::o_0);
}

/// The state after a row whose data prediction is x0.
ARDIFF_DEVICE LookaheadState row_state(const LookaheadRow& r, LookaheadState s, float x0,
                                       const LookaheadMemory& m, float n1, float n2) {
  if (r.kinetic) {
    const UldRow<float> row = uld_row<float>(r.c, r.scale);
    const UldState<float> next =
        uld_update(row, uld_starts_stage(r.c), s.x, s.v, row_output(r, s.x, x0), m.first, n1, n2);
    return {next.z, next.v};
  }
  const DiffusionRow<float> row = diffusion_row<float>(r.c);
  return {
      diffusion_update(row, true, s.x, x0, m.first, m.origin(), row.x_n * r.scale, n1).x,
      s.v,
  };
}

/// The memory after it.
ARDIFF_DEVICE LookaheadMemory row_memory(const LookaheadRow& r, float x, float x0,
                                         const LookaheadMemory& m) {
  LookaheadMemory next = m;
  if (r.kinetic) {
    const UldRow<float> row = uld_row<float>(r.c, r.scale);
    if (uld_starts_stage(r.c)) next.first = term(row.a_z, x, product(row.a_z_lo, x));
    return next;
  }
  const DiffusionRow<float> row = diffusion_row<float>(r.c);
  if (!diffusion_keeps_memory(r.c)) {
    next.first = term(row.m_x, x, term(row.m_0, x0, product(row.m_x_lo, x)));
  }
  if (m.two && !diffusion_keeps_second_memory(r.c)) {
    next.second = second_memory(row, x, m.first, m.second);
  }
  return next;
}

/// What guess and data prediction make of the means of the state, and in units of its normals.
struct LookaheadDifference {
  float x, v;
  float first, second;  // delta
};

ARDIFF_DEVICE float over(float value, float scale) { return scale != 0.0f ? value / scale : 0.0f; }

/// m' - m, with the memory that each has: `drafted` and `kept`.
ARDIFF_DEVICE LookaheadDifference row_difference(const LookaheadRow& r, float guess, float x0,
                                                 const LookaheadMemory& drafted,
                                                 const LookaheadMemory& kept) {
  LookaheadDifference d{};
  const float apart = guess - x0;
  if (r.kinetic) {
    const UldRow<float> row = uld_row<float>(r.c, r.scale);
    const float out = apart * r.plan(LookaheadColumn::o_0);
    d.x = product(row.z_o, out);
    d.v = product(row.v_o, out);
    d.first = over(d.v, row.v_1);
    d.second = over(fma(-row.z_1, d.first, d.x), row.z_2);
  } else {
    const DiffusionRow<float> row = diffusion_row<float>(r.c);
    d.x = term(row.x_m, drafted.first - kept.first, product(row.x_0, apart));
    d.x = term(-row.x_d, drafted.origin() - kept.origin(), d.x);
    d.first = over(d.x, row.x_n * r.scale);
  }
  if (!r.couples()) d.first = d.second = 0.0f;
  return d;
}

/// x less where a row's state is expected that moves no data prediction.
ARDIFF_DEVICE float row_moved(const LookaheadRow& r, float x, float x_before, float x0_before) {
  const float y = fma(-r.plan(LookaheadColumn::r_x), x_before, x);
  return fma(-r.plan(LookaheadColumn::r_0), x0_before, y);
}

}  // namespace ardiff
