// diffusion_step_backward for one instruction set; free of torch, built once for each.
#include "../tile.h"

namespace ARDIFF_NS {
namespace {

struct alignas(64) Scratch {
  explicit Scratch(const NoiseAddress& address) : noise(address) {}

  NoiseTile<4> noise;
  float zeros[kTile] = {};
  float x[kTile], model[kTile], uncond_model[kTile], deviation[kTile];
  float g_x[kTile], g_memory[kTile], g_memory2[kTile], g_memory3[kTile], g_x0[kTile];
  float new_x[kTile], memory[kTile], memory2[kTile], memory3[kTile];
  float out[kTile], uncond[kTile], range[kTile], n[kTile];
};

/// Pointers to one run of elements; `x`, `model` and `uncond_model` are read for the clamp only,
/// `deviation` and `normals` for the learned range only.
struct Run {
  const float *x, *model, *uncond_model, *deviation, *normals;
  const float *g_x, *g_memory, *g_memory2, *g_memory3, *g_x0;
  float *new_x, *memory, *memory2, *memory3, *out, *uncond, *range, *n;
  int64_t length;
};

template <bool kClamped, bool kLearned>
void apply(const DiffusionBackwardArgs& a, const float* coef, float scale, const Run& run) {
  const float fixed = coef[DiffusionColumn::x_n] * scale, limit = a.x0_clamp;
  const DiffusionForm form = diffusion_form(coef, a);
  const bool adds = diffusion_takes_unconditional(coef) && !form.unconditional;
  const Run r = run;
  for_each_lane(
      r.length, [&](auto lane) { return diffusion_row<decltype(lane)>(coef); },
      [&](int64_t i, auto lane, const auto& row) {
        using F = decltype(lane);
        const F g_x = load_as<F>(r.g_x + i), g_memory = load_as<F>(r.g_memory + i);
        F g_0 = data_gradient(row, g_x, g_memory, load_as<F>(r.g_x0 + i)), g_u = F(0.0f);
        if (adds) g_0 = g_0 + unconditional_gradient(row, g_x, g_memory);
        if (form.unconditional) g_u = unconditional_gradient(row, g_x, g_memory);
        if constexpr (kClamped) {
          const F x = load_as<F>(r.x + i);
          const auto within = [&](const float* out, F g) {
            return within_clamp(data_prediction(row, x, load_as<F>(out + i)), F(limit), g);
          };
          g_0 = within(r.model, g_0);
          if (form.unconditional) g_u = within(r.uncond_model, g_u);
        }
        const F deviation = kLearned ? load_as<F>(r.deviation + i) : F(fixed);
        const DiffusionGradients<F> g =
            diffusion_transpose(row, form, g_x, g_memory, load_as<F>(r.g_memory2 + i),
                                load_as<F>(r.g_memory3 + i), g_0, g_u);
        store_as(r.new_x + i, g.x);
        store_as(r.memory + i, g.memory);
        if (form.memories > 1) store_as(r.memory2 + i, g.memory2);
        if (form.memories > 2) store_as(r.memory3 + i, g.memory3);
        store_as(r.out + i, g.out);
        if (form.unconditional) store_as(r.uncond + i, g.uncond);
        store_as(r.n + i, product(deviation, g_x));
        if constexpr (kLearned) {
          store_as(r.range + i, range_gradient(row, deviation, load_as<F>(r.normals + i), g_x));
        }
      });
}

/// Adds the gradient of x0 to that of x, of samples that are finished.
void pass_through(const Run& r, float* sum) {
  for_each_lane(r.length, [&](int64_t i, auto lane) {
    using F = decltype(lane);
    store_as(sum + i, load_as<F>(r.g_x + i) + load_as<F>(r.g_x0 + i));
  });
}

bool is_learned(const DiffusionBackwardArgs& a, int64_t b) {
  return a.learned_range && is_live(a, b) && row_of(a, b)[DiffusionColumn::x_n] != 0.0f;
}

bool needs_noise(const DiffusionBackwardArgs& a, const Tile& tile) {
  if (a.noise.data || !a.outputs.cond.data) return false;
  for (int64_t s = 0; s < tile.samples; ++s) {
    if (is_learned(a, tile.b + s) && scale_of(a, tile.b + s) != 0.0f) return true;
  }
  return false;
}

}  // namespace

void diffusion_step_backward_tiles(const Tiled<DiffusionBackwardArgs>& a, int64_t first,
                                   int64_t last) {
  Scratch scratch{a.address};
  const In grad_memory2 = part_of(a.grad_memory, 1, a.memories, a.d);
  const In grad_memory3 = part_of(a.grad_memory, 2, a.memories, a.d);
  const Out memory2 = part_of(a.memory, 1, a.memories, a.d);
  const Out memory3 = part_of(a.memory, 2, a.memories, a.d);
  for (int64_t t = first; t < last; ++t) {
    const Tile tile = tile_at(a.tiling, a.B, a.d, t);
    const bool noisy = needs_noise(a, tile);
    if (noisy) {
      const Fetch ahead =
          fetch_of(a, tile, {&a.grad_x, &a.grad_memory, &grad_memory2, &grad_memory3, &a.grad_x0});
      fill_noise(scratch.noise, a.address, a.d, tile, ahead);
    }
    for (int64_t s = 0; s < tile.samples;) {
      const int64_t b = tile.b + s, i0 = tile.i0;
      const int64_t samples = a.packed ? run_length(a, b, tile.samples - s) : 1;
      const int64_t n = samples * tile.length;
      s += samples;
      Run run;
      run.length = n;
      run.g_x = gradient(a.grad_x, b, i0, n, scratch.g_x, scratch.zeros);
      run.g_memory = gradient(a.grad_memory, b, i0, n, scratch.g_memory, scratch.zeros);
      run.g_memory2 = gradient(grad_memory2, b, i0, n, scratch.g_memory2, scratch.zeros);
      run.g_memory3 = gradient(grad_memory3, b, i0, n, scratch.g_memory3, scratch.zeros);
      run.g_x0 = gradient(a.grad_x0, b, i0, n, scratch.g_x0, scratch.zeros);
      run.new_x = float_target(a.new_x, b, i0, scratch.new_x);
      run.out = scratch.out;
      run.uncond = scratch.uncond;
      run.range = scratch.range;
      const bool learned = is_learned(a, b);
      if (!is_live(a, b)) {
        pass_through(run, run.new_x);
        write(a.new_x, b, i0, n, run.new_x);
        write(a.memory, b, i0, n, run.g_memory);
        write(memory2, b, i0, n, run.g_memory2);
        write(memory3, b, i0, n, run.g_memory3);
        write(a.outputs.cond, b, i0, n, scratch.zeros);
        write(a.outputs.uncond, b, i0, n, scratch.zeros);
        write(a.outputs.uncond2, b, i0, n, scratch.zeros);
        write(a.n, b, i0, n, scratch.zeros);
      } else {
        const float* coef = row_of(a, b);
        const float scale = scale_of(a, b);
        run.memory = float_target(a.memory, b, i0, scratch.memory);
        run.memory2 = float_target(memory2, b, i0, scratch.memory2);
        run.memory3 = float_target(memory3, b, i0, scratch.memory3);
        run.n = float_target(a.n, b, i0, scratch.n);
        if (a.clamped) {
          run.x = as_float(a.x, b, i0, n, scratch.x);
          run.model = guided_output(a, b, i0, n, scratch.model);
          if (a.uncond_out.data) {
            run.uncond_model = as_float(a.uncond_out, b, i0, n, scratch.uncond_model);
          }
        }
        if (learned) {
          fill_deviation(a, coef, scale, b, i0, n, scratch.deviation);
          // Without noise the deviation is zero, or the gradient is not wanted.
          run.normals = a.noise.data
                            ? address<float>(a.noise, b, i0)
                            : (noisy ? scratch.noise.n1 + (b - tile.b) * a.d : scratch.zeros);
        }
        run.deviation = scratch.deviation;
        if (learned) {
          a.clamped ? apply<true, true>(a, coef, scale, run)
                    : apply<false, true>(a, coef, scale, run);
        } else {
          a.clamped ? apply<true, false>(a, coef, scale, run)
                    : apply<false, false>(a, coef, scale, run);
        }
        write(a.new_x, b, i0, n, run.new_x);
        write(a.memory, b, i0, n, run.memory);
        write(memory2, b, i0, n, run.memory2);
        write(memory3, b, i0, n, run.memory3);
        write(a.n, b, i0, n, run.n);
        const bool unconditional = diffusion_form(coef, a).unconditional;
        write_outputs(a, a.outputs, b, i0, n, run.out, unconditional ? run.uncond : nullptr);
      }
      if (a.learned_range) {
        write(a.outputs.cond, b, a.d + i0, n, learned ? run.range : scratch.zeros);
        write(a.outputs.uncond, b, a.d + i0, n, scratch.zeros);
        write(a.outputs.uncond2, b, a.d + i0, n, scratch.zeros);
      }
    }
  }
}

}  // namespace ARDIFF_NS
