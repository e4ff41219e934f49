// kv_attention for one instruction set; free of torch, built once for each. Up to kQueryGroup
// queries of one key head go through its keys together, split after split: q.k of the split's keys,
// each query's softmax, then the weighted values (units.h); this file computes in float32 (tile.h).
#if defined(__GNUC__) && !defined(__clang__)
// The eight sums in flight and what they take leave no register to spare.
#pragma GCC optimize("no-schedule-insns")
#endif

#include "softmax.h"
#include "tile.h"

namespace ARDIFF_NS {
namespace {

template <class T>
struct alignas(64) Floats : Scratch {
  using Element = T;
  static constexpr bool kPairs = std::is_same_v<T, BFloat16>;
  static constexpr int kTileOfValues = kValueKeys;

  float query[kQueryGroup * kMostDims];  // blocks of queries, each [D, queries]
  // Transposed: floats, or pairs of a bfloat16 cache.
  std::conditional_t<kPairs, uint32_t, float> keys[kMostDims / (kPairs ? 2 : 1) * kKeys];
  float weight[kQueryGroup][kSplit];
  float k_scale[kSplit], v_scale[kSplit];
  bool quantized = false;

  void put_query(const KvAttentionArgs& a, const float* x, int first, int i, int width) {
    float* out = query + first * a.cache.D + i;
    for (int64_t d = 0; d < a.cache.D; ++d) out[d * width] = x[d] * a.scale;
  }

  void add_keys(const KvAttentionArgs& a, int n, const T* rows, const int64_t* offset, int64_t j,
                Ahead& ahead) {
    const int64_t D = a.cache.D;
    transpose_keys(rows, offset, D, keys, ahead);
    for_each_block(n, [&](auto width, int i) {
      dots<width, sizeof(T) / 2>(query + i * D, keys, D, weight[i] + j, ahead);
    });
  }

  void read_scales(const KvCache& cache, const Places& places) {
    quantized = cache.k_scale != nullptr;
    if (!quantized) return;
    const Range seen = places.seen, whole = whole_parts(seen);
    for (float* scale : {k_scale, v_scale}) {
      for (int64_t j = whole.lo; j < seen.lo; ++j) scale[j] = 0.0f;
      for (int64_t j = seen.hi; j < whole.hi; ++j) scale[j] = 0.0f;
    }
    int64_t j = seen.lo;
    for (int run = 0; run < places.runs; ++run) {
      const int64_t from = places.run[run].offset / cache.D;
      const int64_t count = places.run[run].elements / cache.D;
      std::memcpy(k_scale + j, cache.k_scale + from, sizeof(float) * count);
      std::memcpy(v_scale + j, cache.v_scale + from, sizeof(float) * count);
      j += count;
    }
  }

  void weigh(int i, Range r) {
    if (quantized) scale_weights(weight[i], r, k_scale);
    split.high[i] = exponentials(weight[i], r);
    split.sum[i] = sum_of_weights(r, [&](int64_t j) { return load_as<VFloat>(weight[i] + j); });
    if (quantized && split.high[i] != -kInfinity) scale_weights(weight[i], r, v_scale);
  }

  template <int kWidth>
  void add_values(int64_t D, const T* values, const int64_t* offset, const Range* range, int i,
                  int64_t j, Ahead& ahead) {
    for_visible<kWidth, 1>(
        range, j, j + kValueKeys,
        [&](int64_t from, int64_t to) {
          add_rows<kWidth>(values, offset, weight[i], from, to, D, split.acc[i], ahead);
        },
        [&](int which, int64_t from, int64_t to) {
          const int at = i + which;
          add_rows<1>(values, offset, weight[at], from, to, D, split.acc[at], ahead);
        });
  }

  void finish(int, int64_t) {}
};

}  // namespace

void kv_attention_tiles(const KvAttentionArgs& a, int64_t first, int64_t last) {
  switch (a.cache.type) {
    case CacheType::float32:
      return run<Floats<float>>(a, first, last);
    case CacheType::bfloat16:
      return run<Floats<BFloat16>>(a, first, last);
    case CacheType::int8:
      return run<Floats<Int8>>(a, first, last);
    case CacheType::float8:
      return run<Floats<Float8>>(a, first, last);
  }
}

/// Merges the splits of units [first, last) in ascending order.
void kv_attention_merge(const KvAttentionArgs& a, int64_t first, int64_t last) {
  const int64_t D = a.cache.D;
  Softmax total;
  for (int64_t index = first; index < last; ++index) {
    const Unit u = unit_at(a, index);
    const Range splits = splits_of(u);
    for (int i = 0; i < u.n; ++i) total.sum[i] = 0.0f;
    for (int64_t split = 0; split < splits.hi - splits.lo; ++split) {
      const float* p = partial_of(a, index, split);
      for (int i = 0; i < u.n; ++i) {
        merge(p[i], p[kQueryGroup + i], p + 2 * kQueryGroup + i * D, D, total, i);
      }
    }
    write(a, u, total);
  }
}

}  // namespace ARDIFF_NS
