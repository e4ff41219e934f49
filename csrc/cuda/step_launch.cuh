// How the step ops start their kernels.
#pragma once

#include "launch.cuh"
#include "step.cuh"

namespace ardiff {

/// Launches Body<Model, kVector> for the type of the model output.
template <template <class, bool> class Body, class Args>
void launch_step(const Args& a, Type model, int32_t device) {
  const bool vector =
      takes_units(a) && reinterpret_cast<uintptr_t>(a.coef) % (kUnit * sizeof(float)) == 0;
  if (model == Type::bfloat16) {
    vector ? launch<Body<BFloat16, true>>(a, device) : launch<Body<BFloat16, false>>(a, device);
  } else if (model == Type::float16) {
    vector ? launch<Body<Float16, true>>(a, device) : launch<Body<Float16, false>>(a, device);
  } else {
    vector ? launch<Body<float, true>>(a, device) : launch<Body<float, false>>(a, device);
  }
}

}  // namespace ardiff
