// diffusion_step for one instruction set; free of torch, built once for each.
#include "../tile.h"

namespace ARDIFF_NS {
namespace {

struct alignas(64) Scratch {
  explicit Scratch(const NoiseAddress& address) : noise(address) {}

  NoiseTile<4> noise;
  float x[kTile], memory[kTile], memory2[kTile], memory3[kTile];
  float out[kTile], uncond[kTile], deviation[kTile];
  float x_new[kTile], memory_new[kTile], memory2_new[kTile], memory3_new[kTile], x0[kTile];
};

/// Pointers to one run of elements; x0 and the new memories null: not wanted; memory3 and uncond
/// null: the row does not read them, or there are none.
struct Run {
  const float *x, *memory, *memory2, *memory3, *out, *uncond, *deviation, *n;
  float *x_new, *memory_new, *memory2_new, *memory3_new, *x0;
  int64_t length;
};

/// kMore: diffusion_has_more_terms of the row.
template <bool kLearned, bool kKeepMemory, bool kSecond, bool kMore>
void apply(const DiffusionArgs& a, const float* coef, float scale, const Run& run) {
  const float fixed = coef[DiffusionColumn::x_n] * scale;
  const float limit = a.x0_limit;
  const Run r = run;
  for_each_lane(
      r.length, [&](auto lane) { return diffusion_row<decltype(lane)>(coef); },
      [&](int64_t i, auto lane, const auto& row) {
        using F = decltype(lane);
        const F x = load_as<F>(r.x + i), memory = load_as<F>(r.memory + i);
        const F origin = kSecond ? load_as<F>(r.memory2 + i) : memory;
        const auto prediction = [&](const float* out) {
          return clamp(data_prediction(row, x, load_as<F>(out + i)), F(-limit), F(limit));
        };
        const F x0 = prediction(r.out);
        MoreTerms<F> more{};
        if constexpr (kMore) {
          const F memory3 = r.memory3 ? load_as<F>(r.memory3 + i) : F(0.0f);
          more = more_terms(row, memory3, r.uncond ? prediction(r.uncond) : x0);
        }
        const F deviation = kLearned ? load_as<F>(r.deviation + i) : F(fixed);
        const DiffusionState<F> next = diffusion_update(row, kKeepMemory, x, x0, memory, origin,
                                                        deviation, load_as<F>(r.n + i), more);
        store_as(r.x_new + i, next.x);
        if (r.memory_new) store_as(r.memory_new + i, next.memory);
        if (kSecond && r.memory2_new) {
          store_as(r.memory2_new + i, second_memory(row, x, memory, origin));
        }
        if (kSecond && r.memory3_new) store_as(r.memory3_new + i, third_memory(row, origin));
        if (r.x0) store_as(r.x0 + i, x0);
      });
}

template <bool kSecond, bool kMore>
void apply(const DiffusionArgs& a, const float* coef, float scale, bool learned, const Run& run) {
  const bool keep = diffusion_keeps_memory(coef);
  if (learned) {
    keep ? apply<true, true, kSecond, kMore>(a, coef, scale, run)
         : apply<true, false, kSecond, kMore>(a, coef, scale, run);
  } else {
    keep ? apply<false, true, kSecond, kMore>(a, coef, scale, run)
         : apply<false, false, kSecond, kMore>(a, coef, scale, run);
  }
}

void apply(const DiffusionArgs& a, const float* coef, float scale, bool learned, const Run& run) {
  const bool more = diffusion_has_more_terms(coef);
  if (a.memories > 1) {
    more ? apply<true, true>(a, coef, scale, learned, run)
         : apply<true, false>(a, coef, scale, learned, run);
  } else {
    more ? apply<false, true>(a, coef, scale, learned, run)
         : apply<false, false>(a, coef, scale, learned, run);
  }
}

bool needs_noise(const DiffusionArgs& a, const Tile& tile) {
  if (a.noise.data) return false;
  for (int64_t s = 0; s < tile.samples; ++s) {
    if (!is_live(a, tile.b + s)) continue;
    const float x_n = row_of(a, tile.b + s)[DiffusionColumn::x_n], scale = scale_of(a, tile.b + s);
    if (a.learned_range ? x_n != 0.0f && scale != 0.0f : x_n * scale != 0.0f) return true;
  }
  return false;
}

}  // namespace

void diffusion_step_tiles(const Tiled<DiffusionArgs>& a, int64_t first, int64_t last) {
  Scratch scratch{a.address};
  const In memory2 = part_of(a.memory, 1, a.memories, a.d);
  const In memory3 = part_of(a.memory, 2, a.memories, a.d);
  const Out memory2_new = part_of(a.memory_new, 1, a.memories, a.d);
  const Out memory3_new = part_of(a.memory_new, 2, a.memories, a.d);
  for (int64_t t = first; t < last; ++t) {
    const Tile tile = tile_at(a.tiling, a.B, a.d, t);
    const bool noisy = needs_noise(a, tile);
    if (noisy) {
      fill_noise(scratch.noise, a.address, a.d, tile,
                 fetch_of(a, tile, {&a.x, &a.memory, &memory2, &memory3}));
    }
    for (int64_t s = 0; s < tile.samples;) {
      const int64_t b = tile.b + s, i0 = tile.i0;
      const int64_t samples = a.packed ? run_length(a, b, tile.samples - s) : 1;
      const int64_t n = samples * tile.length;
      s += samples;
      Run run{};
      run.length = n;
      run.x = as_float(a.x, b, i0, n, scratch.x);
      run.memory = as_float(a.memory, b, i0, n, scratch.memory);
      if (memory2.data) run.memory2 = as_float(memory2, b, i0, n, scratch.memory2);
      if (memory3.data) run.memory3 = as_float(memory3, b, i0, n, scratch.memory3);
      if (!is_live(a, b)) {
        write(a.x_new, b, i0, n, run.x);
        write(a.memory_new, b, i0, n, run.memory);
        write(memory2_new, b, i0, n, run.memory2);
        write(memory3_new, b, i0, n, run.memory3);
        write(a.x0, b, i0, n, run.x);
        write(a.z_model, b, i0, n, run.x);
        continue;
      }
      const float* coef = row_of(a, b);
      const float scale = scale_of(a, b);
      const bool learned = a.learned_range && coef[DiffusionColumn::x_n] != 0.0f;
      run.out = guided_output(a, b, i0, n, scratch.out);
      if (a.uncond_out.data && diffusion_takes_unconditional(coef)) {
        run.uncond = as_float(a.uncond_out, b, i0, n, scratch.uncond);
      }
      // Without noise the deviation is zero: x stands in for the normals, and is dropped.
      run.n = a.noise.data ? address<float>(a.noise, b, i0)
                           : (noisy ? scratch.noise.n1 + (s - samples) * a.d : run.x);
      if (learned) fill_deviation(a, coef, scale, b, i0, n, scratch.deviation);
      run.deviation = scratch.deviation;
      run.x_new = float_target(a.x_new, b, i0, scratch.x_new);
      run.memory_new = float_target(a.memory_new, b, i0, scratch.memory_new);
      run.x0 = a.x0.data ? float_target(a.x0, b, i0, scratch.x0) : nullptr;
      const bool in_place = a.memory_new.data == a.memory.data;
      if (in_place && diffusion_keeps_memory(coef)) run.memory_new = nullptr;
      if (memory2.data && !diffusion_keeps_second_memory(coef)) {
        run.memory2_new = float_target(memory2_new, b, i0, scratch.memory2_new);
      }
      if (memory3.data && !diffusion_keeps_third_memory(coef)) {
        run.memory3_new = float_target(memory3_new, b, i0, scratch.memory3_new);
      }
      apply(a, coef, scale, learned, run);
      if (run.memory2_new || !in_place) {
        write(memory2_new, b, i0, n, run.memory2_new ? run.memory2_new : run.memory2);
      }
      if (run.memory3_new || !in_place) {
        write(memory3_new, b, i0, n, run.memory3_new ? run.memory3_new : run.memory3);
      }
      write(a.x_new, b, i0, n, run.x_new);
      if (run.memory_new) write(a.memory_new, b, i0, n, run.memory_new);
      if (run.x0) write(a.x0, b, i0, n, run.x0);
      write(a.z_model, b, i0, n, run.x_new);
    }
  }
}

}  // namespace ARDIFF_NS
