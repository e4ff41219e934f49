// uld_step on CUDA: one row of a kinetic sampler (csrc/math/step.h) on z, v and anchor, in place
// or not, in one launch. A thread takes four neighbouring elements of every tensor in 128-bit
// accesses and makes their eight normals from two Philox quads in registers; nothing passes between
// threads. Options are tested at run time, uniformly over the grid; only the type of the model
// output and the width of access are compiled in. Bound by memory (28 bytes per element) with about
// 130 instructions per element beside it, so every instruction counts.
#pragma once

#include "../step.cuh"

namespace ardiff {

template <class Model, bool kVector>
struct UldBody {
  ARDIFF_HD static void run(const UldArgs& a, const Place& place) {
    const int64_t b = place.sample, i = kUnit * place.unit;
    const int n = unit_length<kVector>(a.d, i);
    const Four<float> z = load<float, kVector>(a.z, b, i, n);
    const Four<float> v = load<float, kVector>(a.v, b, i, n);
    const Four<float> anchor = load<float, kVector>(a.anchor, b, i, n);
    const ModelOutputs<Model> outputs = load_outputs<Model, kVector>(a, b, i, n);

    Four<float> z_new = z, v_new = v, anchor_new = anchor;
    bool start = false;
    const int64_t row = row_of(a, b);
    if (row >= 0) {
      float c[kColumns];
      load_coefficients<kVector>(a, row, c);
      const UldRow<float> coef = uld_row<float>(c, scale_of(a, b));
      start = uld_starts_stage(c);
      Four<float> n1{}, n2{};
      if (a.noise.data) {
        n1 = load<float, kVector>(a.noise, b, i, n);
        n2 = load<float, kVector>(a.noise2, b, i, n);
      } else if (coef.z_1 != 0.0f || coef.z_2 != 0.0f || coef.v_1 != 0.0f) {
        const SampleAddress address = step_noise(a, b);
        const Four<float> p = quad_normals(address, static_cast<uint32_t>(2 * place.unit));
        const Four<float> q = quad_normals(address, static_cast<uint32_t>(2 * place.unit + 1));
        n1 = {p.v[0], p.v[2], q.v[0], q.v[2]};
        n2 = {p.v[1], p.v[3], q.v[1], q.v[3]};
      }
      const Four<float> out = guided(a, b, outputs);
      for (int k = 0; k < kUnit; ++k) {
        const UldState<float> next =
            uld_update(coef, start, z.v[k], v.v[k], out.v[k], anchor.v[k], n1.v[k], n2.v[k]);
        z_new.v[k] = next.z;
        v_new.v[k] = next.v;
        anchor_new.v[k] = next.anchor;
      }
    }
    store<float, kVector>(a.z_new, b, i, n, z_new);
    store<float, kVector>(a.v_new, b, i, n, v_new);
    if (start || a.anchor_new.data != a.anchor.data) {
      store<float, kVector>(a.anchor_new, b, i, n, anchor_new);
    }
    if (a.z_model.data) {
      store<BFloat16, kVector>(a.z_model, b, i, n, narrowed<BFloat16>(z_new));
    }
  }
};

}  // namespace ardiff
