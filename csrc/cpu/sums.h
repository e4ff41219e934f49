// Sums of a chunk of a sample's elements in the order of csrc/math/sums.h.
#pragma once

#include "../math/sums.h"
#include "tile.h"

namespace ARDIFF_NS {

constexpr int kVectors = kSumLanes / kLanes;

/// The lanes of one sum.
using Vectors = VFloat[kVectors];

/// sum_lanes, by vectors as long as there are several.
ARDIFF_INLINE float sum_vectors(Vectors& vectors) {
  for (int half = kVectors / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) vectors[j] = vectors[j] + vectors[j + half];
  }
  float lanes[kLanes];
  store_as(lanes, vectors[0]);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

/// Calls add(i, lane, row, acc) for the n <= kChunk elements of a chunk, which adds to the lanes
/// acc of kSums sums; row is make(lane). `total` gets the chunk's sums.
template <int kSums, class Make, class Add>
ARDIFF_INLINE void sum_chunk(int64_t n, Make make, Add add, double (&total)[kSums]) {
  Vectors sums[kSums];
  for (int s = 0; s < kSums; ++s) {
    for (int j = 0; j < kVectors; ++j) sums[s][j] = VFloat(0.0f);
  }
  const auto add_vector = [&](int64_t i, int j, const auto& row) {
    VFloat acc[kSums];
    for (int s = 0; s < kSums; ++s) acc[s] = sums[s][j];
    add(i, VFloat(), row, acc);
    for (int s = 0; s < kSums; ++s) sums[s][j] = acc[s];
  };
  int64_t i = 0;
  if (n >= kLanes) {
    const auto row = make(VFloat());
    for (; i + kSumLanes <= n; i += kSumLanes) {
      for (int j = 0; j < kVectors; ++j) add_vector(i + j * kLanes, j, row);
    }
    for (int j = 0; i + kLanes <= n; ++j, i += kLanes) add_vector(i, j, row);
  }
  if (kLanes > 1 && i < n) {
    const auto row = make(float());
    float lanes[kSums][kSumLanes];
    for (int s = 0; s < kSums; ++s) {
      for (int j = 0; j < kVectors; ++j) store_as(lanes[s] + j * kLanes, sums[s][j]);
    }
    for (; i < n; ++i) {
      float acc[kSums];
      for (int s = 0; s < kSums; ++s) acc[s] = lanes[s][i % kSumLanes];
      add(i, float(), row, acc);
      for (int s = 0; s < kSums; ++s) lanes[s][i % kSumLanes] = acc[s];
    }
    for (int s = 0; s < kSums; ++s) {
      for (int j = 0; j < kVectors; ++j) sums[s][j] = load_as<VFloat>(lanes[s] + j * kLanes);
    }
  }
  for (int s = 0; s < kSums; ++s) total[s] = sum_vectors(sums[s]);
}

}  // namespace ARDIFF_NS
