// What the step kernels share: their arguments, table rows, and guided model outputs.
#pragma once

#include "../common/step.h"
#include "unit.cuh"

namespace ardiff {

struct StepArgs {
  Layout layout;
  int64_t d, T;
  const float* coef;
  PerSample<int32_t> row, draw;
  const int64_t* key;
  const int64_t* stream;
  In model_out, uncond_out, uncond_out2;
  PerSample<float> guidance, guidance2, noise_scale;
  In noise, noise2;
  Out z_model;
};

/// The sample's table row, or -1 when it is finished.
ARDIFF_HD int64_t row_of(const StepArgs& a, int64_t b) {
  const int32_t row = at(a.row, b);
  return row >= 0 && row < a.T ? row : -1;
}

template <bool kVector>
ARDIFF_HD void load_coefficients(const StepArgs& a, int64_t row, float (&c)[kColumns]) {
  const In table{a.coef, kColumns};
  for (int i = 0; i < kColumns; i += kUnit) {
    const Four<float> part = load<float, kVector>(table, row, i, kUnit);
    for (int k = 0; k < kUnit; ++k) c[i + k] = part.v[k];
  }
}

ARDIFF_HD float scale_of(const StepArgs& a, int64_t b) {
  return a.noise_scale.data ? at(a.noise_scale, b) : 1.0f;
}

ARDIFF_HD NoiseAddress step_noise(const StepArgs& a, int64_t b) {
  return noise_address(a.key, a.stream[b], counter_word(at(a.draw, b), kStepNoise));
}

/// The model outputs of a unit as they lie in memory: loaded first, widened only when they are
/// needed, so that no load waits for another.
template <class Model>
struct ModelOutputs {
  Four<Model> cond, uncond, uncond2;
};

template <class Model, bool kVector>
ARDIFF_HD ModelOutputs<Model> load_outputs(const StepArgs& a, int64_t b, int64_t i, int n) {
  ModelOutputs<Model> m{};
  m.cond = load<Model, kVector>(a.model_out, b, i, n);
  if (a.uncond_out.data) m.uncond = load<Model, kVector>(a.uncond_out, b, i, n);
  if (a.uncond_out2.data) m.uncond2 = load<Model, kVector>(a.uncond_out2, b, i, n);
  return m;
}

template <class Model>
ARDIFF_HD Four<float> guided(const StepArgs& a, int64_t b, const ModelOutputs<Model>& m) {
  Four<float> out = widened(m.cond);
  if (!a.uncond_out.data) return out;
  const float w = at(a.guidance, b);
  const float w2 = a.guidance2.data ? at(a.guidance2, b) : 0.0f;
  for (int k = 0; k < kUnit; ++k) {
    const float uncond = widen(m.uncond.v[k]);
    out.v[k] = a.uncond_out2.data ? guide(out.v[k], uncond, widen(m.uncond2.v[k]), w, w2)
                                  : guide(out.v[k], uncond, w);
  }
  return out;
}

}  // namespace ardiff
