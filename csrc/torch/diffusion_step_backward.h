// diffusion_step_backward as torch calls it, on every backend: arguments and checks.
#pragma once

#include <tuple>

#include "backward.h"
#include "diffusion_step.h"

namespace ardiff {

/// Gradients of the results of diffusion_step.
struct DiffusionGradientTensors {
  Arg x, memory, x0;
};

inline void check_diffusion_step_backward(const DiffusionGradientTensors& grads, const Arg& x,
                                          const StepTensors& t,
                                          const std::optional<double>& x0_clamp, int64_t memories,
                                          int64_t wanted) {
  const char* op = "diffusion_step_backward";
  if (x.dim != 2) fail(op, ": x must be [B, d], got ", x.dim, " dimensions");
  check_step({op, true, DiffusionBackwardArgs::kElementsPerQuad, true, false, false}, x, {}, {}, t);
  check_x0_clamp(op, x0_clamp);
  if (memories < 1 || memories > 3) fail(op, ": memories must be 1, 2 or 3, got ", memories);
  lead_of(op, grads.x, grads.memory, grads.x0);
  const int64_t rows = x.sizes[0], d = x.sizes[1];
  check_matrix(op, grads.x, x.dtype, rows, d);
  check_matrix(op, grads.memory, x.dtype, rows, memories * d);
  check_matrix(op, grads.x0, x.dtype, rows, d);
  check_wanted(op, wanted, 6);
  check_placement(op, {&x, &grads.x, &grads.memory, &grads.x0}, {});
}

/// kRun computes the gradients of checked arguments, on the device of that index.
template <void (*kRun)(const DiffusionBackwardArgs&, int32_t)>
struct DiffusionStepBackward {
  using Optional = std::optional<Tensor>;
  using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

  static Gradients functional(Optional grad_x, Optional grad_memory, Optional grad_x0, Tensor x,
                              Tensor model_out, ARDIFF_STEP_PARAMETERS,
                              std::optional<double> x0_clamp, int64_t memories, int64_t wanted) {
    const Arg x_arg("x", x);
    const DiffusionGradientTensors grads{
        {"grad_x", grad_x}, {"grad_memory", grad_memory}, {"grad_x0", grad_x0}};
    const StepTensors t{{"model_out", model_out}, ARDIFF_STEP_ARGUMENTS, {}, {}, {}};
    check_diffusion_step_backward(grads, x_arg, t, x0_clamp, memories, wanted);
    DiffusionBackwardArgs a = step_args<DiffusionBackwardArgs>(x_arg, t);
    const ScalarType state = x_arg.dtype, model = t.model_out.dtype;
    const int64_t width = t.model_out.sizes[1];
    a.learned_range = width == 2 * a.d;
    a.clamped = x0_clamp.has_value();
    a.memories = static_cast<int>(memories);
    a.x0_clamp = static_cast<float>(x0_clamp.value_or(0.0));
    a.x = input(x_arg);
    a.grad_x = input(grads.x);
    a.grad_memory = input(grads.memory);
    a.grad_x0 = input(grads.x0);

    const int ways = t.uncond_out.given() + t.uncond_out2.given();
    const Results results{x_arg, wanted, a.B};
    Tensor new_x = results.make(0, state, a.d), out = results.make(1, model, width);
    Tensor new_memory = results.make(2, state, memories * a.d);
    Tensor uncond = results.make(3, model, width, ways > 0);
    Tensor uncond2 = results.make(4, model, width, ways > 1);
    Tensor n = results.make(5, ScalarType::Float, a.d);
    a.outputs = {ways, type_of(model), output(result("model_out", out)),
                 output(result("uncond_out", uncond)), output(result("uncond_out2", uncond2))};
    a.new_x = output(result("x", new_x));
    a.memory = output(result("memory", new_memory));
    a.n = output(result("noise", n));
    kRun(a, x_arg.device_index);
    return {new_x, out, new_memory, uncond, uncond2, n};
  }
};

}  // namespace ardiff
