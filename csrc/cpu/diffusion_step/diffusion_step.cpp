// diffusion_step on the CPU: checks, threads and registration;
// the kernel is kernel.cpp.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../isa.h"
#include "../launch.h"

ARDIFF_DECLARE_KERNEL(diffusion_step_tiles, DiffusionArgs)

namespace ardiff {
namespace {

using Optional = std::optional<Tensor>;

void run(const Arg& x, const Arg& memory, const Arg& x_new, const Arg& memory_new, const Arg& x0,
         const StepTensors& t, std::optional<double> x0_clamp) {
  DiffusionArgs a;
  fill_step(a, x, t, 4);
  a.learned_range = t.model_out.width() == 2 * a.d;
  a.clamped = x0_clamp.has_value();
  a.x0_clamp = static_cast<float>(x0_clamp.value_or(0.0));
  a.x = input(x);
  a.memory = input(memory);
  a.memory2 = {};
  a.x_new = output(x_new);
  a.memory_new = output(memory_new);
  a.memory2_new = {};
  if (memory.width() != a.d) {
    a.memory2 = second_half(a.memory, a.d);
    a.memory2_new = second_half(a.memory_new, a.d);
  }
  a.x0 = output(x0);
  for (const Arg* s : {&x, &memory, &x_new, &memory_new, &x0}) {
    a.packed = a.packed && (!s->given() || s->row_stride() == a.d);
  }
  run_tiles(diffusion_step_tiles(), a);
}

std::tuple<Tensor, Tensor, Tensor> diffusion_step(Tensor x, Tensor model_out, Tensor memory,
                                                  Tensor coef, Tensor row, Tensor draw, Tensor key,
                                                  Tensor stream, Optional uncond_out,
                                                  Optional uncond_out2, Optional guidance,
                                                  Optional guidance2, Optional noise_scale,
                                                  Optional noise, std::optional<double> x0_clamp) {
  const Arg x_arg("x", x), memory_arg("memory", memory);
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
                      {},
                      {},
                      {}};
  check_step({"diffusion_step", true, 4, true, false, false, true}, x_arg, memory_arg, {}, t);
  check_x0_clamp("diffusion_step", x0_clamp);
  Tensor x_new = empty_like(x_arg, x_arg.dtype);
  Tensor memory_new = empty_like(memory_arg, x_arg.dtype);
  Tensor x0 = empty_like(x_arg, x_arg.dtype);
  run(x_arg, memory_arg, Arg("x", x_new), Arg("memory", memory_new), Arg("x0", x0), t, x0_clamp);
  return {x_new, memory_new, x0};
}

void diffusion_step_(Tensor x, Tensor model_out, Tensor memory, Tensor coef, Tensor row,
                     Tensor draw, Tensor key, Tensor stream, Optional uncond_out,
                     Optional uncond_out2, Optional guidance, Optional guidance2,
                     Optional noise_scale, Optional noise, std::optional<double> x0_clamp,
                     Optional x0, Optional z_model) {
  const Arg x_arg("x", x), memory_arg("memory", memory);
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
                      {},
                      {"x0", x0},
                      {"z_model", z_model}};
  check_step({"diffusion_step_", true, 4, true, false, true, true}, x_arg, memory_arg, {}, t);
  check_x0_clamp("diffusion_step_", x0_clamp);
  run(x_arg, memory_arg, x_arg, memory_arg, t.x0, t, x0_clamp);
}

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ardiff, CPU, m) {
  m.impl("diffusion_step", TORCH_BOX(&ardiff::diffusion_step));
  m.impl("diffusion_step_", TORCH_BOX(&ardiff::diffusion_step_));
}
