// uld_step as torch calls it, on every backend: arguments, checks, both forms.
#pragma once

#include <tuple>

#include "step.h"

namespace ardiff {

/// kRun makes the step of checked arguments, on the device of that index.
template <void (*kRun)(const UldArgs&, int32_t)>
struct UldStep {
  using Optional = std::optional<Tensor>;

  static std::tuple<Tensor, Tensor, Tensor> functional(Tensor z, Tensor v, Tensor model_out,
                                                       Tensor anchor, ARDIFF_STEP_PARAMETERS,
                                                       Optional noise2) {
    const Arg state[] = {{"z", z}, {"v", v}, {"anchor", anchor}};
    const StepTensors t{
        {"model_out", model_out}, ARDIFF_STEP_ARGUMENTS, {"noise2", noise2}, {}, {}};
    check_step(rules("uld_step", false), state[0], state[1], state[2], t);
    Tensor z_new = fresh(state[0], ScalarType::Float);
    Tensor v_new = fresh(state[0], ScalarType::Float);
    Tensor anchor_new = fresh(state[0], ScalarType::Float);
    run(state, {{"z", z_new}, {"v", v_new}, {"anchor", anchor_new}}, t);
    return {z_new, v_new, anchor_new};
  }

  static void in_place(Tensor z, Tensor v, Tensor model_out, Tensor anchor, ARDIFF_STEP_PARAMETERS,
                       Optional noise2, Optional z_model) {
    const Arg state[] = {{"z", z}, {"v", v}, {"anchor", anchor}};
    const StepTensors t{{"model_out", model_out},
                        ARDIFF_STEP_ARGUMENTS,
                        {"noise2", noise2},
                        {},
                        {"z_model", z_model}};
    check_step(rules("uld_step_", true), state[0], state[1], state[2], t);
    run(state, state, t);
  }

 private:
  static StepRules rules(const char* op, bool in_place) {
    return {op, false, UldArgs::kElementsPerQuad, false, true, in_place, false};
  }

  /// From z, v and anchor to their new values.
  static void run(const Arg (&from)[3], const Arg (&to)[3], const StepTensors& t) {
    UldArgs a = step_args<UldArgs>(from[0], t);
    a.z = input(from[0]);
    a.v = input(from[1]);
    a.anchor = input(from[2]);
    a.z_new = output(to[0]);
    a.v_new = output(to[1]);
    a.anchor_new = output(to[2]);
    kRun(a, from[0].device_index);
  }
};

}  // namespace ardiff
