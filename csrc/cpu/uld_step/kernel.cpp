// uld_step for one instruction set; free of torch, built once for each.
#include "../tile.h"

namespace ARDIFF_NS {
namespace {

struct alignas(64) Scratch {
  explicit Scratch(const NoiseAddress& address) : noise(address) {}

  NoiseTile<2> noise;
  float out[kTile];
};

alignas(64) constexpr float kZeros[kTile] = {};

/// Pointers to one run of elements.
struct Run {
  const float *z, *v, *out, *anchor, *n1, *n2;
  float *z_new, *v_new, *anchor_new;
  int64_t length;
};

template <bool kStart, bool kWriteAnchor>
void apply(const float* coef, float scale, const Run& run) {
  const Run r = run;
  // A term that is dropped reads zeros: a mask for each would not fit the registers.
  const UldRow<float> c = uld_row<float>(coef, scale);
  const auto of = [](float weight, const float* p) { return weight != 0.0f ? p : kZeros; };
  const UldTerms<const float*> t{of(c.z_v, r.v), of(c.z_o, r.out), of(c.z_1, r.n1), of(c.z_2, r.n2),
                                 of(c.v_v, r.v), of(c.v_o, r.out), of(c.v_1, r.n1)};
  for_each_lane(
      r.length, [&](auto lane) { return uld_row<decltype(lane)>(coef, scale); },
      [&](int64_t i, auto lane, const auto& row) {
        using F = decltype(lane);
        const UldTerms<F> terms{load_as<F>(t.z_v + i), load_as<F>(t.z_o + i), load_as<F>(t.z_1 + i),
                                load_as<F>(t.z_2 + i), load_as<F>(t.v_v + i), load_as<F>(t.v_o + i),
                                load_as<F>(t.v_1 + i)};
        const UldState<F> next =
            uld_update(row, kStart, load_as<F>(r.z + i), load_as<F>(r.anchor + i), terms);
        store_as(r.z_new + i, next.z);
        store_as(r.v_new + i, next.v);
        if constexpr (kWriteAnchor) store_as(r.anchor_new + i, next.anchor);
      });
}

bool needs_noise(const UldArgs& a, const Tile& tile) {
  if (a.noise.data) return false;
  for (int64_t s = 0; s < tile.samples; ++s) {
    if (!is_live(a, tile.b + s)) continue;
    const float* c = row_of(a, tile.b + s);
    const float scale = scale_of(a, tile.b + s);
    for (int column : {UldColumn::z_1, UldColumn::z_2, UldColumn::v_1}) {
      if (c[column] * scale != 0.0f) return true;
    }
  }
  return false;
}

}  // namespace

void uld_step_tiles(const Tiled<UldArgs>& a, int64_t first, int64_t last) {
  Scratch scratch{a.address};
  for (int64_t t = first; t < last; ++t) {
    const Tile tile = tile_at(a.tiling, a.B, a.d, t);
    const bool noisy = needs_noise(a, tile);
    if (noisy) {
      fill_noise(scratch.noise, a.address, a.d, tile, fetch_of(a, tile, {&a.z, &a.v, &a.anchor}));
    }
    for (int64_t s = 0; s < tile.samples;) {
      const int64_t b = tile.b + s, i0 = tile.i0;
      const int64_t samples = a.packed ? run_length(a, b, tile.samples - s) : 1;
      const int64_t n = samples * tile.length;
      const float* z = address<float>(a.z, b, i0);
      if (!is_live(a, b)) {
        write(a.z_new, b, i0, n, z);
        write(a.v_new, b, i0, n, address<float>(a.v, b, i0));
        write(a.anchor_new, b, i0, n, address<float>(a.anchor, b, i0));
        write(a.z_model, b, i0, n, z);
        s += samples;
        continue;
      }
      Run run;
      run.z = z;
      run.v = address<float>(a.v, b, i0);
      run.anchor = address<float>(a.anchor, b, i0);
      run.out = guided_output(a, b, i0, n, scratch.out);
      // Where they are not made, their coefficients are zero.
      run.n1 = a.noise.data ? address<float>(a.noise, b, i0) : scratch.noise.n1 + s * a.d;
      run.n2 = a.noise2.data ? address<float>(a.noise2, b, i0) : scratch.noise.n2 + s * a.d;
      run.z_new = address<float>(a.z_new, b, i0);
      run.v_new = address<float>(a.v_new, b, i0);
      run.anchor_new = address<float>(a.anchor_new, b, i0);
      run.length = n;
      const float* coef = row_of(a, b);
      if (uld_starts_stage(coef)) {
        apply<true, true>(coef, scale_of(a, b), run);
      } else if (run.anchor_new != run.anchor) {
        apply<false, true>(coef, scale_of(a, b), run);
      } else {
        apply<false, false>(coef, scale_of(a, b), run);
      }
      write(a.z_model, b, i0, n, run.z_new);
      s += samples;
    }
  }
}

}  // namespace ARDIFF_NS
