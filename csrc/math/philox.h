// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3; SC 2011)
// on the words of noise_address.h.
#pragma once

#include "lane.h"
#include "noise_address.h"

namespace ARDIFF_NS {

constexpr int kPhiloxRounds = 10;

template <class U, class K>
ARDIFF_HD void philox_round(U& c0, U& c1, U& c2, U& c3, K k0, K k1) {
  U high0, low0, high1, low1;
  multiply_wide(c0, 0xD2511F53u, high0, low0);
  multiply_wide(c2, 0xCD9E8D57u, high1, low1);
  c0 = high1 ^ (c1 ^ k0);
  c1 = low1;
  c2 = high0 ^ (c3 ^ k1);
  c3 = low0;
}

/// Ten rounds, in place. U holds 32-bit words: one, or one per lane.
template <class U>
ARDIFF_HD void philox(U& c0, U& c1, U& c2, U& c3, uint32_t k0, uint32_t k1) {
#ifdef __CUDACC__
#pragma unroll
#else
#pragma GCC unroll 10
#endif
  for (int round = 0; round < kPhiloxRounds; ++round) {
    philox_round(c0, c1, c2, c3, U(k0), U(k1));
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

/// The keys of the ten rounds, ready in all lanes, for loops over many counters.
template <class K>
struct RoundKeys {
  K k0[kPhiloxRounds], k1[kPhiloxRounds];
};

template <class K>
ARDIFF_HD void set_round_keys(RoundKeys<K>& keys, int64_t key) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    keys.k0[round] = K(low_word(key) + static_cast<uint32_t>(round) * 0x9E3779B9u);
    keys.k1[round] = K(high_word(key) + static_cast<uint32_t>(round) * 0xBB67AE85u);
  }
}

template <class U, class K>
ARDIFF_HD void philox(U& c0, U& c1, U& c2, U& c3, const RoundKeys<K>& keys) {
#ifdef __CUDACC__
#pragma unroll
#else
#pragma GCC unroll 10
#endif
  for (int round = 0; round < kPhiloxRounds; ++round) {
    philox_round(c0, c1, c2, c3, keys.k0[round], keys.k1[round]);
  }
}

}  // namespace ARDIFF_NS
