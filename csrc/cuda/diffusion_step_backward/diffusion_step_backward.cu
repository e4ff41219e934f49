// diffusion_step_backward on CUDA: the transposed row of diffusion_step
// (csrc/math/step_backward.h) in one launch. A thread takes four neighbouring elements of every
// tensor in one access each. The state and the model outputs are read only where x0 is clamped or
// the variance learned, and the step's normals are made again only for the latter. Absent gradients
// count as zero, results that are not wanted are not stored; both are tested at run time, uniformly
// over the grid.
#include <tuple>

#include "../../torch/backward_checks.h"
#include "../step_launch.cuh"

namespace ardiff {
namespace {

using Optional = std::optional<Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

struct DiffusionBackwardArgs : StepArgs {
  bool learned_range, clamped, second_memory;
  float x0_clamp;
  In x, grad_x, grad_memory, grad_x0;
  OutputGradients outputs;
  Out new_x, memory, n;
};

template <class State, class Model, bool kVector>
struct DiffusionBackwardBody {
  ARDIFF_HD static void run(const DiffusionBackwardArgs& a, int64_t block, int thread) {
    const Place place = place_of(a.layout, block, thread);
    if (!place.inside) return;
    const int64_t b = place.sample, i = kUnit * place.unit;
    const int n = unit_length<kVector>(a.d, i);
    const Four<float> g_x = load_gradient<State, kVector>(a.grad_x, b, i, n);
    const Four<float> g_x0 = load_gradient<State, kVector>(a.grad_x0, b, i, n);
    Four<float> memory = load_gradient<State, kVector>(a.grad_memory, b, i, n), memory2{};
    if (a.second_memory) memory2 = load_gradient<State, kVector>(a.grad_memory, b, a.d + i, n);

    Four<float> x, out{}, range{}, noise{};
    for (int k = 0; k < kUnit; ++k) x.v[k] = g_x.v[k] + g_x0.v[k];
    const int64_t row = row_of(a, b);
    if (row >= 0) {
      float c[kColumns];
      load_coefficients<kVector>(a, row, c);
      const DiffusionRow<float> coef = diffusion_row<float>(c);
      const DiffusionForm form{diffusion_keeps_memory(c), diffusion_keeps_second_memory(c),
                               a.second_memory};
      Four<float> g_0;
      for (int k = 0; k < kUnit; ++k) {
        g_0.v[k] = data_gradient(coef, g_x.v[k], memory.v[k], g_x0.v[k]);
      }
      if (a.clamped) {
        const Four<float> old = widened(load<State, kVector>(a.x, b, i, n));
        const Four<float> model = guided(a, b, load_outputs<Model, kVector>(a, b, i, n));
        for (int k = 0; k < kUnit; ++k) {
          const float x0 = data_prediction(coef, old.v[k], model.v[k]);
          g_0.v[k] = within_clamp(x0, a.x0_clamp, g_0.v[k]);
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
        const DiffusionGradients<float> g =
            diffusion_transpose(coef, form, g_x.v[k], memory.v[k], memory2.v[k], g_0.v[k]);
        x.v[k] = g.x;
        memory.v[k] = g.memory;
        memory2.v[k] = g.memory2;
        out.v[k] = g.out;
        noise.v[k] = product(deviation.v[k], g_x.v[k]);
      }
    }
    store_if_wanted<State, kVector>(a.new_x, b, i, n, x);
    store_if_wanted<State, kVector>(a.memory, b, i, n, memory);
    if (a.second_memory) store_if_wanted<State, kVector>(a.memory, b, a.d + i, n, memory2);
    store_if_wanted<float, kVector>(a.n, b, i, n, noise);
    store_outputs<Model, kVector>(a, a.outputs, b, i, n, out);
    if (a.learned_range) {
      store_if_wanted<Model, kVector>(a.outputs.cond, b, a.d + i, n, range);
      store_if_wanted<Model, kVector>(a.outputs.uncond, b, a.d + i, n, {});
      store_if_wanted<Model, kVector>(a.outputs.uncond2, b, a.d + i, n, {});
    }
  }
};

template <class Model, bool kVector>
using Float32Body = DiffusionBackwardBody<float, Model, kVector>;
template <class Model, bool kVector>
using BFloat16Body = DiffusionBackwardBody<BFloat16, Model, kVector>;

Gradients diffusion_step_backward(Optional grad_x, Optional grad_memory, Optional grad_x0, Tensor x,
                                  Tensor model_out, Tensor coef, Tensor row, Tensor draw,
                                  Tensor key, Tensor stream, Optional uncond_out,
                                  Optional uncond_out2, Optional guidance, Optional guidance2,
                                  Optional noise_scale, Optional noise,
                                  std::optional<double> x0_clamp, bool second_memory,
                                  int64_t wanted) {
  const Arg x_arg("x", x);
  const DiffusionGradientTensors grads{
      {"grad_x", grad_x}, {"grad_memory", grad_memory}, {"grad_x0", grad_x0}};
  const StepTensors t{{"model_out", model_out},
                      {"coef", coef},
                      {"row", row},
                      {"draw", draw},
                      {"key", key},
                      {"stream", stream},
                      {"uncond_out", uncond_out},
                      {"uncond_out2", uncond_out2},
                      {"guidance", guidance},
                      {"guidance2", guidance2},
                      {"noise_scale", noise_scale},
                      {"noise", noise},
                      {},
                      {},
                      {}};
  check_diffusion_step_backward(grads, x_arg, t, x0_clamp, second_memory, wanted);
  const int64_t B = x_arg.sizes[0], d = x_arg.sizes[1], width = t.model_out.sizes[1];
  DiffusionBackwardArgs a{};
  Operands operands(d);
  fill_step(a, operands, x_arg, t);
  a.learned_range = width == 2 * d;
  a.clamped = x0_clamp.has_value();
  a.x0_clamp = static_cast<float>(x0_clamp.value_or(0.0));
  a.second_memory = second_memory;
  a.x = operands.in(x_arg);
  a.grad_x = operands.in(grads.x);
  a.grad_memory = operands.in(grads.memory);
  a.grad_x0 = operands.in(grads.x0);

  const ScalarType state = x_arg.dtype, model = t.model_out.dtype;
  const int ways = t.uncond_out.given() + t.uncond_out2.given();
  const auto make = [&](int bit, ScalarType kind, int64_t columns, bool present = true) {
    return present && (wanted >> bit & 1) ? fresh(x_arg, kind, B, columns) : no_result(x_arg, kind);
  };
  Tensor new_x = make(0, state, d), out = make(1, model, width);
  Tensor memory = make(2, state, second_memory ? 2 * d : d);
  Tensor uncond = make(3, model, width, ways > 0), uncond2 = make(4, model, width, ways > 1);
  Tensor n = make(5, ScalarType::Float, d);
  a.new_x = operands.out(result("x", new_x));
  a.memory = operands.out(result("memory", memory));
  a.n = operands.out(result("noise", n));
  a.outputs = {ways, operands.out(result("model_out", out)),
               operands.out(result("uncond_out", uncond)),
               operands.out(result("uncond_out2", uncond2))};
  if (state == ScalarType::BFloat16) {
    launch_step<BFloat16Body>(a, model, operands.vector(), x_arg.device_index);
  } else {
    launch_step<Float32Body>(a, model, operands.vector(), x_arg.device_index);
  }
  return {new_x, out, memory, uncond, uncond2, n};
}

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ARDIFF_CUDA_NAMESPACE, ARDIFF_CUDA_KEY, m) {
  m.impl("diffusion_step_backward", TORCH_BOX(&ardiff::diffusion_step_backward));
}
