// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3; SC 2011)
// and the address of a normal: see "The noise address" in the documentation of the ops.
#pragma once

#include "lane.h"

namespace ARDIFF_NS {

/// Purposes, the low two bits of counter word 1 (c1 = 4 * draw + purpose).
enum Purpose : uint32_t {
  kStepNoise = 0,
  kInitialState = 1,
  kAcceptUniform = 2,
  kVelocityRefresh = 3,
};

/// Counter word 1; wraps in 32 bits.
ARDIFF_HD uint32_t counter_word(int32_t draw, Purpose purpose) {
  return static_cast<uint32_t>(draw) * 4u + purpose;
}

ARDIFF_HD uint32_t low_word(int64_t x) { return static_cast<uint32_t>(static_cast<uint64_t>(x)); }
ARDIFF_HD uint32_t high_word(int64_t x) {
  return static_cast<uint32_t>(static_cast<uint64_t>(x) >> 32);
}

/// Ten rounds, in place. U holds 32-bit words: one, or one a lane.
template <class U>
ARDIFF_HD void philox(U& c0, U& c1, U& c2, U& c3, uint32_t k0, uint32_t k1) {
#ifdef __CUDACC__
#pragma unroll
#else
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    U high0, low0, high1, low1;
    multiply_wide(c0, 0xD2511F53u, high0, low0);
    multiply_wide(c2, 0xCD9E8D57u, high1, low1);
    c0 = high1 ^ c1 ^ U(k0);
    c1 = low1;
    c2 = high0 ^ c3 ^ U(k1);
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

}  // namespace ARDIFF_NS
