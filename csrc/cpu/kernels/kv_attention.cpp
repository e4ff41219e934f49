// kv_attention for one instruction set; free of torch, built once for each. Up to kQueryGroup
// queries of one key head go through its keys together, split after split. In a split the keys are
// transposed tile by tile, so that a lane is a key and q.k a plain sum over the dimensions; then
// each query's softmax; then the weighted values, where a lane is a dimension and the weights are
// broadcast. No sum crosses the lanes of a vector, but the softmax's, which has 16 parts always:
// all instruction sets give the same bits, and a query's bits depend on no other query.
#if defined(__GNUC__) && !defined(__clang__)
// The eight sums in flight and what they take leave no register to spare.
#pragma GCC optimize("no-schedule-insns")
#endif

#include <type_traits>

#include "../kv_head.h"
#include "../kv_lanes.h"

namespace ARDIFF_NS {
namespace {

constexpr int kVectors = kKeys / kLanes;
constexpr int kParts = 16;      // of a softmax's sum
constexpr int kBlock = 4;       // queries that share what is loaded
constexpr int kDotDims = 32;    // that are summed one after the other
constexpr int kValueKeys = 32;  // keys whose values stay in the first-level cache
constexpr float kInfinity = __builtin_inff();

/// Visible keys [lo, hi) of a query, within the sequence or within a split.
struct Range {
  int64_t lo, hi;
  bool empty() const { return lo >= hi; }
};

/// Running maximum, sum and weighted values of the queries.
struct alignas(64) Softmax {
  float high[kQueryGroup], sum[kQueryGroup];  // a sum of 0: no key yet
  float acc[kQueryGroup][kMostDims];
};

/// Where the keys of a split lie that some query sees.
struct Places {
  Range seen;
  int64_t offset[kSplit];
};

struct alignas(64) Scratch {
  float query[kQueryGroup * kMostDims];   // blocks of queries, each [D, queries]
  float keys[kMostDims * kKeys];          // transposed
  uint32_t pairs[kMostDims / 2 * kKeys];  // the same of a bfloat16 cache
  float weight[kQueryGroup][kSplit];
  float k_scale[kSplit], v_scale[kSplit];
  Places places[2];  // of the split at work and of the next
  Softmax split, total;
};

/// Queries [first, first + n) of a key head of a row; query i is head i % G at token i / G.
struct Unit {
  int64_t b, h, first;
  int n;
  int64_t lo, hi;  // keys that any of them sees
  Range range[kQueryGroup];
};

int64_t larger_of(int64_t a, int64_t b) { return a > b ? a : b; }

Unit unit_at(const KvAttentionArgs& a, int64_t index) {
  Unit u{};
  const int64_t group = index % a.groups, head = index / a.groups;
  u.h = head % a.cache.heads;
  u.b = head / a.cache.heads;
  u.first = group * kQueryGroup;
  u.n = static_cast<int>(smaller(kQueryGroup, a.T * a.G - u.first));
  const int64_t length = a.length[u.b], count = new_tokens(a, u.b);
  u.lo = length + count;
  for (int i = 0; i < u.n; ++i) {
    const int64_t t = (u.first + i) / a.G;
    Range& r = u.range[i];
    if (t >= count) continue;
    r.hi = a.causal ? length + t + 1 : length + count;
    r.lo = a.window ? larger_of(0, length + t - a.window + 1) : 0;
    u.lo = smaller(u.lo, r.lo);
    u.hi = larger_of(u.hi, r.hi);
  }
  return u;
}

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

void prepare_queries(const KvAttentionArgs& a, const Unit& u, Scratch& s) {
  const int64_t D = a.cache.D;
  alignas(64) float x[kMostDims];
  for_each_block(u.n, [&](auto width, int first) {
    for (int i = 0; i < width; ++i) {
      float* out = s.query + first * D + i;
      if (u.range[first + i].empty()) {
        for (int64_t d = 0; d < D; ++d) out[d * width] = 0.0f;
        continue;
      }
      const int64_t index = u.first + first + i, t = index / a.G;
      read_head(a.q, u.b, t, u.h * a.G + index % a.G, D, x);
      prepare_head(a, u.b, t, x);
      for (int64_t d = 0; d < D; ++d) out[d * width] = x[d] * a.scale;
    }
  });
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

/// From q.k to weights of the keys in `r`; returns their maximum and sum.
inline void softmax(float* w, Range r, const Scratch& s, bool quantized, float& high, float& sum) {
  const int64_t begin = r.lo / kParts * kParts, end = (r.hi + kParts - 1) / kParts * kParts;
  if (quantized) {
    for (int64_t j = begin; j < end; j += kLanes) {
      store_as(w + j, load_as<VFloat>(w + j) * load_as<VFloat>(s.k_scale + j));
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
  if (!quantized) return;
  for (int64_t j = begin; j < end; j += kLanes) {
    store_as(w + j, load_as<VFloat>(w + j) * load_as<VFloat>(s.v_scale + j));
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

/// The keys of split `index` that the unit sees; those beside them in a tile repeat the nearest.
void find_keys(const KvAttentionArgs& a, const Unit& u, int64_t index, Places& places) {
  const KvCache& cache = a.cache;
  const int64_t base = index * kSplit;
  const Range r{larger_of(u.lo - base, 0), smaller(u.hi - base, kSplit)};
  places.seen = r;
  if (r.empty()) return;
  for (int64_t j = r.lo; j < r.hi;) {
    const int64_t position = base + j, at = cache_offset(cache, u.b, u.h, position);
    const int64_t block_end = cache.S - (cache.block_table ? position % cache.S : position);
    const int64_t run = smaller(r.hi - j, block_end);
    for (int64_t i = 0; i < run; ++i) places.offset[j + i] = at + i * cache.D;
    j += run;
  }
  const int64_t begin = r.lo / kKeys * kKeys, end = (r.hi + kKeys - 1) / kKeys * kKeys;
  for (int64_t j = begin; j < r.lo; ++j) places.offset[j] = places.offset[r.lo];
  for (int64_t j = r.hi; j < end; ++j) places.offset[j] = places.offset[r.hi - 1];
}

void read_scales(const KvCache& cache, const Places& places, Scratch& s) {
  const int64_t end = (places.seen.hi + kKeys - 1) / kKeys * kKeys;
  for (int64_t j = places.seen.lo / kKeys * kKeys; j < end; ++j) {
    s.k_scale[j] = cache.k_scale[places.offset[j] / cache.D];
    s.v_scale[j] = cache.v_scale[places.offset[j] / cache.D];
  }
}

template <class T, class Keys>
void dots_of_tile(int n, Scratch& s, const T* keys, Keys* transposed, const int64_t* offset,
                  int64_t j, int64_t D, Ahead<T>& ahead) {
  transpose_keys(keys, offset, D, transposed, ahead);
  for_each_block(
      n, [&](auto width, int i) { dots<width>(s.query + i * D, transposed, D, s.weight[i] + j); });
}

/// s.split = the softmax over split `index` of the unit, whose keys lie at `now`. While it reads
/// keys it asks for the split's values, and while it reads these for the keys of `next`.
template <class T>
void attend(const KvAttentionArgs& a, const Unit& u, int64_t index, const Places& now,
            const Places& next, Scratch& s) {
  const int64_t D = a.cache.D, base = index * kSplit;
  const T *keys = static_cast<const T*>(a.cache.k), *values = static_cast<const T*>(a.cache.v);
  Range range[kQueryGroup];
  for (int i = 0; i < u.n; ++i) {
    range[i] = {larger_of(u.range[i].lo - base, 0), smaller(u.range[i].hi - base, kSplit)};
    if (range[i].empty()) range[i] = {0, 0};
    s.split.sum[i] = 0.0f;
    std::memset(s.split.acc[i], 0, sizeof s.split.acc[i]);
  }
  if (a.cache.k_scale) read_scales(a.cache, now, s);
  const int64_t bytes = D * static_cast<int64_t>(sizeof(T));
  Ahead<T> next_values{values, now.offset, now.seen.lo, now.seen.hi, bytes};
  Ahead<T> next_keys{keys, next.offset, next.seen.lo, next.seen.hi, bytes};
  for (int64_t j = now.seen.lo / kKeys * kKeys; j < now.seen.hi; j += kKeys) {
    if constexpr (std::is_same_v<T, BFloat16>) {
      dots_of_tile(u.n, s, keys, s.pairs, now.offset + j, j, D, next_values);
    } else {
      dots_of_tile(u.n, s, keys, s.keys, now.offset + j, j, D, next_values);
    }
  }
  for (int i = 0; i < u.n; ++i) {
    if (range[i].empty()) continue;
    softmax(s.weight[i], range[i], s, a.cache.k_scale, s.split.high[i], s.split.sum[i]);
  }
  for (int64_t j = now.seen.lo / kValueKeys * kValueKeys; j < now.seen.hi; j += kValueKeys) {
    for_each_block(u.n, [&](auto width, int i) {
      add_visible<width>(values, now.offset, s.weight[i], range + i, j, j + kValueKeys, D,
                         s.split.acc[i], next_keys);
    });
  }
}

/// Adds a split's softmax (`high`, `sum`, `acc`) to query i of the total.
void merge(float high, float sum, const float* acc, int64_t D, Softmax& total, int i) {
  if (sum == 0.0f) return;
  if (total.sum[i] == 0.0f) {
    total.high[i] = high;
    total.sum[i] = sum;
    std::memcpy(total.acc[i], acc, sizeof(float) * D);
    return;
  }
  const MergeFactors f = merge_factors(total.high[i], high);
  total.high[i] = f.high;
  total.sum[i] = merged(f, total.sum[i], sum);
  float* out = total.acc[i];
  for (int64_t d = 0; d < D; ++d) out[d] = merged(f, out[d], acc[d]);
}

template <class T>
void write_results(const KvAttentionArgs& a, const Unit& u, const Softmax& total) {
  const int64_t D = a.cache.D;
  for (int i = 0; i < u.n; ++i) {
    const int64_t index = u.first + i, t = index / a.G, head = u.h * a.G + index % a.G;
    T* out = static_cast<T*>(a.out) + ((u.b * a.T + t) * a.G * a.cache.heads + head) * D;
    const bool none = total.sum[i] == 0.0f;
    const float factor = none ? 0.0f : 1.0f / total.sum[i];
    for (int64_t d = 0; d < D; ++d) store_as(out + d, none ? 0.0f : total.acc[i][d] * factor);
  }
}

void write(const KvAttentionArgs& a, const Unit& u, const Softmax& total) {
  if (a.q.type == Type::float32) {
    write_results<float>(a, u, total);
  } else {
    write_results<BFloat16>(a, u, total);
  }
}

/// The part of `partial` for a split of a unit: maxima, sums, weighted values.
float* partial_of(const KvAttentionArgs& a, int64_t unit, int64_t split) {
  return a.partial + (unit * a.splits + split) * kQueryGroup * (a.cache.D + 2);
}

void write_partial(const KvAttentionArgs& a, const Unit& u, const Softmax& split, float* out) {
  const int64_t D = a.cache.D;
  for (int i = 0; i < u.n; ++i) {
    out[i] = split.high[i];
    out[kQueryGroup + i] = split.sum[i];
    if (split.sum[i] == 0.0f) continue;
    std::memcpy(out + 2 * kQueryGroup + i * D, split.acc[i], sizeof(float) * D);
  }
}

/// Splits [first, last) that a unit sees.
Range splits_of(const Unit& u) {
  if (u.lo >= u.hi) return {0, 0};
  return {u.lo / kSplit, (u.hi + kSplit - 1) / kSplit};
}

template <class T>
void run_split(const KvAttentionArgs& a, int64_t tile, Scratch& s) {
  const int64_t index = a.order[tile / a.splits];
  const Unit u = unit_at(a, index);
  const Range splits = splits_of(u);
  const int64_t split = splits.lo + tile % a.splits;
  if (split >= splits.hi) return;
  prepare_queries(a, u, s);
  find_keys(a, u, split, s.places[0]);
  s.places[1].seen = {0, 0};
  attend<T>(a, u, split, s.places[0], s.places[1], s);
  write_partial(a, u, s.split, partial_of(a, index, split - splits.lo));
}

template <class T>
void run_unit(const KvAttentionArgs& a, int64_t tile, Scratch& s) {
  const Unit u = unit_at(a, a.order[tile]);
  const Range splits = splits_of(u);
  for (int i = 0; i < u.n; ++i) s.total.sum[i] = 0.0f;
  if (!splits.empty()) {
    prepare_queries(a, u, s);
    find_keys(a, u, splits.lo, s.places[splits.lo % 2]);
  }
  for (int64_t split = splits.lo; split < splits.hi; ++split) {
    Places &now = s.places[split % 2], &next = s.places[1 - split % 2];
    find_keys(a, u, split + 1, next);
    attend<T>(a, u, split, now, next, s);
    for (int i = 0; i < u.n; ++i) {
      merge(s.split.high[i], s.split.sum[i], s.split.acc[i], a.cache.D, s.total, i);
    }
  }
  write(a, u, s.total);
}

template <class T>
void run(const KvAttentionArgs& a, int64_t first, int64_t last) {
  Scratch s;
  for (int64_t tile = first; tile < last; ++tile) {
    if (a.partial) {
      run_split<T>(a, tile, s);
    } else {
      run_unit<T>(a, tile, s);
    }
  }
}

}  // namespace

void kv_attention_tiles(const KvAttentionArgs& a, int64_t first, int64_t last) {
  switch (a.cache.type) {
    case CacheType::float32:
      return run<float>(a, first, last);
    case CacheType::bfloat16:
      return run<BFloat16>(a, first, last);
    case CacheType::int8:
      return run<Int8>(a, first, last);
    case CacheType::float8:
      return run<Float8>(a, first, last);
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
