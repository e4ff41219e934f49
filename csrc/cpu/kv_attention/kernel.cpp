// kv_attention for one instruction set; free of torch, built once for each. Up to kQueryGroup
// queries of one key head go through its keys together, split after split: q.k of the split's keys,
// each query's softmax, then the weighted values (tile.h).
#if defined(__GNUC__) && !defined(__clang__)
// The eight sums in flight and what they take leave no register to spare.
#pragma GCC optimize("no-schedule-insns")
#endif

#include "tile.h"

namespace ARDIFF_NS {
namespace {

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

Unit unit_at(const KvAttentionArgs& a, int64_t index) {
  Unit u{};
  const int64_t group = index % a.groups, head = index / a.groups;
  u.h = head % a.cache.heads;
  u.b = head / a.cache.heads;
  u.first = group * kQueryGroup;
  u.n = static_cast<int>(smaller(kQueryGroup, a.rows.T * a.G - u.first));
  const int64_t length = a.rows.length[u.b], count = new_tokens(a, u.b);
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

/// The keys of split `index` that the unit sees; those beside them in a tile repeat the nearest.
void find_keys(const KvAttentionArgs& a, const Unit& u, int64_t index, Places& places) {
  const int64_t base = index * kSplit, S = a.rows.S;
  const Range r{larger_of(u.lo - base, 0), smaller(u.hi - base, kSplit)};
  places.seen = r;
  if (r.empty()) return;
  for (int64_t j = r.lo; j < r.hi;) {
    const int64_t position = base + j, at = cache_offset(a, u.b, u.h, position);
    const int64_t block_end = S - (a.rows.table ? position % S : position);
    const int64_t run = smaller(r.hi - j, block_end);
    for (int64_t i = 0; i < run; ++i) places.offset[j + i] = at + i * a.cache.D;
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
  const bool quantized = a.cache.k_scale != nullptr;
  if (quantized) read_scales(a.cache, now, s);
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
    softmax(s.weight[i], range[i], quantized ? s.k_scale : nullptr, quantized ? s.v_scale : nullptr,
            s.split.high[i], s.split.sum[i]);
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
    T* out = static_cast<T*>(a.out) + ((u.b * a.rows.T + t) * a.G * a.cache.heads + head) * D;
    const bool none = total.sum[i] == 0.0f;
    const float factor = none ? 0.0f : 1.0f / total.sum[i];
    for (int64_t d = 0; d < D; ++d) store_as(out + d, none ? 0.0f : total.acc[i][d] * factor);
  }
}

void write(const KvAttentionArgs& a, const Unit& u, const Softmax& total) {
  if (!a.q.bfloat16) {
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
