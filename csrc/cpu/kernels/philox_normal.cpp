// philox_normal for one instruction set; free of torch, built once for each.
#include "../tile.h"

namespace ARDIFF_NS {

void philox_normal_tiles(const NormalArgs& a, int64_t first, int64_t last) {
  NoiseTile<4> noise(a.address);
  for (int64_t t = first; t < last; ++t) {
    const Tile tile = tile_at(a.tiling, a.B, a.d, t);
    fill_noise(noise, a.address, a.d, tile);
    for (int64_t s = 0; s < tile.samples; ++s) {
      write(a.out, tile.b + s, tile.i0, tile.length, noise.n1 + s * a.d);
    }
  }
}

}  // namespace ARDIFF_NS
