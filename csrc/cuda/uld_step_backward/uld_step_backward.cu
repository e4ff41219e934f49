// uld_step_backward on CUDA: the transposed row of uld_step (csrc/math/step_backward.h) in one
// launch. A thread takes four neighbouring elements of every gradient in one access each. Absent
// gradients count as zero, results that are not wanted are not stored; both are tested at run time,
// uniformly over the grid.
#include <tuple>

#include "../../torch/backward_checks.h"
#include "../step_launch.cuh"

namespace ardiff {
namespace {

using Optional = std::optional<Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

struct UldBackwardArgs : StepArgs {
  In grad_z, grad_v, grad_anchor;
  OutputGradients outputs;
  Out z, v, anchor, n1, n2;
};

template <class Model, bool kVector>
struct UldBackwardBody {
  ARDIFF_HD static void run(const UldBackwardArgs& a, int64_t block, int thread) {
    const Place place = place_of(a.layout, block, thread);
    if (!place.inside) return;
    const int64_t b = place.sample, i = kUnit * place.unit;
    const int n = unit_length<kVector>(a.d, i);
    Four<float> z = load_gradient<float, kVector>(a.grad_z, b, i, n);
    Four<float> v = load_gradient<float, kVector>(a.grad_v, b, i, n);
    Four<float> anchor = load_gradient<float, kVector>(a.grad_anchor, b, i, n);
    Four<float> out{}, n1{}, n2{};
    const int64_t row = row_of(a, b);
    if (row >= 0) {
      float c[kColumns];
      load_coefficients<kVector>(a, row, c);
      const UldRow<float> coef = uld_row<float>(c, scale_of(a, b));
      const bool start = uld_starts_stage(c);
      for (int k = 0; k < kUnit; ++k) {
        const UldGradients<float> g = uld_transpose(coef, start, z.v[k], v.v[k], anchor.v[k]);
        z.v[k] = g.z;
        v.v[k] = g.v;
        out.v[k] = g.out;
        anchor.v[k] = g.anchor;
        n1.v[k] = g.n1;
        n2.v[k] = g.n2;
      }
    }
    store_if_wanted<float, kVector>(a.z, b, i, n, z);
    store_if_wanted<float, kVector>(a.v, b, i, n, v);
    store_if_wanted<float, kVector>(a.anchor, b, i, n, anchor);
    store_if_wanted<float, kVector>(a.n1, b, i, n, n1);
    store_if_wanted<float, kVector>(a.n2, b, i, n, n2);
    store_outputs<Model, kVector>(a, a.outputs, b, i, n, out);
  }
};

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
  const int64_t B = lead.sizes[0], d = lead.sizes[1];
  UldBackwardArgs a{};
  Operands operands(d);
  a.layout = layout_of(B, d);
  a.d = d;
  a.T = t.coef.sizes[0];
  a.coef = static_cast<const float*>(operands.in(t.coef).data);
  a.row = per_sample<int32_t>(t.row);
  a.guidance = per_sample<float>(t.guidance);
  a.guidance2 = per_sample<float>(t.guidance2);
  a.noise_scale = per_sample<float>(t.noise_scale);
  a.grad_z = operands.in(t.grad_z);
  a.grad_v = operands.in(t.grad_v);
  a.grad_anchor = operands.in(t.grad_anchor);

  const int ways = t.guidance.given() + t.guidance2.given();
  const auto make = [&](int bit, ScalarType kind, bool present = true) {
    return present && (wanted >> bit & 1) ? fresh(lead, kind, B, d) : no_result(lead, kind);
  };
  Tensor z = make(0, ScalarType::Float), v = make(1, ScalarType::Float);
  Tensor out = make(2, dtype), anchor = make(3, ScalarType::Float);
  Tensor uncond = make(4, dtype, ways > 0), uncond2 = make(5, dtype, ways > 1);
  Tensor n1 = make(6, ScalarType::Float), n2 = make(7, ScalarType::Float);
  a.z = operands.out(result("z", z));
  a.v = operands.out(result("v", v));
  a.anchor = operands.out(result("anchor", anchor));
  a.n1 = operands.out(result("noise", n1));
  a.n2 = operands.out(result("noise2", n2));
  a.outputs = {ways, operands.out(result("model_out", out)),
               operands.out(result("uncond_out", uncond)),
               operands.out(result("uncond_out2", uncond2))};
  launch_step<UldBackwardBody>(a, dtype, operands.vector(), lead.device_index);
  return {z, v, out, anchor, uncond, uncond2, n1, n2};
}

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ARDIFF_CUDA_NAMESPACE, ARDIFF_CUDA_KEY, m) {
  m.impl("uld_step_backward", TORCH_BOX(&ardiff::uld_step_backward));
}
