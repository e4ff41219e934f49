// The arithmetic of kv_attention in float32 on tiles of keys: q.k, where a lane is a key, and the
// weighted values, where a lane is a dimension and the weights are broadcast. No sum crosses the
// lanes of a vector: all instruction sets give the same bits, and a query's bits depend on no other
// query.
#pragma once

#include <type_traits>

#include "units.h"

namespace ARDIFF_NS {
namespace {

constexpr int kDotDims = 32;    // that are summed one after the other
constexpr int kValueKeys = 32;  // keys whose values stay in the first-level cache

/// Two neighbouring dimensions of some keys.
ARDIFF_INLINE void load_two(const float* keys, VFloat& first, VFloat& second) {
  first = load_as<VFloat>(keys);
  second = load_as<VFloat>(keys + kKeys);
}
ARDIFF_INLINE void load_two(const uint32_t* pairs, VFloat& first, VFloat& second) {
  const VWord words = load(pairs);
  first = from_bits(words << 16);
  second = from_bits(words & VWord(0xffff0000u));
}

/// Adds q.k over dimensions [from, to) of a tile of transposed keys to `weight`; kLines is asked
/// for with every two dimensions.
template <int kWidth, int kLines, class Keys>
ARDIFF_INLINE void add_dots(const float* query, const Keys* keys, int64_t from, int64_t to,
                            float* weight, Ahead& ahead) {
  constexpr int64_t kStep = std::is_same_v<Keys, float> ? 2 * kKeys : kKeys;
  VFloat sums[kWidth][kVectors];
  for (int i = 0; i < kWidth; ++i) {
    for (int v = 0; v < kVectors; ++v) sums[i][v] = VFloat(0.0f);
  }
#pragma GCC unroll 2
  for (int64_t d = from; d < to; d += 2) {
    ahead.ask(kLines);
    VFloat first[kVectors], second[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      load_two(keys + d / 2 * kStep + v * kLanes, first[v], second[v]);
    }
    for (int i = 0; i < kWidth; ++i) {
      const VFloat q(query[d * kWidth + i]);
      for (int v = 0; v < kVectors; ++v) sums[i][v] = fma(q, first[v], sums[i][v]);
    }
    for (int i = 0; i < kWidth; ++i) {
      const VFloat q(query[(d + 1) * kWidth + i]);
      for (int v = 0; v < kVectors; ++v) sums[i][v] = fma(q, second[v], sums[i][v]);
    }
  }
  for (int i = 0; i < kWidth; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      float* out = weight + i * kSplit + v * kLanes;
      store_as(out, from == 0 ? sums[i][v] : load_as<VFloat>(out) + sums[i][v]);
    }
  }
}

/// q.k of a tile; sums of sums, since one long sum would round D times.
template <int kWidth, int kLines, class Keys>
ARDIFF_INLINE void dots(const float* query, const Keys* keys, int64_t D, float* weight,
                        Ahead& ahead) {
  for (int64_t d = 0; d < D; d += kDotDims) {
    add_dots<kWidth, kLines>(query, keys, d, smaller(d + kDotDims, D), weight, ahead);
  }
}

/// Adds the values of keys [j0, j1) in kCount vectors of dimensions from d on.
template <int kWidth, int kCount, class T>
ARDIFF_INLINE void add_vectors(const T* values, const int64_t* offset, const float* weight,
                               int64_t j0, int64_t j1, int64_t d, int64_t D, float* acc,
                               Ahead& ahead) {
  constexpr int64_t kBytes = kCount * kLanes * sizeof(T);  // of a key
  VFloat sums[kWidth][kCount];
  for (int i = 0; i < kWidth; ++i) {
    for (int v = 0; v < kCount; ++v) {
      sums[i][v] = load_as<VFloat>(acc + i * kMostDims + d + v * kLanes);
    }
  }
  if (kBytes < 64) ahead.ask(static_cast<int>((j1 - j0) * kBytes / 64));
#pragma GCC unroll 2
  for (int64_t j = j0; j < j1; ++j) {
    const T* row = values + offset[j] + d;
    if (kBytes >= 64) ahead.ask(kBytes / 64);
    VFloat value[kCount];
    for (int v = 0; v < kCount; ++v) value[v] = widen(row + v * kLanes, D - d - v * kLanes);
    for (int i = 0; i < kWidth; ++i) {
      const VFloat p(weight[i * kSplit + j]);
      for (int v = 0; v < kCount; ++v) sums[i][v] = fma(p, value[v], sums[i][v]);
    }
  }
  for (int i = 0; i < kWidth; ++i) {
    for (int v = 0; v < kCount; ++v) {
      store_as(acc + i * kMostDims + d + v * kLanes, sums[i][v]);
    }
  }
}

template <int kWidth, class T>
void add_rows(const T* values, const int64_t* offset, const float* weight, int64_t j0, int64_t j1,
              int64_t D, float* acc, Ahead& ahead) {
  int64_t d = 0;
  for (; d + kLanes < D; d += 2 * kLanes) {
    add_vectors<kWidth, 2>(values, offset, weight, j0, j1, d, D, acc, ahead);
  }
  if (d < D) add_vectors<kWidth, 1>(values, offset, weight, j0, j1, d, D, acc, ahead);
}

}  // namespace
}  // namespace ARDIFF_NS
