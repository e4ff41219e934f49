// What kv_attention does around the arithmetic: units of queries, the keys of a split, the merge of
// splits and the results. What computes a split is kernel.cpp's or dots.cpp's.
#pragma once

#include "../kv/head.h"
#include "../kv/lanes.h"
#include "../number.h"

namespace ARDIFF_NS {
namespace {

constexpr int kVectors = kKeys / kLanes;
constexpr int kBlock = 4;  // queries that share what is loaded

int64_t larger_of(int64_t a, int64_t b) { return a > b ? a : b; }

/// Visible keys [lo, hi) of a query, within the sequence or within a split.
struct Range {
  int64_t lo, hi;
  bool empty() const { return lo >= hi; }
};

/// Calls f(width, i) for blocks of 4, 2 and 1 of the n queries; i is the block's first.
template <class Function>
ARDIFF_INLINE void for_each_block(int n, Function f) {
  int i = 0;
  for (; i + kBlock <= n; i += kBlock) f(Number<kBlock>(), i);
  if (i + 2 <= n) {
    f(Number<2>(), i);
    i += 2;
  }
  if (i < n) f(Number<1>(), i);
}

/// Running maximum, sum and weighted values of the queries.
struct alignas(64) Softmax {
  float high[kQueryGroup], sum[kQueryGroup];  // a sum of 0: no key yet
  float acc[kQueryGroup][kMostDims];
};

/// Where the keys of a split lie that some query sees.
struct Places {
  Range seen;
  int64_t offset[kSplit];
  int runs;
  Run run[kSplit];
};

/// What the arithmetic has beside its own scratch.
struct alignas(64) Scratch {
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

/// The keys of split `index` that the unit sees; those beside them in a tile repeat the nearest.
void find_keys(const KvAttentionArgs& a, const Unit& u, int64_t index, Places& places) {
  const int64_t base = index * kSplit, S = a.rows.S;
  const Range r{larger_of(u.lo - base, 0), smaller(u.hi - base, kSplit)};
  places.seen = r;
  places.runs = 0;
  if (r.empty()) return;
  for (int64_t j = r.lo; j < r.hi;) {
    const int64_t position = base + j, at = cache_offset(a, u.b, u.h, position);
    const int64_t block_end = S - (a.rows.table ? position % S : position);
    const int64_t run = smaller(r.hi - j, block_end);
    for (int64_t i = 0; i < run; ++i) places.offset[j + i] = at + i * a.cache.D;
    places.run[places.runs++] = {at, run * a.cache.D};
    j += run;
  }
  const int64_t begin = r.lo / kKeys * kKeys, end = (r.hi + kKeys - 1) / kKeys * kKeys;
  for (int64_t j = begin; j < r.lo; ++j) places.offset[j] = places.offset[r.lo];
  for (int64_t j = r.hi; j < end; ++j) places.offset[j] = places.offset[r.hi - 1];
}

/// Divides keys [j0, j1) between block(from, to), for those that all kWidth queries see, and
/// alone(i, from, to), for the others: each query takes only the keys that it sees, since another's
/// may hold NaN. A block has whole groups of kTogether keys.
template <int kWidth, int kTogether, class Block, class Alone>
ARDIFF_INLINE void for_visible(const Range* range, int64_t j0, int64_t j1, Block block,
                               Alone alone) {
  Range own[kWidth], common{j0, j1};
  for (int i = 0; i < kWidth; ++i) {
    own[i] = {larger_of(range[i].lo, j0), smaller(range[i].hi, j1)};
    common.lo = larger_of(common.lo, own[i].lo);
    common.hi = smaller(common.hi, own[i].hi);
  }
  common.lo = (common.lo + kTogether - 1) / kTogether * kTogether;
  common.hi = common.hi / kTogether * kTogether;
  if (common.empty()) common.lo = common.hi = j1;
  const auto rest = [&](int i, int64_t from, int64_t to) {
    if (from < to) alone(i, from, to);
  };
  for (int i = 0; i < kWidth; ++i) rest(i, own[i].lo, smaller(own[i].hi, common.lo));
  if (common.empty()) return;
  block(common.lo, common.hi);
  for (int i = 0; i < kWidth; ++i) rest(i, common.hi, own[i].hi);
}

/// Reads, norms and rotates the unit's queries; those without keys are zero.
template <class Work>
void prepare_queries(const KvAttentionArgs& a, const Unit& u, Work& work) {
  const int64_t D = a.cache.D;
  alignas(64) float x[kMostDims];
  for_each_block(u.n, [&](auto width, int first) {
    for (int i = 0; i < width; ++i) {
      const int64_t index = u.first + first + i, t = index / a.G;
      if (u.range[first + i].empty()) {
        std::memset(x, 0, sizeof x);
      } else {
        read_head(a.q, u.b, t, u.h * a.G + index % a.G, D, x);
        prepare_head(a, u.b, t, x);
      }
      work.put_query(a, x, first, i, width);
    }
  });
}

/// work.split = the softmax over split `index` of the unit, whose keys lie at `now`. While it reads
/// keys it asks for the split's values, and while it reads these for the keys of `next`.
template <class Work>
void attend(const KvAttentionArgs& a, const Unit& u, int64_t index, const Places& now,
            const Places& next, Work& work) {
  using T = typename Work::Element;
  constexpr int kTile = Work::kTileOfValues;
  const int64_t base = index * kSplit, dims = (a.cache.D + 31) / 32 * 32;  // of whole vectors
  const T *keys = static_cast<const T*>(a.cache.k), *values = static_cast<const T*>(a.cache.v);
  Range range[kQueryGroup];
  for (int i = 0; i < u.n; ++i) {
    range[i] = {larger_of(u.range[i].lo - base, 0), smaller(u.range[i].hi - base, kSplit)};
    if (range[i].empty()) range[i] = {0, 0};
    work.split.sum[i] = 0.0f;
    std::memset(work.split.acc[i], 0, sizeof(float) * dims);
  }
  Ahead next_values(values, now.run, now.runs), next_keys(keys, next.run, next.runs);
  for (int64_t j = now.seen.lo / kKeys * kKeys; j < now.seen.hi; j += kKeys) {
    work.add_keys(a, u.n, keys, now.offset + j, j, next_values);
  }
  work.read_scales(a.cache, now);
  for (int i = 0; i < u.n; ++i) {
    if (!range[i].empty()) work.weigh(i, range[i]);
  }
  for (int64_t j = now.seen.lo / kTile * kTile; j < now.seen.hi; j += kTile) {
    for_each_block(u.n, [&](auto width, int i) {
      work.template add_values<width>(a.cache.D, values, now.offset, range + i, i, j, next_keys);
    });
  }
  work.finish(u.n, a.cache.D);
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

template <class Work>
void run_split(const KvAttentionArgs& a, int64_t tile, Work& s) {
  const int64_t index = a.order[tile / a.splits];
  const Unit u = unit_at(a, index);
  const Range splits = splits_of(u);
  const int64_t split = splits.lo + tile % a.splits;
  if (split >= splits.hi) return;
  prepare_queries(a, u, s);
  find_keys(a, u, split, s.places[0]);
  s.places[1].runs = 0;
  attend(a, u, split, s.places[0], s.places[1], s);
  write_partial(a, u, s.split, partial_of(a, index, split - splits.lo));
}

template <class Work>
void run_unit(const KvAttentionArgs& a, int64_t tile, Work& s) {
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
    attend(a, u, split, now, next, s);
    for (int i = 0; i < u.n; ++i) {
      merge(s.split.high[i], s.split.sum[i], s.split.acc[i], a.cache.D, s.total, i);
    }
  }
  write(a, u, s.total);
}

/// Work is Scratch and what its prepare_queries and attend keep there.
template <class Work>
void run(const KvAttentionArgs& a, int64_t first, int64_t last) {
  Work s;
  for (int64_t tile = first; tile < last; ++tile) {
    if (a.partial) {
      run_split(a, tile, s);
    } else {
      run_unit(a, tile, s);
    }
  }
}

}  // namespace
}  // namespace ARDIFF_NS
