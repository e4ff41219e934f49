// What the step kernels share: their arguments, table rows, and guided model outputs.
#pragma once

#include "../math/step_args.h"
#include "../math/step_backward.h"
#include "unit.cuh"

namespace ardiff {

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

ARDIFF_HD SampleAddress step_noise(const StepArgs& a, int64_t b) {
  const NoiseAddress& n = a.address;
  return sample_address(n.key, n.stream[b], counter_word(at(n.draw, b), kStepNoise));
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

/// n elements of a gradient, zeros where it is absent.
template <class T, bool kVector>
ARDIFF_HD Four<float> load_gradient(const In& in, int64_t b, int64_t i, int n) {
  Four<T> g{};
  if (in.data) g = load<T, kVector>(in, b, i, n);
  return widened(g);
}

template <class T, bool kVector>
ARDIFF_HD void store_if_wanted(const Out& out, int64_t b, int64_t i, int n, const Four<float>& x) {
  if (out.data) store<T, kVector>(out, b, i, n, narrowed<T>(x));
}

/// Spreads the gradient of the guided output over the model outputs; where `adds`, `uncond` is
/// added to that of the first unconditional one.
template <class Model, bool kVector>
ARDIFF_HD void store_outputs(const StepArgs& a, const OutputGradients& to, int64_t b, int64_t i,
                             int n, const Four<float>& g, const Four<float>& uncond = {},
                             bool adds = false) {
  const OutputWeights w = output_weights(to.ways, a.guidance.data ? at(a.guidance, b) : 0.0f,
                                         a.guidance2.data ? at(a.guidance2, b) : 0.0f);
  const float weights[] = {w.cond, w.uncond, w.uncond2};
  const Out* const outs[] = {&to.cond, &to.uncond, &to.uncond2};
  for (int way = 0; way < 3; ++way) {
    Four<float> scaled;
    for (int k = 0; k < kUnit; ++k) {
      scaled.v[k] =
          adds && way == 1 ? fma(g.v[k], weights[way], uncond.v[k]) : weights[way] * g.v[k];
    }
    store_if_wanted<Model, kVector>(*outs[way], b, i, n, scaled);
  }
}

}  // namespace ardiff
