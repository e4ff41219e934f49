// diffusion_step as torch calls it, on every backend: arguments, checks, both forms.
#pragma once

#include <cmath>
#include <tuple>

#include "step.h"

namespace ardiff {

/// kRun makes the step of checked arguments, on the device of that index.
template <void (*kRun)(const DiffusionArgs&, int32_t)>
struct DiffusionStep {
  using Optional = std::optional<Tensor>;

  static std::tuple<Tensor, Tensor, Tensor> functional(Tensor x, Tensor model_out, Tensor memory,
                                                       ARDIFF_STEP_PARAMETERS,
                                                       std::optional<double> x0_clamp) {
    const Arg x_arg("x", x), memory_arg("memory", memory);
    const StepTensors t{{"model_out", model_out}, ARDIFF_STEP_ARGUMENTS, {}, {}, {}};
    check(rules("diffusion_step", false), x_arg, memory_arg, t, x0_clamp);
    Tensor x_new = fresh(x_arg, x_arg.dtype);
    Tensor memory_new = fresh(memory_arg, x_arg.dtype);
    Tensor x0 = fresh(x_arg, x_arg.dtype);
    run(x_arg, memory_arg, {"x", x_new}, {"memory", memory_new}, {"x0", x0}, t, x0_clamp);
    return {x_new, memory_new, x0};
  }

  static void in_place(Tensor x, Tensor model_out, Tensor memory, ARDIFF_STEP_PARAMETERS,
                       std::optional<double> x0_clamp, Optional x0, Optional z_model) {
    const Arg x_arg("x", x), memory_arg("memory", memory);
    const StepTensors t{
        {"model_out", model_out}, ARDIFF_STEP_ARGUMENTS, {}, {"x0", x0}, {"z_model", z_model}};
    check(rules("diffusion_step_", true), x_arg, memory_arg, t, x0_clamp);
    run(x_arg, memory_arg, x_arg, memory_arg, t.x0, t, x0_clamp);
  }

 private:
  static StepRules rules(const char* op, bool in_place) {
    return {op, true, DiffusionArgs::kElementsPerQuad, true, false, in_place, 3};
  }

  static void check(const StepRules& rules, const Arg& x, const Arg& memory, const StepTensors& t,
                    std::optional<double> x0_clamp) {
    check_step(rules, x, memory, {}, t);
    check_x0_clamp(rules.op, x0_clamp);
  }

  static void run(const Arg& x, const Arg& memory, const Arg& x_new, const Arg& memory_new,
                  const Arg& x0, const StepTensors& t, std::optional<double> x0_clamp) {
    DiffusionArgs a = step_args<DiffusionArgs>(x, t);
    a.learned_range = t.model_out.width() == 2 * a.d;
    a.memories = static_cast<int>(memory.width() / a.d);
    a.x0_limit = static_cast<float>(x0_clamp.value_or(INFINITY));
    a.x = input(x);
    a.memory = input(memory);
    a.x_new = output(x_new);
    a.memory_new = output(memory_new);
    a.x0 = output(x0);
    kRun(a, x.device_index);
  }
};

}  // namespace ardiff
