// uld_step_backward on the CPU: checks, threads and registration;
// the kernel is kernel.cpp.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../../torch/backward_checks.h"
#include "../isa.h"
#include "../launch.h"

ARDIFF_DECLARE_KERNEL(uld_step_backward_tiles, UldBackwardArgs)

namespace ardiff {
namespace {

using Optional = std::optional<Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients uld_step_backward(Optional grad_z, Optional grad_v, Optional grad_anchor, Tensor coef,
                            Tensor row, Optional guidance, Optional guidance2, Optional noise_scale,
                            ScalarType dtype, int64_t wanted) {
  const UldBackwardTensors t{{"grad_z", grad_z},
                             {"grad_v", grad_v},
                             {"grad_anchor", grad_anchor},
                             {"coef", coef},
                             {"row", row},
                             {"guidance", guidance},
                             {"guidance2", guidance2},
                             {"noise_scale", noise_scale}};
  check_uld_step_backward(t, dtype, wanted);
  const Arg& lead = lead_of("uld_step_backward", t.grad_z, t.grad_v, t.grad_anchor);
  UldBackwardArgs a{};
  a.B = lead.sizes[0];
  a.d = lead.sizes[1];
  a.T = t.coef.sizes[0];
  a.tiling = tiling_of(a.B, a.d, 1);
  a.coef = static_cast<const float*>(coef.const_data_ptr());
  a.row = per_sample<int32_t>(t.row);
  a.guidance = per_sample<float>(t.guidance);
  a.guidance2 = per_sample<float>(t.guidance2);
  a.noise_scale = per_sample<float>(t.noise_scale);
  a.ways = t.guidance.given() + t.guidance2.given();
  a.grad_z = input(t.grad_z);
  a.grad_v = input(t.grad_v);
  a.grad_anchor = input(t.grad_anchor);
  a.packed = a.B > 1;
  for (const In* g : {&a.grad_z, &a.grad_v, &a.grad_anchor}) {
    a.packed = a.packed && (!g->data || g->stride == a.d);
  }

  const auto make = [&](int bit, ScalarType kind, bool present = true) {
    return present && (wanted >> bit & 1) ? empty_like(lead, kind, a.B, a.d)
                                          : no_result(lead, kind);
  };
  Tensor z = make(0, ScalarType::Float), v = make(1, ScalarType::Float);
  Tensor out = make(2, dtype), anchor = make(3, ScalarType::Float);
  Tensor uncond = make(4, dtype, a.ways > 0), uncond2 = make(5, dtype, a.ways > 1);
  Tensor n1 = make(6, ScalarType::Float), n2 = make(7, ScalarType::Float);
  a.z = output(result("z", z));
  a.v = output(result("v", v));
  a.out = output(result("model_out", out));
  a.anchor = output(result("anchor", anchor));
  a.uncond = output(result("uncond_out", uncond));
  a.uncond2 = output(result("uncond_out2", uncond2));
  a.n1 = output(result("noise", n1));
  a.n2 = output(result("noise2", n2));
  run_tiles(uld_step_backward_tiles(), a);
  return {z, v, out, anchor, uncond, uncond2, n1, n2};
}

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ardiff, CPU, m) {
  m.impl("uld_step_backward", TORCH_BOX(&ardiff::uld_step_backward));
}
