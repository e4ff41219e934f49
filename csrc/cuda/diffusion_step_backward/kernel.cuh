// diffusion_step_backward on CUDA: the transposed row of diffusion_step
// (csrc/math/step_backward.h) in one launch. A thread takes four neighbouring elements of every
// tensor in one access each. The state and the model outputs are read only where x0 is clamped or
// the variance learned, and the step's normals are made again only for the latter. Absent gradients
// count as zero, results that are not wanted are not stored; both are tested at run time, uniformly
// over the grid.
#pragma once

#include "../step.cuh"

namespace ardiff {

template <class State, class Model, bool kVector>
struct DiffusionBackwardBody {
  ARDIFF_HD static void run(const DiffusionBackwardArgs& a, const Place& place) {
    const int64_t b = place.sample, i = kUnit * place.unit;
    const int n = unit_length<kVector>(a.d, i);
    const Four<float> g_x = load_gradient<State, kVector>(a.grad_x, b, i, n);
    const Four<float> g_x0 = load_gradient<State, kVector>(a.grad_x0, b, i, n);
    Four<float> memory = load_gradient<State, kVector>(a.grad_memory, b, i, n);
    Four<float> memory2{}, memory3{};
    if (a.memories > 1) memory2 = load_gradient<State, kVector>(a.grad_memory, b, a.d + i, n);
    if (a.memories > 2) memory3 = load_gradient<State, kVector>(a.grad_memory, b, 2 * a.d + i, n);

    Four<float> x, out{}, uncond{}, range{}, noise{};
    for (int k = 0; k < kUnit; ++k) x.v[k] = g_x.v[k] + g_x0.v[k];
    bool unconditional = false;
    const int64_t row = row_of(a, b);
    if (row >= 0) {
      float c[kColumns];
      load_coefficients<kVector>(a, row, c);
      const DiffusionRow<float> coef = diffusion_row<float>(c);
      const DiffusionForm form = diffusion_form(c, a);
      unconditional = form.unconditional;
      Four<float> g_0, g_u{};
      for (int k = 0; k < kUnit; ++k) {
        g_0.v[k] = data_gradient(coef, g_x.v[k], memory.v[k], g_x0.v[k]);
      }
      if (diffusion_takes_unconditional(c)) {
        for (int k = 0; k < kUnit; ++k) {
          const float g = unconditional_gradient(coef, g_x.v[k], memory.v[k]);
          if (form.unconditional) {
            g_u.v[k] = g;
          } else {
            g_0.v[k] = g_0.v[k] + g;
          }
        }
      }
      if (a.clamped) {
        const Four<float> old = widened(load<State, kVector>(a.x, b, i, n));
        const ModelOutputs<Model> outputs = load_outputs<Model, kVector>(a, b, i, n);
        const Four<float> model = guided(a, b, outputs);
        for (int k = 0; k < kUnit; ++k) {
          const float x0 = data_prediction(coef, old.v[k], model.v[k]);
          g_0.v[k] = within_clamp(x0, a.x0_clamp, g_0.v[k]);
          if (form.unconditional) {
            const float x0u = data_prediction(coef, old.v[k], widen(outputs.uncond.v[k]));
            g_u.v[k] = within_clamp(x0u, a.x0_clamp, g_u.v[k]);
          }
        }
      }
      const float scale = scale_of(a, b);
      Four<float> deviation;
      for (int k = 0; k < kUnit; ++k) deviation.v[k] = coef.x_n * scale;
      if (a.learned_range && coef.x_n != 0.0f) {
        const Four<float> r = widened(load<Model, kVector>(a.model_out, b, a.d + i, n));
        Four<float> normals{};
        if (a.noise.data) {
          normals = load<float, kVector>(a.noise, b, i, n);
        } else if (scale != 0.0f && a.outputs.cond.data) {
          normals = quad_normals(step_noise(a, b), static_cast<uint32_t>(place.unit));
        }
        for (int k = 0; k < kUnit; ++k) {
          deviation.v[k] = learned_deviation(coef, r.v[k]) * scale;
          range.v[k] = range_gradient(coef, deviation.v[k], normals.v[k], g_x.v[k]);
        }
      }
      for (int k = 0; k < kUnit; ++k) {
        const DiffusionGradients<float> g = diffusion_transpose(
            coef, form, g_x.v[k], memory.v[k], memory2.v[k], memory3.v[k], g_0.v[k], g_u.v[k]);
        x.v[k] = g.x;
        memory.v[k] = g.memory;
        memory2.v[k] = g.memory2;
        memory3.v[k] = g.memory3;
        out.v[k] = g.out;
        uncond.v[k] = g.uncond;
        noise.v[k] = product(deviation.v[k], g_x.v[k]);
      }
    }
    store_if_wanted<State, kVector>(a.new_x, b, i, n, x);
    store_if_wanted<State, kVector>(a.memory, b, i, n, memory);
    if (a.memories > 1) store_if_wanted<State, kVector>(a.memory, b, a.d + i, n, memory2);
    if (a.memories > 2) store_if_wanted<State, kVector>(a.memory, b, 2 * a.d + i, n, memory3);
    store_if_wanted<float, kVector>(a.n, b, i, n, noise);
    store_outputs<Model, kVector>(a, a.outputs, b, i, n, out, uncond, unconditional);
    if (a.learned_range) {
      store_if_wanted<Model, kVector>(a.outputs.cond, b, a.d + i, n, range);
      store_if_wanted<Model, kVector>(a.outputs.uncond, b, a.d + i, n, {});
      store_if_wanted<Model, kVector>(a.outputs.uncond2, b, a.d + i, n, {});
    }
  }
};

}  // namespace ardiff
