// Where noise lies: the key (seed) fills the two key words of Philox; the stream counter words 2
// and 3, the draw and its purpose counter word 1, the quad of elements counter word 0. See "The
// noise address" in docs/design.md.
#pragma once

#include "args.h"
#include "lane.h"

namespace ardiff {

/// What the noise of a draw is for: the low two bits of counter word 1. Two names share a value
/// where no run uses both at the same draw, see Purpose in ardiff_kernels/ops/_shared/address.py.
enum Purpose : uint32_t {
  kStepNoise = 0,
  kInitialState = 1,
  kAcceptUniform = 2,
  kVelocityRefresh = 3,
  kCouplingUniform = 2,
  kPathNode = 0,
};

/// The address of a batch: key [1] and stream [B]; draw is absent where `counter` is counter word 1
/// of all samples.
struct NoiseAddress {
  const int64_t* key;
  const int64_t* stream;
  PerSample<int32_t> draw;
  uint32_t counter;
};

}  // namespace ardiff

namespace ARDIFF_NS {

/// Counter word 1; wraps in 32 bits.
ARDIFF_HD uint32_t counter_word(int32_t draw, Purpose purpose) {
  return static_cast<uint32_t>(draw) * 4u + purpose;
}

/// Counter word 1 of a node of a Brownian path: its octave in [0, 64), and its place in the heap of
/// the octave's nodes, in [1, 2^24), 0 for the octave's own increment.
ARDIFF_HD uint32_t path_node(uint32_t octave, uint32_t heap) {
  return ((octave << 24) | heap) * 4u + kPathNode;
}

ARDIFF_HD uint32_t low_word(int64_t x) { return static_cast<uint32_t>(static_cast<uint64_t>(x)); }
ARDIFF_HD uint32_t high_word(int64_t x) {
  return static_cast<uint32_t>(static_cast<uint64_t>(x) >> 32);
}

}  // namespace ARDIFF_NS
