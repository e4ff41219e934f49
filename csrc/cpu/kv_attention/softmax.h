// The softmax of a split: its sum has 16 parts on every instruction set.
#pragma once

#include "units.h"

namespace ARDIFF_NS {
namespace {

constexpr int kParts = 16;
constexpr float kInfinity = __builtin_inff();

/// `r` widened to whole parts.
Range whole_parts(Range r) {
  return {r.lo / kParts * kParts, (r.hi + kParts - 1) / kParts * kParts};
}

/// From q.k of the keys in `r` to e^(q.k - high), and 0 beside them; returns high, their maximum.
/// -infinity: every q.k overflowed, no key weighs anything, and NaN stays.
inline float exponentials(float* w, Range r) {
  const auto [begin, end] = whole_parts(r);
  for (int64_t j = begin; j < r.lo; ++j) w[j] = -kInfinity;
  for (int64_t j = r.hi; j < end; ++j) w[j] = -kInfinity;
  VFloat most(-kInfinity);
  for (int64_t j = begin; j < end; j += kLanes) most = larger(most, load_as<VFloat>(w + j));
  float lanes[kLanes];
  store_as(lanes, most);
  float high = lanes[0];
  for (int i = 1; i < kLanes; ++i) high = lanes[i] > high ? lanes[i] : high;
  if (high == -kInfinity) {
    for (int64_t j = begin; j < end; ++j) w[j] = w[j] == -kInfinity ? 0.0f : w[j];
    return high;
  }
  for (int64_t j = begin; j < end; j += kLanes) {
    store_as(w + j, exp_limited(load_as<VFloat>(w + j) - VFloat(high)));
  }
  for (int64_t j = begin; j < r.lo; ++j) w[j] = 0.0f;
  for (int64_t j = r.hi; j < end; ++j) w[j] = 0.0f;
  return high;
}

/// The sum of the weights of the keys in `r`; weight(j) gives those from key j on.
template <class Weight>
ARDIFF_INLINE float sum_of_weights(Range r, Weight weight) {
  const auto [begin, end] = whole_parts(r);
  VFloat sums[kParts / kLanes];
  for (auto& part : sums) part = VFloat(0.0f);
  for (int64_t j = begin; j < end; j += kParts) {
    for (int v = 0; v < kParts / kLanes; ++v) sums[v] = sums[v] + weight(j + v * kLanes);
  }
  float parts[kParts];
  for (int v = 0; v < kParts / kLanes; ++v) store_as(parts + v * kLanes, sums[v]);
  return sum_of_lanes(parts);
}

/// Multiplies the weights of the keys in `r` by their scales.
inline void scale_weights(float* w, Range r, const float* scale) {
  const auto [begin, end] = whole_parts(r);
  for (int64_t j = begin; j < end; j += kLanes) {
    store_as(w + j, load_as<VFloat>(w + j) * load_as<VFloat>(scale + j));
  }
}

}  // namespace
}  // namespace ARDIFF_NS
