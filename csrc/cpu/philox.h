// Philox for loops over many counters.
#pragma once

#include "../math/philox.h"
#include "vec.h"

namespace ARDIFF_NS {

constexpr int kLastRound = kPhiloxRounds - 1;

/// The keys of the ten rounds, ready in all lanes.
struct RoundKeys {
  VCounter k0[kPhiloxRounds], k1[kPhiloxRounds];

  explicit RoundKeys(int64_t key) {
    for (int round = 0; round < kPhiloxRounds; ++round) {
      k0[round] = VCounter(low_word(key) + static_cast<uint32_t>(round) * kPhiloxKeyStep0);
      k1[round] = VCounter(high_word(key) + static_cast<uint32_t>(round) * kPhiloxKeyStep1);
    }
  }
};

/// All rounds but the last of kCount VCounters side by side: in one alone each step waits for the
/// one before.
template <int kCount>
ARDIFF_INLINE void first_philox_rounds(VCounter (&c)[kCount][4], const RoundKeys& keys) {
#pragma GCC unroll 10
  for (int round = 0; round < kLastRound; ++round) {
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {
      philox_round(c[i][0], c[i][1], c[i][2], c[i][3], keys.k0[round], keys.k1[round]);
    }
  }
}

/// The last round. Of each quad in turn, words 0 and 2 go to `radius`, words 1 and 3 to `angle`.
ARDIFF_INLINE void last_philox_round(VCounter (&c)[4], VCounter k0, VCounter k1, uint32_t* radius,
                                     uint32_t* angle) {
#if ARDIFF_LANES == 1
  philox_round(c[0], c[1], c[2], c[3], k0, k1);
  radius[0] = c[0];
  radius[1] = c[2];
  angle[0] = c[1];
  angle[1] = c[3];
#else
  const VCounter product0 = multiply_low_halves(c[0], kPhiloxMultiplier0);
  const VCounter product1 = multiply_low_halves(c[2], kPhiloxMultiplier1);
  const VWord mixed = join_low_halves(c[1], c[3]) ^ join_low_halves(k0, k1);
  store(radius, join_high_halves(product1, product0) ^ mixed);
  store(angle, join_low_halves(product1, product0));
#endif
}

/// The words of the quads of kCount VCounters.
template <int kCount>
ARDIFF_INLINE void philox(VCounter (&c)[kCount][4], const RoundKeys& keys, uint32_t* radius,
                          uint32_t* angle) {
  first_philox_rounds(c, keys);
#pragma GCC unroll 4
  for (int i = 0; i < kCount; ++i) {
    const int64_t word = 2 * kCounters * i;
    last_philox_round(c[i], keys.k0[kLastRound], keys.k1[kLastRound], radius + word, angle + word);
  }
}

/// Word 0 of a quad in each lane, from its counter words.
ARDIFF_INLINE VWord first_words(VWord c0, VWord c1, VWord c2, VWord c3, const RoundKeys& keys) {
#if ARDIFF_LANES == 1
  VCounter c[1][4] = {{c0, c1, c2, c3}};
  uint32_t radius[2], angle[2];
  philox(c, keys, radius, angle);
  return radius[0];
#else
  const VWord words[] = {c0, c1, c2, c3};
  VCounter c[2][4];  // of the even and of the odd lanes
  for (int i = 0; i < 4; ++i) {
    c[0][i] = to_counter(words[i]);
    c[1][i] = high_halves(c[0][i]);
  }
  first_philox_rounds(c, keys);
  const VCounter k0 = keys.k0[kLastRound];
  return join_high_halves(multiply_low_halves(c[0][2], kPhiloxMultiplier1),
                          multiply_low_halves(c[1][2], kPhiloxMultiplier1)) ^
         (join_low_halves(c[0][1], c[1][1]) ^ join_low_halves(k0, k0));
#endif
}

}  // namespace ARDIFF_NS
