// Addressed normals of a tile of samples into scratch, one quad of Philox words per lane.
#pragma once

#include "../math/noise_address.h"
#include "../math/normal.h"
#include "../math/philox.h"
#include "args.h"
#include "vec.h"

namespace ARDIFF_NS {

/// Scratch of one thread. kPerQuad: 4 when an element takes one normal, 2 when it takes a pair.
template <int kPerQuad>
struct alignas(64) NoiseTile {
  static constexpr int64_t kQuads = kTile / kPerQuad;
  static constexpr int64_t kPadding = kPerQuad * kLanes;
  float n1[kTile + kPadding];
  float n2[kPerQuad == 2 ? kTile + kPadding : 1];
  uint32_t c0[kQuads + kLanes], c1[kQuads + kLanes], c2[kQuads + kLanes], c3[kQuads + kLanes];
  uint32_t words[4][kQuads + kLanes];
  RoundKeys<VKey> keys;
  int64_t quads_laid_out = 0;  // quads per sample for which c0 holds 0, 1, ... again and again

  explicit NoiseTile(const NoiseAddress& address) { set_round_keys(keys, *address.key); }
};

/// A tile's tensors, which are fetched into the cache while its noise is made.
class Fetch {
 public:
  ARDIFF_INLINE void add(const void* data, int64_t stride, int64_t element_bytes, int64_t b,
                         int64_t i0) {
    if (!data) return;
    bytes_[count_] = element_bytes;
    start_[count_++] = static_cast<const char*>(data) + (b * stride + i0) * element_bytes;
  }

  /// The elements of kLanes quads.
  template <int kPerQuad>
  ARDIFF_INLINE void fetch(int64_t quad) const {
    for (int k = 0; k < count_; ++k) {
      const char* p = start_[k] + quad * kPerQuad * bytes_[k];
      const char* const stop = p + kLanes * kPerQuad * bytes_[k];
      for (; p < stop; p += kLine) __builtin_prefetch(p);
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  const char* start_[8];
  int64_t bytes_[8];
  int count_ = 0;
};

ARDIFF_INLINE uint32_t counter_of(const NoiseAddress& a, int64_t b) {
  return a.draw.data ? counter_word(a.draw.data[b * a.draw.step], kStepNoise) : a.counter;
}

/// The words of kLanes quads, from their counters.
template <int kPerQuad>
ARDIFF_INLINE void words_of_quads(NoiseTile<kPerQuad>& tile, int64_t quad, VCounter c0, VCounter c1,
                                  VCounter c2, VCounter c3) {
  philox(c0, c1, c2, c3, tile.keys);
  store(tile.words[0] + quad, to_words(c0));
  store(tile.words[1] + quad, to_words(c1));
  store(tile.words[2] + quad, to_words(c2));
  store(tile.words[3] + quad, to_words(c3));
}

/// The normals of `quads` quads from their words. A loop of its own: both bodies are long chains,
/// and only in short ones does the CPU reach into the next iterations to fill its waits.
template <int kPerQuad>
ARDIFF_INLINE void normals_of_words(NoiseTile<kPerQuad>& tile, int64_t quads) {
  for (int64_t quad = 0; quad < quads; quad += kLanes) {
    VFloat a, b, c, d;
    normal_pair<VFloat>(load(tile.words[0] + quad), load(tile.words[1] + quad), a, b);
    normal_pair<VFloat>(load(tile.words[2] + quad), load(tile.words[3] + quad), c, d);
    if constexpr (kPerQuad == 2) {
      store_pairs(tile.n1 + 2 * quad, a, c);
      store_pairs(tile.n2 + 2 * quad, b, d);
    } else {
      store_quads(tile.n1 + 4 * quad, a, b, c, d);
    }
  }
}

/// Quads [first, first + count) of sample b.
template <int kPerQuad>
__attribute__((noinline)) inline void fill_one_sample(NoiseTile<kPerQuad>& tile,
                                                      const NoiseAddress& address, int64_t b,
                                                      int64_t first, int64_t count,
                                                      const Fetch& ahead) {
  const VCounter c1(counter_of(address, b));
  const VCounter c2(low_word(address.stream[b])), c3(high_word(address.stream[b]));
  VWord quads = VWord(static_cast<uint32_t>(first)) + lane_quads<kPerQuad>();
  for (int64_t quad = 0; quad < count; quad += kLanes) {
    ahead.fetch<kPerQuad>(quad);
    words_of_quads(tile, quad, to_counter(quads), c1, c2, c3);
    quads = quads + VWord(static_cast<uint32_t>(kLanes));
  }
  normals_of_words(tile, count);
}

/// All quads of samples [b, b + samples), `count` each, side by side in the lanes.
template <int kPerQuad>
__attribute__((noinline)) inline void fill_samples(NoiseTile<kPerQuad>& tile,
                                                   const NoiseAddress& address, int64_t b,
                                                   int64_t samples, int64_t count,
                                                   const Fetch& ahead) {
  if (tile.quads_laid_out != count) {
    int64_t quad = 0;
    for (int64_t i = 0; i < NoiseTile<kPerQuad>::kQuads + kLanes; ++i) {
      tile.c0[i] = static_cast<uint32_t>(quad);
      quad = quad + 1 == count ? 0 : quad + 1;
      tile.c1[i] = tile.c2[i] = tile.c3[i] = 0;
    }
    tile.quads_laid_out = count;
  }
  for (int64_t s = 0; s < samples; ++s) {
    const uint32_t counter = counter_of(address, b + s);
    const uint32_t low = low_word(address.stream[b + s]), high = high_word(address.stream[b + s]);
    for (int64_t i = s * count; i < (s + 1) * count; ++i) {
      tile.c1[i] = counter;
      tile.c2[i] = low;
      tile.c3[i] = high;
    }
  }
  const VWord lanes = lane_quads<kPerQuad>();
  for (int64_t quad = 0; quad < samples * count; quad += kLanes) {
    ahead.fetch<kPerQuad>(quad);
    words_of_quads(tile, quad, to_counter(permute(load(tile.c0 + quad), lanes)),
                   to_counter(permute(load(tile.c1 + quad), lanes)),
                   to_counter(permute(load(tile.c2 + quad), lanes)),
                   to_counter(permute(load(tile.c3 + quad), lanes)));
  }
  normals_of_words(tile, samples * count);
}

}  // namespace ARDIFF_NS
