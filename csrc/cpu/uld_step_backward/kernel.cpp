// uld_step_backward for one instruction set; free of torch, built once for each.
#include "../tile.h"

namespace ARDIFF_NS {
namespace {

struct alignas(64) Scratch {
  float zeros[kTile] = {};
  float z[kTile], v[kTile], out[kTile], anchor[kTile], n1[kTile], n2[kTile];
};

/// Pointers to one run of elements.
struct Run {
  const float *g_z, *g_v, *g_anchor;
  float *z, *v, *out, *anchor, *n1, *n2;
  int64_t length;
};

template <bool kStart>
void apply(const float* coef, float scale, const Run& run) {
  const Run r = run;
  for_each_lane(
      r.length, [&](auto lane) { return uld_row<decltype(lane)>(coef, scale); },
      [&](int64_t i, auto lane, const auto& row) {
        using F = decltype(lane);
        const UldGradients<F> g = uld_transpose(row, kStart, load_as<F>(r.g_z + i),
                                                load_as<F>(r.g_v + i), load_as<F>(r.g_anchor + i));
        store_as(r.z + i, g.z);
        store_as(r.v + i, g.v);
        store_as(r.out + i, g.out);
        store_as(r.anchor + i, g.anchor);
        store_as(r.n1 + i, g.n1);
        store_as(r.n2 + i, g.n2);
      });
}

}  // namespace

void uld_step_backward_tiles(const Tiled<UldBackwardArgs>& a, int64_t first, int64_t last) {
  Scratch scratch;
  for (int64_t t = first; t < last; ++t) {
    const Tile tile = tile_at(a.tiling, a.B, a.d, t);
    for (int64_t s = 0; s < tile.samples;) {
      const int64_t b = tile.b + s, i0 = tile.i0;
      const int64_t samples = a.packed ? run_length(a, b, tile.samples - s) : 1;
      const int64_t n = samples * tile.length;
      s += samples;
      Run run;
      run.length = n;
      run.g_z = gradient(a.grad_z, b, i0, n, nullptr, scratch.zeros);
      run.g_v = gradient(a.grad_v, b, i0, n, nullptr, scratch.zeros);
      run.g_anchor = gradient(a.grad_anchor, b, i0, n, nullptr, scratch.zeros);
      if (!is_live(a, b)) {
        write(a.z, b, i0, n, run.g_z);
        write(a.v, b, i0, n, run.g_v);
        write(a.anchor, b, i0, n, run.g_anchor);
        const Out* const others[] = {&a.outputs.cond, &a.outputs.uncond, &a.outputs.uncond2, &a.n1,
                                     &a.n2};
        for (const Out* out : others) write(*out, b, i0, n, scratch.zeros);
        continue;
      }
      run.z = float_target(a.z, b, i0, scratch.z);
      run.v = float_target(a.v, b, i0, scratch.v);
      run.out = scratch.out;
      run.anchor = float_target(a.anchor, b, i0, scratch.anchor);
      run.n1 = float_target(a.n1, b, i0, scratch.n1);
      run.n2 = float_target(a.n2, b, i0, scratch.n2);
      const float* coef = row_of(a, b);
      uld_starts_stage(coef) ? apply<true>(coef, scale_of(a, b), run)
                             : apply<false>(coef, scale_of(a, b), run);
      write_outputs(a, a.outputs, b, i0, n, run.out);
    }
  }
}

}  // namespace ARDIFF_NS
