// How the threads of a block sum over a sample in the order of csrc/math/sums.h: eight threads, a
// group, sum a chunk of kChunk elements, each of them four lanes in 128-bit accesses. A group lies
// in one warp.
#pragma once

#include "../math/sums.h"
#include "unit.cuh"

namespace ardiff {

constexpr int kGroupThreads = kSumLanes / static_cast<int>(kUnit);
constexpr int kBlockGroups = kThreads / kGroupThreads;
static_assert(kBlockGroups == kGroups && kSumLanes == 32 && kUnit == 4);

}  // namespace ardiff
