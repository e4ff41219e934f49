// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3; SC 2011)
// on the words of noise_address.h.
#pragma once

#include "lane.h"
#include "noise_address.h"

namespace ARDIFF_NS {

constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxKeyStep0 = 0x9E3779B9u, kPhiloxKeyStep1 = 0xBB67AE85u;

/// U holds 32-bit words: one, or one per lane.
template <class U, class K>
ARDIFF_HD void philox_round(U& c0, U& c1, U& c2, U& c3, K k0, K k1) {
  U high0, low0, high1, low1;
  multiply_wide(c0, kPhiloxMultiplier0, high0, low0);
  multiply_wide(c2, kPhiloxMultiplier1, high1, low1);
  c0 = high1 ^ (c1 ^ k0);
  c1 = low1;
  c2 = high0 ^ (c3 ^ k1);
  c3 = low0;
}

/// Ten rounds, in place.
ARDIFF_HD void philox(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, uint32_t k0,
                      uint32_t k1) {
#ifdef __CUDACC__
#pragma unroll
#else
#pragma GCC unroll 10
#endif
  for (int round = 0; round < kPhiloxRounds; ++round) {
    philox_round(c0, c1, c2, c3, k0, k1);
    k0 += kPhiloxKeyStep0;
    k1 += kPhiloxKeyStep1;
  }
}

}  // namespace ARDIFF_NS
