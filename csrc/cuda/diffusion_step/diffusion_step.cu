// diffusion_step on CUDA: one row of a diffusion sampler (csrc/math/step.h) on x and memory, in
// place or not, in one launch. A thread takes four neighbouring elements of every tensor in one
// access each and makes their normals from one Philox quad in registers. A bfloat16 state is
// widened at the load and rounded once, at the store. Options are tested at run time, uniformly
// over the grid; only the types and the width of access are compiled in.
#include <cmath>
#include <tuple>

#include "../step_launch.cuh"

namespace ardiff {
namespace {

using Optional = std::optional<Tensor>;

struct DiffusionArgs : StepArgs {
  bool learned_range;  // model_out is [B, 2d]
  float x0_limit;      // infinite: no clamp
  In x, memory;
  Out x_new, memory_new, x0;
};

/// kSecond: memory is [B, 2d], its second half the second memory.
template <class State, bool kSecond, class Model, bool kVector>
struct DiffusionBody {
  ARDIFF_HD static void run(const DiffusionArgs& a, int64_t block, int thread) {
    const Place place = place_of(a.layout, block, thread);
    if (!place.inside) return;
    const int64_t b = place.sample, i = kUnit * place.unit;
    const int n = unit_length<kVector>(a.d, i);
    const Four<float> x = widened(load<State, kVector>(a.x, b, i, n));
    const Four<float> memory = widened(load<State, kVector>(a.memory, b, i, n));
    Four<State> memory2{};  // not widened: two registers less with bfloat16
    if constexpr (kSecond) memory2 = load<State, kVector>(a.memory, b, a.d + i, n);
    const ModelOutputs<Model> outputs = load_outputs<Model, kVector>(a, b, i, n);
    Four<Model> range{};
    if (a.learned_range) range = load<Model, kVector>(a.model_out, b, a.d + i, n);

    Four<float> x_new = x, memory_new = memory, x0 = x;
    bool keep = true, keep_second = true;
    const int64_t row = row_of(a, b);
    if (row >= 0) {
      float c[kColumns];
      load_coefficients<kVector>(a, row, c);
      const DiffusionRow<float> coef = diffusion_row<float>(c);
      keep = diffusion_keeps_memory(c);
      if constexpr (kSecond) keep_second = diffusion_keeps_second_memory(c);
      const float scale = scale_of(a, b);
      const bool learned = a.learned_range && coef.x_n != 0.0f;
      Four<float> normals{};
      if (a.noise.data) {
        normals = load<float, kVector>(a.noise, b, i, n);
      } else if (coef.x_n != 0.0f && scale != 0.0f) {
        normals = quad_normals(step_noise(a, b), static_cast<uint32_t>(place.unit));
      }
      const Four<float> out = guided(a, b, outputs);
      for (int k = 0; k < kUnit; ++k) {
        const float deviation =
            (learned ? learned_deviation(coef, widen(range.v[k])) : coef.x_n) * scale;
        x0.v[k] = clamp(data_prediction(coef, x.v[k], out.v[k]), -a.x0_limit, a.x0_limit);
        const float origin = kSecond ? widen(memory2.v[k]) : memory.v[k];
        const DiffusionState<float> next = diffusion_update(
            coef, keep, x.v[k], x0.v[k], memory.v[k], origin, deviation, normals.v[k]);
        x_new.v[k] = next.x;
        memory_new.v[k] = next.memory;
        if (!keep_second) {
          memory2.v[k] = narrow<State>(second_memory(coef, x.v[k], memory.v[k], origin));
        }
      }
    }
    store<State, kVector>(a.x_new, b, i, n, narrowed<State>(x_new));
    const bool in_place = a.memory_new.data == a.memory.data;
    if (!keep || !in_place) {
      store<State, kVector>(a.memory_new, b, i, n, narrowed<State>(memory_new));
    }
    if constexpr (kSecond) {
      if (!keep_second || !in_place) {
        store<State, kVector>(a.memory_new, b, a.d + i, n, memory2);
      }
    }
    if (a.x0.data) store<State, kVector>(a.x0, b, i, n, narrowed<State>(x0));
    if (a.z_model.data) {
      store<BFloat16, kVector>(a.z_model, b, i, n, narrowed<BFloat16>(x_new));
    }
  }
};

template <class State, bool kSecond>
struct Step {
  template <class Model, bool kVector>
  using Body = DiffusionBody<State, kSecond, Model, kVector>;
};

template <class State>
void launch_state(const DiffusionArgs& a, bool second, ScalarType model, bool vector,
                  int32_t device) {
  second ? launch_step<Step<State, true>::template Body>(a, model, vector, device)
         : launch_step<Step<State, false>::template Body>(a, model, vector, device);
}

void run(const Arg& x, const Arg& memory, const Arg& x_new, const Arg& memory_new, const Arg& x0,
         const StepTensors& t, std::optional<double> x0_clamp) {
  DiffusionArgs a;
  Operands operands(x.width());
  fill_step(a, operands, x, t);
  a.learned_range = t.model_out.width() == 2 * a.d;
  a.x0_limit = static_cast<float>(x0_clamp.value_or(INFINITY));
  a.x = operands.in(x);
  a.memory = operands.in(memory);
  a.x_new = operands.out(x_new);
  a.memory_new = operands.out(memory_new);
  a.x0 = operands.out(x0);
  const ScalarType model = t.model_out.dtype;
  const bool second = memory.width() != a.d;
  if (x.dtype == ScalarType::BFloat16) {
    launch_state<BFloat16>(a, second, model, operands.vector(), x.device_index);
  } else {
    launch_state<float>(a, second, model, operands.vector(), x.device_index);
  }
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
  Tensor x_new = fresh(x_arg, x_arg.dtype);
  Tensor memory_new = fresh(memory_arg, x_arg.dtype);
  Tensor x0 = fresh(x_arg, x_arg.dtype);
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

STABLE_TORCH_LIBRARY_IMPL(ARDIFF_CUDA_NAMESPACE, ARDIFF_CUDA_KEY, m) {
  m.impl("diffusion_step", TORCH_BOX(&ardiff::diffusion_step));
  m.impl("diffusion_step_", TORCH_BOX(&ardiff::diffusion_step_));
}
