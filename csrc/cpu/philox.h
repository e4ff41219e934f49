// Philox for loops over many counters, one in each lane.
#pragma once

#include "../math/philox.h"
#include "vec.h"

namespace ARDIFF_NS {

/// The keys of the ten rounds, ready in all lanes.
struct RoundKeys {
  VKey k0[kPhiloxRounds], k1[kPhiloxRounds];

  explicit RoundKeys(int64_t key) {
    for (int round = 0; round < kPhiloxRounds; ++round) {
      k0[round] = VKey(low_word(key) + static_cast<uint32_t>(round) * kPhiloxKeyStep0);
      k1[round] = VKey(high_word(key) + static_cast<uint32_t>(round) * kPhiloxKeyStep1);
    }
  }
};

/// The last round, the only one that needs its words in the order of the lanes.
ARDIFF_INLINE void last_philox_round(const VCounter (&c)[4], VKey k0, VKey k1, VWord (&words)[4]) {
  VWord high0, high1;
  multiply_to_words(c[0], kPhiloxMultiplier0, high0, words[3]);
  multiply_to_words(c[2], kPhiloxMultiplier1, high1, words[1]);
  words[0] = high1 ^ (to_words(c[1]) ^ to_words(k0));
  words[2] = high0 ^ (to_words(c[3]) ^ to_words(k1));
}

/// Ten rounds of kCount vectors of counters side by side: in a vector alone each step waits for the
/// one before.
template <int kCount>
ARDIFF_INLINE void philox(VCounter (&c)[kCount][4], const RoundKeys& keys,
                          VWord (&words)[kCount][4]) {
  constexpr int kLast = kPhiloxRounds - 1;
#pragma GCC unroll 10
  for (int round = 0; round < kLast; ++round) {
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {
      philox_round(c[i][0], c[i][1], c[i][2], c[i][3], keys.k0[round], keys.k1[round]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kCount; ++i) {
    last_philox_round(c[i], keys.k0[kLast], keys.k1[kLast], words[i]);
  }
}

}  // namespace ARDIFF_NS
