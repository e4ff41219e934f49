// uld_step_backward on CUDA: the transposed row of uld_step (csrc/math/step_backward.h) in one
// launch. A thread takes four neighbouring elements of every gradient in one access each. Absent
// gradients count as zero, results that are not wanted are not stored; both are tested at run time,
// uniformly over the grid.
#pragma once

#include "../step.cuh"

namespace ardiff {

template <class Model, bool kVector>
struct UldBackwardBody {
  ARDIFF_HD static void run(const UldBackwardArgs& a, const Place& place) {
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

}  // namespace ardiff
