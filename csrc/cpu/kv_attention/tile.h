// The arithmetic of kv_attention on tiles of keys: q.k, where a lane is a key; the softmax of a
// split; the weighted values, where a lane is a dimension and the weights are broadcast. No sum
// crosses the lanes of a vector, but the softmax's, which has 16 parts always: all instruction sets
// give the same bits, and a query's bits depend on no other query.
#pragma once

#include <type_traits>

#include "../kv/head.h"
#include "../kv/lanes.h"

namespace ARDIFF_NS {
namespace {

constexpr int kVectors = kKeys / kLanes;
constexpr int kParts = 16;      // of a softmax's sum
constexpr int kBlock = 4;       // queries that share what is loaded
constexpr int kDotDims = 32;    // that are summed one after the other
constexpr int kValueKeys = 32;  // keys whose values stay in the first-level cache
constexpr float kInfinity = __builtin_inff();

int64_t larger_of(int64_t a, int64_t b) { return a > b ? a : b; }

/// Visible keys [lo, hi) of a query, within the sequence or within a split.
struct Range {
  int64_t lo, hi;
  bool empty() const { return lo >= hi; }
};

/// A number of queries as a type.
template <int kQueries>
struct Width {
  constexpr operator int() const { return kQueries; }
};

/// Calls f(width, i) for blocks of 4, 2 and 1 of the n queries; i is the block's first.
template <class Function>
ARDIFF_INLINE void for_each_block(int n, Function f) {
  int i = 0;
  for (; i + kBlock <= n; i += kBlock) f(Width<kBlock>(), i);
  if (i + 2 <= n) {
    f(Width<2>(), i);
    i += 2;
  }
  if (i < n) f(Width<1>(), i);
}

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

/// Adds q.k over dimensions [from, to) of a tile of transposed keys to `weight`.
template <int kWidth, class Keys>
ARDIFF_INLINE void add_dots(const float* query, const Keys* keys, int64_t from, int64_t to,
                            float* weight) {
  constexpr int64_t kStep = std::is_same_v<Keys, float> ? 2 * kKeys : kKeys;
  VFloat sums[kWidth][kVectors];
  for (int i = 0; i < kWidth; ++i) {
    for (int v = 0; v < kVectors; ++v) sums[i][v] = VFloat(0.0f);
  }
#pragma GCC unroll 2
  for (int64_t d = from; d < to; d += 2) {
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
template <int kWidth, class Keys>
ARDIFF_INLINE void dots(const float* query, const Keys* keys, int64_t D, float* weight) {
  for (int64_t d = 0; d < D; d += kDotDims) {
    add_dots<kWidth>(query, keys, d, smaller(d + kDotDims, D), weight);
  }
}

/// From q.k to weights of the keys in `r`; returns their maximum and sum. Scales are null where the
/// cache has none.
inline void softmax(float* w, Range r, const float* k_scale, const float* v_scale, float& high,
                    float& sum) {
  const int64_t begin = r.lo / kParts * kParts, end = (r.hi + kParts - 1) / kParts * kParts;
  if (k_scale) {
    for (int64_t j = begin; j < end; j += kLanes) {
      store_as(w + j, load_as<VFloat>(w + j) * load_as<VFloat>(k_scale + j));
    }
  }
  for (int64_t j = begin; j < r.lo; ++j) w[j] = -kInfinity;
  for (int64_t j = r.hi; j < end; ++j) w[j] = -kInfinity;
  VFloat most(-kInfinity);
  for (int64_t j = begin; j < end; j += kLanes) most = larger(most, load_as<VFloat>(w + j));
  float lanes[kLanes];
  store_as(lanes, most);
  high = lanes[0];
  for (int i = 1; i < kLanes; ++i) high = lanes[i] > high ? lanes[i] : high;
  if (high == -kInfinity) {  // every q.k overflowed: no key weighs anything, and NaN stays
    sum = 0.0f;
    for (int64_t j = begin; j < end; ++j) {
      w[j] = w[j] == -kInfinity ? 0.0f : w[j];
      sum += w[j];
    }
    return;
  }
  for (int64_t j = begin; j < end; j += kLanes) {
    store_as(w + j, exp_limited(load_as<VFloat>(w + j) - VFloat(high)));
  }
  for (int64_t j = begin; j < r.lo; ++j) w[j] = 0.0f;
  for (int64_t j = r.hi; j < end; ++j) w[j] = 0.0f;
  VFloat sums[kParts / kLanes];
  for (auto& part : sums) part = VFloat(0.0f);
  for (int64_t j = begin; j < end; j += kParts) {
    for (int v = 0; v < kParts / kLanes; ++v) {
      sums[v] = sums[v] + load_as<VFloat>(w + j + v * kLanes);
    }
  }
  float parts[kParts];
  for (int v = 0; v < kParts / kLanes; ++v) store_as(parts + v * kLanes, sums[v]);
  sum = sum_of_lanes(parts);
  if (!v_scale) return;
  for (int64_t j = begin; j < end; j += kLanes) {
    store_as(w + j, load_as<VFloat>(w + j) * load_as<VFloat>(v_scale + j));
  }
}

/// Adds the values of keys [j0, j1) in kCount vectors of dimensions from d on.
template <int kWidth, int kCount, class T>
ARDIFF_INLINE void add_vectors(const T* values, const int64_t* offset, const float* weight,
                               int64_t j0, int64_t j1, int64_t d, int64_t D, float* acc) {
  VFloat sums[kWidth][kCount];
  for (int i = 0; i < kWidth; ++i) {
    for (int v = 0; v < kCount; ++v) {
      sums[i][v] = load_as<VFloat>(acc + i * kMostDims + d + v * kLanes);
    }
  }
#pragma GCC unroll 2
  for (int64_t j = j0; j < j1; ++j) {
    const T* row = values + offset[j] + d;
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
void add_values(const T* values, const int64_t* offset, const float* weight, int64_t j0, int64_t j1,
                int64_t D, float* acc, Ahead<T>& ahead) {
  int64_t d = 0;
  for (; d + kLanes < D; d += 2 * kLanes) {
    ahead.ask(static_cast<int>(sizeof(T)) * kLanes);
    add_vectors<kWidth, 2>(values, offset, weight, j0, j1, d, D, acc);
  }
  if (d < D) add_vectors<kWidth, 1>(values, offset, weight, j0, j1, d, D, acc);
}

/// The same for a block of queries, each of which takes only the keys that it sees: another's may
/// hold NaN.
template <int kWidth, class T>
void add_visible(const T* values, const int64_t* offset, const float* weight, const Range* range,
                 int64_t j0, int64_t j1, int64_t D, float* acc, Ahead<T>& ahead) {
  Range own[kWidth], common{j0, j1};
  for (int i = 0; i < kWidth; ++i) {
    own[i] = {larger_of(range[i].lo, j0), smaller(range[i].hi, j1)};
    common.lo = larger_of(common.lo, own[i].lo);
    common.hi = smaller(common.hi, own[i].hi);
  }
  if (common.empty()) common.lo = common.hi = j1;
  const auto alone = [&](int i, int64_t from, int64_t to) {
    if (from < to) {
      add_values<1>(values, offset, weight + i * kSplit, from, to, D, acc + i * kMostDims, ahead);
    }
  };
  for (int i = 0; i < kWidth; ++i) alone(i, own[i].lo, smaller(own[i].hi, common.lo));
  if (common.empty()) return;
  add_values<kWidth>(values, offset, weight, common.lo, common.hi, D, acc, ahead);
  for (int i = 0; i < kWidth; ++i) alone(i, common.hi, own[i].hi);
}

}  // namespace
}  // namespace ARDIFF_NS
