// uld_step on the CPU: checks, threads and registration; the kernel is kernel.cpp.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../isa.h"
#include "../launch.h"

ARDIFF_DECLARE_KERNEL(uld_step_tiles, UldArgs)

namespace ardiff {
namespace {

using Optional = std::optional<Tensor>;

void run(const Arg& z, const Arg& v, const Arg& anchor, const Arg& z_new, const Arg& v_new,
         const Arg& anchor_new, const StepTensors& t) {
  UldArgs a;
  fill_step(a, z, t, 2);
  a.z = input(z);
  a.v = input(v);
  a.anchor = input(anchor);
  a.z_new = output(z_new);
  a.v_new = output(v_new);
  a.anchor_new = output(anchor_new);
  for (const Arg* s : {&z, &v, &anchor, &z_new, &v_new, &anchor_new}) {
    a.packed = a.packed && s->row_stride() == a.d;
  }
  run_tiles(uld_step_tiles(), a);
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
  Tensor z_new = empty_like(z_arg, ScalarType::Float);
  Tensor v_new = empty_like(z_arg, ScalarType::Float);
  Tensor anchor_new = empty_like(z_arg, ScalarType::Float);
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

STABLE_TORCH_LIBRARY_IMPL(ardiff, CPU, m) {
  m.impl("uld_step", TORCH_BOX(&ardiff::uld_step));
  m.impl("uld_step_", TORCH_BOX(&ardiff::uld_step_));
}
