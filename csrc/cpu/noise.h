// Addressed normals of a tile of samples into scratch.
#pragma once

#include "../math/noise_address.h"
#include "../math/normal.h"
#include "args.h"
#include "philox.h"

namespace ARDIFF_NS {

/// Quads whose words are made side by side.
constexpr int64_t kStep = kInFlight * kCounters;

/// Scratch of one thread. kPerQuad: 4 when an element takes one normal, 2 when it takes a pair.
template <int kPerQuad>
struct alignas(64) NoiseTile {
  static constexpr int64_t kQuads = kTile / kPerQuad;
  static constexpr int64_t kSlots = kQuads + kStep;
  static constexpr int64_t kPadding = kPerQuad * kLanes;
  float n1[kTile + kPadding];
  float n2[kPerQuad == 2 ? kTile + kPadding : 1];
  uint32_t c0[kSlots + kLanes], c1[kSlots + kLanes], c2[kSlots + kLanes], c3[kSlots + kLanes];
  uint32_t radius[2 * kSlots], angle[2 * kSlots];  // the words of two pairs of normals a quad
  RoundKeys keys;
  int64_t quads_laid_out = 0;  // quads per sample for which c0 holds 0, 1, ... again and again

  explicit NoiseTile(const NoiseAddress& address) : keys(*address.key) {}
};

/// A tile's tensors, which are fetched into the cache while its noise is made: half of them with
/// its words, half with its normals, since all at once would wait for the memory.
class Fetch {
 public:
  ARDIFF_INLINE void add(const void* data, int64_t stride, int64_t element_bytes, int64_t b,
                         int64_t i0) {
    if (!data) return;
    bytes_[count_] = element_bytes;
    start_[count_++] = static_cast<const char*>(data) + (b * stride + i0) * element_bytes;
  }

  /// `count` elements from element i on of every other tensor, from the first (turn 0) or the
  /// second (turn 1).
  ARDIFF_INLINE void fetch(int turn, int64_t i, int64_t count) const {
    for (int k = turn; k < count_; k += 2) {
      const char* p = start_[k] + i * bytes_[k];
      const char* const stop = p + count * bytes_[k];
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

/// The words of kStep quads from counters(i), those of the i-th kCounters of them.
template <int kPerQuad, class Counters>
ARDIFF_INLINE void words_of_quads(NoiseTile<kPerQuad>& tile, int64_t quad, Counters counters) {
  VCounter c[kInFlight][4];
#pragma GCC unroll 4
  for (int i = 0; i < kInFlight; ++i) counters(i, c[i]);
  philox(c, tile.keys, tile.radius + 2 * quad, tile.angle + 2 * quad);
}

/// The normals of `quads` quads from their words. A loop of its own: both bodies are long chains,
/// and only in short ones does the CPU reach into the next iterations to fill its waits.
template <int kPerQuad>
ARDIFF_INLINE void normals_of_words(NoiseTile<kPerQuad>& tile, int64_t quads, const Fetch& ahead) {
  constexpr int64_t kPairs = 2 * kLanes, kElements = kPerQuad * kLanes;
  for (int64_t pair = 0; pair < 2 * quads; pair += kPairs) {
    ahead.fetch(1, pair * kPerQuad / 2, kElements);
    VFloat a, b, c, d;
    normal_pair<VFloat>(load(tile.radius + pair), load(tile.angle + pair), a, b);
    normal_pair<VFloat>(load(tile.radius + pair + kLanes), load(tile.angle + pair + kLanes), c, d);
    if constexpr (kPerQuad == 2) {
      store(tile.n1 + pair, a);
      store(tile.n1 + pair + kLanes, c);
      store(tile.n2 + pair, b);
      store(tile.n2 + pair + kLanes, d);
    } else {
      store_alternating(tile.n1 + 2 * pair, a, b);
      store_alternating(tile.n1 + 2 * pair + 2 * kLanes, c, d);
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
  for (int64_t quad = 0; quad < count; quad += kStep) {
    ahead.fetch(0, kPerQuad * quad, kPerQuad * kStep);
    words_of_quads(tile, quad, [&](int, VCounter(&c)[4]) {
      c[0] = to_counter(quads);
      c[1] = c1;
      c[2] = c2;
      c[3] = c3;
      quads = quads + VWord(static_cast<uint32_t>(kCounters));
    });
  }
  normals_of_words(tile, count, ahead);
}

/// All quads of samples [b, b + samples), `count` each, side by side in the lanes.
template <int kPerQuad>
__attribute__((noinline)) inline void fill_samples(NoiseTile<kPerQuad>& tile,
                                                   const NoiseAddress& address, int64_t b,
                                                   int64_t samples, int64_t count,
                                                   const Fetch& ahead) {
  if (tile.quads_laid_out != count) {
    int64_t quad = 0;
    for (int64_t i = 0; i < NoiseTile<kPerQuad>::kSlots + kLanes; ++i) {
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
  for (int64_t quad = 0; quad < samples * count; quad += kStep) {
    ahead.fetch(0, kPerQuad * quad, kPerQuad * kStep);
    words_of_quads(tile, quad, [&](int i, VCounter(&c)[4]) {
      const int64_t k = quad + i * kCounters;
      c[0] = to_counter(permute(load(tile.c0 + k), lanes));
      c[1] = to_counter(permute(load(tile.c1 + k), lanes));
      c[2] = to_counter(permute(load(tile.c2 + k), lanes));
      c[3] = to_counter(permute(load(tile.c3 + k), lanes));
    });
  }
  normals_of_words(tile, samples * count, ahead);
}

}  // namespace ARDIFF_NS
