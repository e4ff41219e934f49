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
  for (int64_t quad = first; quad < last; quad += kLanes) {
    uint32_t index[kLanes], lanes[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) index[lane] = static_cast<uint32_t>(quad + lane);
    VCounter c[1][4] = {{to_counter(load(index)), VCounter(a.counter), VCounter(low_word(a.stream)),
                         VCounter(high_word(a.stream))}};
    VWord words[1][4];
    philox(c, keys, words);
    for (int w = 0; w < 4; ++w) {
      store(lanes, words[0][w]);
      for (int64_t lane = 0; lane < kLanes && quad + lane < last; ++lane) {
        a.out[4 * (quad + lane) + w] = lanes[lane];
      }
    }
  }
}

}  // namespace ARDIFF_NS
