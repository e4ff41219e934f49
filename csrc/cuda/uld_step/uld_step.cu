// uld_step on CUDA: one row of a kinetic sampler (csrc/math/step.h) on z, v and anchor, in place
// or not, in one launch. A thread takes four neighbouring elements of every tensor in 128-bit
// accesses and makes their eight normals from two Philox quads in registers; nothing passes between
// threads. Options are tested at run time, uniformly over the grid; only the type of the model
// output and the width of access are compiled in. Bound by memory (28 bytes an element) with about
// 130 instructions an element beside it, so every instruction counts.
#include <tuple>

#include "../step_launch.cuh"

namespace ardiff {
namespace {

using Optional = std::optional<Tensor>;

struct UldArgs : StepArgs {
  In z, v, anchor;
  Out z_new, v_new, anchor_new;
};

template <class Model, bool kVector>
struct UldBody {
  ARDIFF_HD static void run(const UldArgs& a, int64_t block, int thread) {
    const Place place = place_of(a.layout, block, thread);
    if (!place.inside) return;
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
        const NoiseAddress address = step_noise(a, b);
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

void run(const Arg& z, const Arg& v, const Arg& anchor, const Arg& z_new, const Arg& v_new,
         const Arg& anchor_new, const StepTensors& t) {
  UldArgs a;
  Operands operands(z.width());
  fill_step(a, operands, z, t);
  a.z = operands.in(z);
  a.v = operands.in(v);
  a.anchor = operands.in(anchor);
  a.z_new = operands.out(z_new);
  a.v_new = operands.out(v_new);
  a.anchor_new = operands.out(anchor_new);
  launch_step<UldBody>(a, t.model_out.dtype, operands.vector(), z.device_index);
}

std::tuple<Tensor, Tensor, Tensor> uld_step(Tensor z, Tensor v, Tensor model_out, Tensor anchor,
                                            Tensor coef, Tensor row, Tensor draw, Tensor key,
                                            Tensor stream, Optional uncond_out,
                                            Optional uncond_out2, Optional guidance,
                                            Optional guidance2, Optional noise_scale,
                                            Optional noise, Optional noise2) {
  const Arg z_arg("z", z), v_arg("v", v), anchor_arg("anchor", anchor);
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
                      {"noise2", noise2},
                      {},
                      {}};
  check_step({"uld_step", false, 2, false, true, false}, z_arg, v_arg, anchor_arg, t);
  Tensor z_new = fresh(z_arg, ScalarType::Float);
  Tensor v_new = fresh(z_arg, ScalarType::Float);
  Tensor anchor_new = fresh(z_arg, ScalarType::Float);
  run(z_arg, v_arg, anchor_arg, Arg("z", z_new), Arg("v", v_new), Arg("anchor", anchor_new), t);
  return {z_new, v_new, anchor_new};
}

void uld_step_(Tensor z, Tensor v, Tensor model_out, Tensor anchor, Tensor coef, Tensor row,
               Tensor draw, Tensor key, Tensor stream, Optional uncond_out, Optional uncond_out2,
               Optional guidance, Optional guidance2, Optional noise_scale, Optional noise,
               Optional noise2, Optional z_model) {
  const Arg z_arg("z", z), v_arg("v", v), anchor_arg("anchor", anchor);
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
                      {"noise2", noise2},
                      {},
                      {"z_model", z_model}};
  check_step({"uld_step_", false, 2, false, true, true}, z_arg, v_arg, anchor_arg, t);
  run(z_arg, v_arg, anchor_arg, z_arg, v_arg, anchor_arg, t);
}

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ARDIFF_CUDA_NAMESPACE, ARDIFF_CUDA_KEY, m) {
  m.impl("uld_step", TORCH_BOX(&ardiff::uld_step));
  m.impl("uld_step_", TORCH_BOX(&ardiff::uld_step_));
}
