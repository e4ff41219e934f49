// The host side that the step ops share.
#pragma once

#include "launch.cuh"
#include "step.cuh"

namespace ardiff {

/// Fills what both step ops have; the state is theirs.
inline void fill_step(StepArgs& a, Operands& operands, const Arg& lead, const StepTensors& t) {
  a.layout = layout_of(lead.sizes[0], lead.width());
  a.d = lead.width();
  a.T = t.coef.sizes[0];
  a.coef = static_cast<const float*>(operands.in(t.coef).data);
  a.row = per_sample<int32_t>(t.row);
  a.draw = per_sample<int32_t>(t.draw);
  a.key = pointer<int64_t>(t.key);
  a.stream = pointer<int64_t>(t.stream);
  a.model_out = operands.in(t.model_out);
  a.uncond_out = operands.in(t.uncond_out);
  a.uncond_out2 = operands.in(t.uncond_out2);
  a.guidance = per_sample<float>(t.guidance);
  a.guidance2 = per_sample<float>(t.guidance2);
  a.noise_scale = per_sample<float>(t.noise_scale);
  a.noise = operands.in(t.noise);
  a.noise2 = operands.in(t.noise2);
  a.z_model = operands.out(t.z_model);
}

/// Launches Body<Model, kVector> for the type of the model output.
template <template <class, bool> class Body, class Args>
void launch_step(const Args& a, ScalarType model, bool vector, int32_t device) {
  if (model == ScalarType::BFloat16) {
    vector ? launch<Body<BFloat16, true>>(a, device) : launch<Body<BFloat16, false>>(a, device);
  } else if (model == ScalarType::Half) {
    vector ? launch<Body<Float16, true>>(a, device) : launch<Body<Float16, false>>(a, device);
  } else {
    vector ? launch<Body<float, true>>(a, device) : launch<Body<float, false>>(a, device);
  }
}

}  // namespace ardiff
