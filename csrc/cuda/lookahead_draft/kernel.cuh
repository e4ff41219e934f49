// lookahead_draft on CUDA: a thread runs all rows of its unit (four neighbouring elements), one
// after the other, in registers, and writes the state and the guess of each. Nothing passes between
// threads. Bound by memory (12 bytes per element and row, with a velocity 16) and the normals.
#pragma once

#include "../lookahead/window.cuh"

namespace ardiff {

template <bool kSecond, bool kVector>
struct DraftBody {
  /// What a thread keeps from row to row.
  struct Unit {
    Four<float> x, v, x_before, before;
    UnitMemory memory;
  };

  ARDIFF_HD static void run(const DraftArgs& a, const Place& place) {
    const int64_t b = place.sample, i = kUnit * place.unit, d = a.d;
    const int n = unit_length<kVector>(d, i);
    const int64_t rows = window_rows(a, b);
    Unit u{};
    u.x = load<float, kVector>(a.x, b, i, n);
    u.memory = load_memory<kSecond, kVector>(a.memory, b, d, i, n);
    store<float, kVector>(a.states, b, i, n, u.x);
    if (a.v.data) {
      u.v = load<float, kVector>(a.v, b, i, n);
      store<float, kVector>(a.velocities, b, i, n, u.v);
    }
    const int64_t last = known_entry(a, b, int64_t{a.row[b]} - 1);
    float gain_before = 0.0f;
    if (last >= 0) {
      u.x_before = load<float, kVector>(a.known_x, b, last * d + i, n);
      u.before = load<float, kVector>(a.known_0, b, last * d + i, n);
      gain_before = a.gain[b * a.K + last];
    }
#pragma unroll 1
    for (int64_t j = 0; j < a.L; ++j) {
      Four<float> guess{};
      if (j < rows) {
        const WindowRow r = window_row(a, b, j);
        const float gain =
            r.known >= 0 ? a.gain[b * a.K + r.known] : kept_gain(r.plan, last >= 0, gain_before);
        guess = guess_of(a, r, b, i, n, gain, j > 0 || last >= 0, u);
        gain_before = gain;
        u.x_before = u.x;
        u.before = guess;
        const UnitNormals normals = unit_normals<kVector>(a, r, b, j, i, n);
        r.kinetic ? advance<UldWindow<float>>(r, guess, normals, u)
                  : advance<DiffusionWindow<float>>(r, guess, normals, u);
      }
      store<float, kVector>(a.states, b, (j + 1) * d + i, n, u.x);
      if (a.v.data) store<float, kVector>(a.velocities, b, (j + 1) * d + i, n, u.v);
      store<float, kVector>(a.drafts, b, j * d + i, n, guess);
    }
  }

  ARDIFF_HD static Four<float> guess_of(const DraftArgs& a, const WindowRow& r, int64_t b,
                                        int64_t i, int n, float gain, bool before, const Unit& u) {
    Four<float> guess;
    if (r.known >= 0) {
      const Four<float> x = load<float, kVector>(a.known_x, b, r.known * a.d + i, n);
      const Four<float> x0 = load<float, kVector>(a.known_0, b, r.known * a.d + i, n);
      for (int k = 0; k < kUnit; ++k) guess.v[k] = known_guess(u.x.v[k], x.v[k], x0.v[k], gain);
    } else if (before) {
      const PlanRow<float> plan = plan_row<float>(r.plan);
      for (int k = 0; k < kUnit; ++k) {
        guess.v[k] = fresh_guess(plan, u.x.v[k], u.x_before.v[k], u.before.v[k], gain);
      }
    } else {
      for (int k = 0; k < kUnit; ++k) guess.v[k] = gain * u.x.v[k];
    }
    for (int k = 0; k < kUnit; ++k) guess.v[k] = clamp(guess.v[k], -a.x0_limit, a.x0_limit);
    return guess;
  }

  template <class Row>
  ARDIFF_HD static void advance(const WindowRow& r, const Four<float>& guess,
                                const UnitNormals& normals, Unit& u) {
    const Row row(r.coef, plan_row<float>(r.plan), r.scale);
    for (int k = 0; k < kUnit; ++k) {
      const WindowState<float> next =
          row.template advance<kSecond>({u.x.v[k], u.v.v[k], u.memory.template at<kSecond>(k)},
                                        guess.v[k], normals.first.v[k], normals.second.v[k]);
      u.x.v[k] = next.x;
      u.v.v[k] = next.v;
      u.memory.set(k, next.memory);
    }
  }
};

}  // namespace ardiff
