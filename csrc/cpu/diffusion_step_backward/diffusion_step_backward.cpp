// diffusion_step_backward on the CPU: checks, threads and registration;
// the kernel is kernel.cpp.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../../torch/backward_checks.h"
#include "../isa.h"
#include "../launch.h"

ARDIFF_DECLARE_KERNEL(diffusion_step_backward_tiles, DiffusionBackwardArgs)

namespace ardiff {
namespace {

using Optional = std::optional<Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

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
  DiffusionBackwardArgs a{};
  fill_step(a, x_arg, t, 4);
  a.ways = t.uncond_out.given() + t.uncond_out2.given();
  a.learned_range = t.model_out.sizes[1] == 2 * a.d;
  a.clamped = x0_clamp.has_value();
  a.x0_clamp = static_cast<float>(x0_clamp.value_or(0.0));
  a.second_memory = second_memory;
  a.x = input(x_arg);
  a.grad_x = input(grads.x);
  a.grad_memory = input(grads.memory);
  if (second_memory) a.grad_memory2 = second_half(a.grad_memory, a.d);
  a.grad_x0 = input(grads.x0);
  a.packed = a.packed && !second_memory;
  for (const In* in : {&a.x, &a.grad_x, &a.grad_memory, &a.grad_x0}) {
    a.packed = a.packed && (!in->data || in->stride == a.d);
  }

  const ScalarType state = x_arg.dtype, model = t.model_out.dtype;
  const int64_t width = t.model_out.sizes[1];
  const auto make = [&](int bit, ScalarType kind, int64_t columns, bool present = true) {
    return present && (wanted >> bit & 1) ? empty_like(x_arg, kind, a.B, columns)
                                          : no_result(x_arg, kind);
  };
  Tensor new_x = make(0, state, a.d), out = make(1, model, width);
  Tensor memory = make(2, state, second_memory ? 2 * a.d : a.d);
  Tensor uncond = make(3, model, width, a.ways > 0), uncond2 = make(4, model, width, a.ways > 1);
  Tensor n = make(5, ScalarType::Float, a.d);
  a.new_x = output(result("x", new_x));
  a.out = output(result("model_out", out));
  a.memory = output(result("memory", memory));
  if (second_memory) a.memory2 = second_half(a.memory, a.d);
  a.uncond = output(result("uncond_out", uncond));
  a.uncond2 = output(result("uncond_out2", uncond2));
  a.n = output(result("noise", n));
  run_tiles(diffusion_step_backward_tiles(), a);
  return {new_x, out, memory, uncond, uncond2, n};
}

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ardiff, CPU, m) {
  m.impl("diffusion_step_backward", TORCH_BOX(&ardiff::diffusion_step_backward));
}
