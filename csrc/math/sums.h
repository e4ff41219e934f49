// The order in which a sample's terms are summed, the same on every backend written in C++: in a
// chunk of kChunk elements, element i goes to lane i mod kSumLanes; the lanes are halved again and
// again. Chunk c goes, in float64, to group c mod kGroups; the groups are added from the first to
// the last. It depends on the number of elements alone. Lanes begin at +0, so none is ever -0, and
// adding the +0 of an absent element changes nothing.
#pragma once

#include "lane.h"

namespace ARDIFF_NS {

constexpr int kSumLanes = 32;
constexpr int kGroups = 32;
constexpr int64_t kChunk = 256;

/// The sum over the lanes, which it overwrites: halves them again and again.
template <int kLanesLeft = kSumLanes>
ARDIFF_HD float sum_lanes(float (&lanes)[kSumLanes]) {
  if constexpr (kLanesLeft > 1) {
    for (int i = 0; i < kLanesLeft / 2; ++i) lanes[i] += lanes[i + kLanesLeft / 2];
    return sum_lanes<kLanesLeft / 2>(lanes);
  } else {
    return lanes[0];
  }
}

}  // namespace ARDIFF_NS
