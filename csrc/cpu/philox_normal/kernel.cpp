// philox_normal for one instruction set; free of torch, built once for each.
#include "../tile.h"
#include "words.h"

namespace ARDIFF_NS {

void philox_normal_tiles(const Tiled<NormalArgs>& a, int64_t first, int64_t last) {
  NoiseTile<4> noise(a.address);
  for (int64_t t = first; t < last; ++t) {
    const Tile tile = tile_at(a.tiling, a.B, a.d, t);
    fill_noise(noise, a.address, a.d, tile, {});
    for (int64_t s = 0; s < tile.samples; ++s) {
      write(a.out, tile.b + s, tile.i0, tile.length, noise.n1 + s * a.d);
    }
  }
}

void philox_words(const WordsArgs& a, int64_t first, int64_t last) {
  const RoundKeys keys(a.key);
  uint32_t radius[2 * kCounters], angle[2 * kCounters];
  for (int64_t quad = first; quad < last; quad += kCounters) {
    const VWord quads = VWord(static_cast<uint32_t>(quad)) + lane_quads<2>();
    VCounter c[1][4] = {{to_counter(quads), VCounter(a.counter), VCounter(low_word(a.stream)),
                         VCounter(high_word(a.stream))}};
    philox(c, keys, radius, angle);
    for (int64_t i = 0; i < kCounters && quad + i < last; ++i) {
      const uint32_t words[] = {radius[2 * i], angle[2 * i], radius[2 * i + 1], angle[2 * i + 1]};
      std::memcpy(a.out + 4 * (quad + i), words, sizeof words);
    }
  }
}

}  // namespace ARDIFF_NS
