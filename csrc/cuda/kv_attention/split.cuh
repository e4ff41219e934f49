// The arithmetic of kv_attention: a block attends kQ queries of one key head of a row to a split of
// kSplit keys. A thread multiplies some dimensions of one key by all queries; after the softmax
// over the split it adds up eight dimensions of some values for all queries. The order of every sum
// follows from a key's position, D and the cache's type alone. Masks are applied only in tiles that
// some query does not see whole, and change no bit for those that see a key.
#pragma once

#include "cache.cuh"

namespace ardiff {

struct AttentionArgs {
  KvRows rows;
  KvHead head;
  KvTokens q;
  const char *k_cache, *v_cache;
  const float *k_scale, *v_scale;
  Tile tile;
  int D, row_bytes, width;  // width: see copy_unit
  int G;                    // query heads a key head
  int queries, tiles;       // T * G, and blocks of them
  int64_t heads, window;    // window 0: no limit
  bool causal;
  float scale;
  int64_t first_row;            // rows of this launch begin here
  int splits, step;             // slots of a row; a block takes every step-th
  float *high, *sum, *partial;  // [rows, splits, T * G * heads], the last [..., D]
  void* out;                    // [B, T, G * heads, D]
};

struct KeyRange {
  int64_t lo, hi;
};

/// Keys that token t of a row sees.
ARDIFF_HD KeyRange seen_by(const AttentionArgs& a, const KvRow& row, int64_t t) {
  const int64_t last = row.length + t;
  const int64_t lo = a.window ? last - a.window + 1 : 0;
  return {lo > 0 ? lo : 0, a.causal ? last + 1 : row.length + row.count};
}

/// The split that slot 0 of a row has.
ARDIFF_HD int64_t first_split(const AttentionArgs& a, const KvRow& row) {
  return seen_by(a, row, 0).lo / kSplit;
}

template <class T, int kQ>
struct SplitWork {
  static constexpr int kThreads = kSplitThreads, kBlocks = kQ > 4 ? 4 : 5;
  static constexpr int kStages = 3,
                       kPartials = 32;  // kPartials: partial maxima and sums of a query

  /// The queries of a block, [first, first + kQ) of a key head of a row. Kept with the split in
  /// shared memory, where they take no registers.
  struct Job {
    KvRow row;
    int64_t b, h;
    int first, slot;
    int t_first, t_last;  // tokens of the first and the last query that is real
  };

  /// Keys [begin, stop) of a split that some query sees.
  struct Split {
    int64_t base, begin, stop;
    int slot;
    int first, tiles;        // tiles that hold such keys
    int whole_lo, whole_hi;  // keys of the split that all queries see
  };

  struct Shared {
    alignas(16) char ring[kStages][kTileBytes];
    alignas(16) float query[kQ][kMostDims];
    alignas(16) float weight[kSplit][kQ];
    alignas(16) float part[kThreads][kQ];  // of q.k; then kPartials of maxima and kPartials of sums
    int64_t place[kSplit];                 // of a key in the cache; -1: seen by no query
    int lo[kQ], hi[kQ];                    // keys that a query sees, within the split
    Job job;
    Split split;
  };
  static_assert(sizeof(Shared::ring) >= sizeof(float) * 4 * kEight * kThreads);
  static_assert(sizeof(Shared) <= 48 << 10);

  struct State {
    Copies copies;
    int key, unit;     // of the first unit of a tile to copy
    int group, chunk;  // of the values
    float acc[kQ][kEight];
  };
  using Team = ardiff::Team<kThreads, State>;

  /// Starts this thread's copies of a tile whose first key in the split is `base`.
  template <int kWidth>
  ARDIFF_DEVICE static void copy_units(const AttentionArgs& a, const Shared& shared, State& state,
                                       const char* cache, char* tile, int base) {
    constexpr int kUnits = kTileBytes / 16 / kThreads;
    const Tile& t = a.tile;
    int key = state.key, unit = state.unit;
#pragma unroll(kWidth == 16 ? kUnits : 1)
    for (int i = 0; i < kUnits; ++i) {
      if (key < t.keys) {
        const int64_t place = shared.place[base + key];
        const char* row = cache + static_cast<uint64_t>(place) * static_cast<uint32_t>(a.row_bytes);
        copy_unit<kWidth>(state.copies, a.row_bytes, tile + unit_offset(t, key, unit), row, unit,
                          place >= 0);
      }
      const bool wraps = unit + t.unit_step >= t.units;
      key += t.key_step + wraps;
      unit += wraps ? t.unit_step - t.units : t.unit_step;
    }
  }

  /// Tile `index` of the split's keys, then values, or nothing behind them.
  ARDIFF_DEVICE static void copy_tile(const AttentionArgs& a, Shared& shared, State& state,
                                      int index) {
    const Split& s = shared.split;
    if (index < 2 * s.tiles) {
      const bool values = index >= s.tiles;
      const int base = (s.first + (values ? index - s.tiles : index)) * a.tile.keys;
      const char* cache = values ? a.v_cache : a.k_cache;
      char* tile = shared.ring[index % kStages];
      if (a.width == 16) {
        copy_units<16>(a, shared, state, cache, tile, base);
      } else if (a.width == 8) {
        copy_units<8>(a, shared, state, cache, tile, base);
      } else {
        copy_units<1>(a, shared, state, cache, tile, base);
      }
    }
    state.copies.commit();
  }

  /// This thread's dimensions of q.k for its key of a tile.
  ARDIFF_DEVICE static void multiply(const AttentionArgs& a, Shared& shared, int index,
                                     int thread) {
    constexpr int kOfUnit = 4 * kOfWord<T>;
    const Tile& t = a.tile;
    const int key = thread & (t.keys - 1);
    const char* tile = shared.ring[index % kStages];
    float sums[kQ] = {};
#pragma unroll 1
    for (int unit = thread >> t.key_bits; unit < t.units; unit += t.parts) {
      float x[kOfUnit];
      widen_unit<T>(tile + unit_offset(t, key, unit), x);
#pragma unroll
      for (int i = 0; i < kQ; ++i) {
#pragma unroll
        for (int d = 0; d < kOfUnit; d += 4) {
          float q[4];
          widen_unit<float>(&shared.query[i][unit * kOfUnit + d], q);
#pragma unroll
          for (int k = 0; k < 4; ++k) sums[i] = fma(q[k], x[d + k], sums[i]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kQ; i += 4) {
      store_four(&shared.part[thread][i], sums[i], sums[i + 1], sums[i + 2], sums[i + 3]);
    }
  }

  /// q.k of a tile from the parts.
  ARDIFF_DEVICE static void add_parts(const AttentionArgs& a, Shared& shared, int tile,
                                      int thread) {
    const int n = a.tile.keys * kQ;
    const float* part = &shared.part[0][0];
    for (int i = thread; i < n; i += kThreads) {
      float sum = part[i];
      for (int p = 1; p < a.tile.parts; ++p) sum += part[p * n + i];
      (&shared.weight[0][0])[tile * n + i] = sum;
    }
  }

  /// Calls act(query, lane) for this thread's lanes of the softmax.
  template <class Act>
  ARDIFF_DEVICE static void for_each_lane(int thread, Act act) {
    for (int i = thread; i < kPartials * kQ; i += kThreads) act(i % kQ, i / kQ);
  }

  /// Calls act(key) for the keys of a lane that the query sees.
  template <class Act>
  ARDIFF_DEVICE static void for_each_key(const Shared& shared, int query, int lane, Act act) {
    const int lo = shared.lo[query], hi = shared.hi[query];
    for (int key = lane; key < kSplit; key += kPartials) {
      if (key >= lo && key < hi) act(key);
    }
  }

  ARDIFF_DEVICE static void find_maxima(const AttentionArgs& a, Shared& shared, int thread) {
    for_each_lane(thread, [&](int query, int lane) {
      float most = -__builtin_inff();
      for_each_key(shared, query, lane, [&](int key) {
        float& w = shared.weight[key][query];
        if (a.k_scale) w = w * a.k_scale[shared.place[key]];
        most = w > most ? w : most;
      });
      shared.part[lane][query] = most;
    });
  }

  ARDIFF_DEVICE static float maximum(const Shared& shared, int query) {
    float most = shared.part[0][query];
    for (int l = 1; l < kPartials; ++l) {
      const float other = shared.part[l][query];
      most = other > most ? other : most;
    }
    return most;
  }

  ARDIFF_DEVICE static void find_weights(const AttentionArgs& a, Shared& shared, int thread) {
    for_each_lane(thread, [&](int query, int lane) {
      const float high = maximum(shared, query);
      const bool none = high == -__builtin_inff();  // q.k overflowed at all keys; NaN stays
      float sum = 0.0f;
      for_each_key(shared, query, lane, [&](int key) {
        float& w = shared.weight[key][query];
        if (none) {
          w = w == high ? 0.0f : w;
        } else {
          w = exp_limited(w - high);
        }
        sum += w;
        if (a.v_scale && !none) w = w * a.v_scale[shared.place[key]];
      });
      shared.part[kPartials + lane][query] = sum;
    });
  }

  /// Adds this thread's part of a tile of values; where not kWhole, to the queries that see a key:
  /// another's may hold NaN.
  template <bool kWhole>
  ARDIFF_DEVICE static void add_values(const AttentionArgs& a, Shared& shared, State& state,
                                       int index, int base) {
    const Tile& t = a.tile;
    const char* tile = shared.ring[index % kStages];
#pragma unroll 1
    for (int key = state.group; key < t.keys; key += t.groups) {
      float x[kEight], p[kQ];
      widen_eight<T>(t, tile, key, state.chunk, x);
#pragma unroll
      for (int i = 0; i < kQ; i += 4) widen_unit<float>(&shared.weight[base + key][i], p + i);
#pragma unroll
      for (int i = 0; i < kQ; ++i) {
        if (kWhole || (base + key >= shared.lo[i] && base + key < shared.hi[i])) {
#pragma unroll
          for (int d = 0; d < kEight; ++d) state.acc[i][d] = fma(p[i], x[d], state.acc[i][d]);
        }
      }
    }
  }

  ARDIFF_DEVICE static void add_tile(const AttentionArgs& a, Shared& shared, State& state,
                                     int index) {
    const Split& s = shared.split;
    const int base = (s.first + index - s.tiles) * a.tile.keys;
    if (state.group >= a.tile.groups) return;
    if (base >= s.whole_lo && base + a.tile.keys <= s.whole_hi) {
      add_values<true>(a, shared, state, index, base);
    } else {
      add_values<false>(a, shared, state, index, base);
    }
  }
};

}  // namespace ardiff
