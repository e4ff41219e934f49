// diffusion_step on CUDA: one row of a diffusion sampler (csrc/math/step.h) on x and memory, in
// place or not, in one launch. A thread takes four neighbouring elements of every tensor in one
// access each and makes their normals from one Philox quad in registers. A bfloat16 state is
// widened at the load and rounded once, at the store. Options are tested at run time, uniformly
// over the grid; only the types and the width of access are compiled in.
#pragma once

#include "../step.cuh"

namespace ardiff {

/// kSecond: memory is [B, 2d] or [B, 3d]; whether there is a third is tested at run time.
template <class State, bool kSecond, class Model, bool kVector>
struct DiffusionBody {
  ARDIFF_HD static void run(const DiffusionArgs& a, const Place& place) {
    const int64_t b = place.sample, i = kUnit * place.unit;
    const int n = unit_length<kVector>(a.d, i);
    const Four<float> x = widened(load<State, kVector>(a.x, b, i, n));
    const Four<float> memory = widened(load<State, kVector>(a.memory, b, i, n));
    Four<State> memory2{};  // not widened: two registers less with bfloat16
    if constexpr (kSecond) memory2 = load<State, kVector>(a.memory, b, a.d + i, n);
    const ModelOutputs<Model> outputs = load_outputs<Model, kVector>(a, b, i, n);
    Four<Model> range{};
    if (a.learned_range) range = load<Model, kVector>(a.model_out, b, a.d + i, n);

    Four<float> x_new = x, memory_new = memory, x0 = x;
    const bool third = kSecond && a.memories > 2, in_place = a.memory_new.data == a.memory.data;
    bool keep = true, keep_second = true, keep_third = true;
    const int64_t row = row_of(a, b);
    if (row >= 0) {
      float c[kColumns];
      load_coefficients<kVector>(a, row, c);
      const DiffusionRow<float> coef = diffusion_row<float>(c);
      keep = diffusion_keeps_memory(c);
      if constexpr (kSecond) keep_second = diffusion_keeps_second_memory(c);
      if (third) keep_third = diffusion_keeps_third_memory(c);
      const float scale = scale_of(a, b);
      const bool learned = a.learned_range && coef.x_n != 0.0f;
      Four<float> normals{};
      if (a.noise.data) {
        normals = load<float, kVector>(a.noise, b, i, n);
      } else if (coef.x_n != 0.0f && scale != 0.0f) {
        normals = quad_normals(step_noise(a, b), static_cast<uint32_t>(place.unit));
      }
      const Four<float> out = guided(a, b, outputs);
      // The rare terms before the others: they hold no registers beside those.
      Four<float> more_x, more_memory;
      for (int k = 0; k < kUnit; ++k) more_x.v[k] = more_memory.v[k] = -0.0f;
      if (diffusion_has_more_terms(c)) {
        Four<float> memory3{}, uncond = out;
        if (third) memory3 = widened(load<State, kVector>(a.memory, b, 2 * a.d + i, n));
        if (a.uncond_out.data) uncond = widened(load<Model, kVector>(a.uncond_out, b, i, n));
        for (int k = 0; k < kUnit; ++k) {
          const float x0u = data_prediction(coef, x.v[k], uncond.v[k]);
          const MoreTerms<float> more =
              more_terms(coef, memory3.v[k], clamp(x0u, -a.x0_limit, a.x0_limit));
          more_x.v[k] = more.x;
          more_memory.v[k] = more.memory;
        }
      }
      if (!keep_third) {
        Four<State> memory3;
        for (int k = 0; k < kUnit; ++k) {
          memory3.v[k] = narrow<State>(third_memory(coef, widen(memory2.v[k])));
        }
        store<State, kVector>(a.memory_new, b, 2 * a.d + i, n, memory3);
      }
      for (int k = 0; k < kUnit; ++k) {
        const float deviation =
            (learned ? learned_deviation(coef, widen(range.v[k])) : coef.x_n) * scale;
        x0.v[k] = clamp(data_prediction(coef, x.v[k], out.v[k]), -a.x0_limit, a.x0_limit);
        const float origin = kSecond ? widen(memory2.v[k]) : memory.v[k];
        const DiffusionState<float> next =
            diffusion_update(coef, keep, x.v[k], x0.v[k], memory.v[k], origin, deviation,
                             normals.v[k], {true, more_x.v[k], more_memory.v[k]});
        x_new.v[k] = next.x;
        memory_new.v[k] = next.memory;
        if (!keep_second) {
          memory2.v[k] = narrow<State>(second_memory(coef, x.v[k], memory.v[k], origin));
        }
      }
    }
    store<State, kVector>(a.x_new, b, i, n, narrowed<State>(x_new));
    if (!keep || !in_place) {
      store<State, kVector>(a.memory_new, b, i, n, narrowed<State>(memory_new));
    }
    if constexpr (kSecond) {
      if (!keep_second || !in_place) {
        store<State, kVector>(a.memory_new, b, a.d + i, n, memory2);
      }
    }
    if (third && keep_third && !in_place) {
      store<State, kVector>(a.memory_new, b, 2 * a.d + i, n,
                            load<State, kVector>(a.memory, b, 2 * a.d + i, n));
    }
    if (a.x0.data) store<State, kVector>(a.x0, b, i, n, narrowed<State>(x0));
    if (a.z_model.data) {
      store<BFloat16, kVector>(a.z_model, b, i, n, narrowed<BFloat16>(x_new));
    }
  }
};

}  // namespace ardiff
