// brownian_increment for one instruction set; free of torch, built once for each.
//
// The terms of a sample's increment stand where philox_normal has samples: a short sample fills the
// lanes with the quads of several terms. They are summed in order, so that the sum does not depend
// on how many go together.
#include "../../math/brownian.h"
#include "../tile.h"

namespace ARDIFF_NS {
namespace {

/// The normals of a sample's increment as samples of their own: a node is a draw.
struct Terms {
  int64_t count = 0;
  int64_t stream[kMostTerms];
  int32_t node[kMostTerms];
  float coefficient[kMostTerms];

  Terms(const Increment& x, int64_t stream_of_sample) {
    for (int i = 0; i < x.terms; ++i) {
      const PathTerm term = path_term(x, i);
      if (term.coefficient == 0.0f) continue;
      stream[count] = stream_of_sample;
      node[count] = static_cast<int32_t>(term.counter >> 2);
      coefficient[count++] = term.coefficient;
    }
  }
};

}  // namespace

void brownian_increment_tiles(const Tiled<IncrementArgs>& a, int64_t first, int64_t last) {
  NoiseTile<4> noise(a.address);
  float sum[kTile], carry[kTile];
  for (int64_t t = first; t < last; ++t) {
    const Tile tile = tile_at(a.tiling, a.B, a.d, t);
    const int64_t n = tile.length;
    const int64_t together = a.tiling.tiles_per_sample == 1 ? kTile / ((n + 3) / 4 * 4) : 1;
    for (int64_t b = tile.b; b < tile.b + tile.samples; ++b) {
      const Increment x = increment_of(at(a.start, b), at(a.end, b));
      const Terms terms(x, a.address.stream[b]);
      const NoiseAddress nodes{a.address.key, terms.stream, {terms.node, 1}, 0};
      for (int64_t i = 0; i < n; ++i) sum[i] = carry[i] = 0.0f;
      for (int64_t k = 0; k < terms.count; k += together) {
        const Tile part{k, smaller(together, terms.count - k), tile.i0, n};
        fill_noise(noise, nodes, n, part, {});
        for (int64_t s = 0; s < part.samples; ++s) {
          const float* normals = noise.n1 + s * n;
          const float c = terms.coefficient[k + s];
          for_each_lane(n, [&](int64_t i, auto lane) {
            using F = decltype(lane);
            F total = load_as<F>(sum + i), rest = load_as<F>(carry + i);
            add_term(F(c), load_as<F>(normals + i), total, rest);
            store_as(sum + i, total);
            store_as(carry + i, rest);
          });
        }
      }
      write_scaled(a.out, b, tile.i0, n, sum, x.scale);
    }
  }
}

}  // namespace ARDIFF_NS
