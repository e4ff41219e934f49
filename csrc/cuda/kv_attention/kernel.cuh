// The two kernels of kv_attention. The first cuts the keys of a row at multiples of kSplit: a block
// takes kQ queries of a key head, so that each key is read once for them, and leaves of a split
// their maxima, sums and weighted values. Keys and then values of the split come tile by tile
// through a ring in shared memory, two tiles ahead. The second kernel merges the splits of a query
// in ascending order.
//
// The number of blocks follows from shapes alone; those behind a row's end return at once.
#pragma once

#include "split.cuh"

namespace ardiff {

template <class T, int kQ>
struct SplitBody : SplitWork<T, kQ> {
  using Work = SplitWork<T, kQ>;
  using typename Work::Job, typename Work::Shared, typename Work::Split, typename Work::State;
  using typename Work::Team;
  using Work::kThreads;
  static constexpr int kHeadThreads = kThreads / kQ;

  /// What a block does; without tokens where there is nothing to do.
  ARDIFF_DEVICE static Job job_of(const AttentionArgs& a, int64_t block) {
    Job job;
    int64_t rest = divide(block, a.tiles);
    job.first = static_cast<int>(block - rest * a.tiles) * kQ;
    int64_t next = divide(rest, a.heads);
    job.h = rest - next * a.heads;
    rest = divide(next, a.step);
    job.slot = static_cast<int>(next - rest * a.step);
    job.b = a.first_row + rest;
    job.row = kv_row(a.rows, job.b);
    job.t_first = job.first / a.G;
    const int64_t t_last = (job.first + kQ - 1) / a.G;
    job.t_last = static_cast<int>(t_last < job.row.count ? t_last : job.row.count - 1);
    const int64_t capacity = a.rows.table ? a.rows.S * a.rows.M : a.rows.S;
    const bool room = job.row.sound && job.row.length + job.row.count <= capacity;
    if (!room || job.t_first >= job.row.count || a.rows.N == 0) job.row.count = 0;
    return job;
  }

  /// False where no query of the block sees a key of the split.
  ARDIFF_DEVICE static bool find_split(const AttentionArgs& a, const Job& job, int slot, Split& s) {
    const KeyRange first = seen_by(a, job.row, job.t_first), last = seen_by(a, job.row, job.t_last);
    s.slot = slot;
    s.base = (first_split(a, job.row) + slot) * kSplit;
    s.begin = first.lo > s.base ? first.lo : s.base;
    s.stop = last.hi < s.base + kSplit ? last.hi : s.base + kSplit;
    if (s.begin >= s.stop) return false;
    s.first = static_cast<int>(s.begin - s.base) >> a.tile.key_bits;
    const int end = (static_cast<int>(s.stop - s.base) + a.tile.keys - 1) >> a.tile.key_bits;
    s.tiles = end - s.first;
    s.whole_lo = within(last.lo - s.base);
    s.whole_hi = within(first.hi - s.base);
    return true;
  }

  /// Limited to a split.
  ARDIFF_DEVICE static int within(int64_t key) {
    return static_cast<int>(key < 0 ? 0 : key < kSplit ? key : kSplit);
  }

  /// Token of query i of the block; behind the row's last where it is not real.
  ARDIFF_DEVICE static int token_of(const AttentionArgs& a, const Job& job, int i) {
    const int query = job.first + i;
    return query < a.queries ? query / a.G : 0x7fffffff;
  }

  ARDIFF_DEVICE static int64_t head_of(const AttentionArgs& a, const Job& job, int i) {
    return job.h * a.G + (job.first + i) % a.G;
  }

  ARDIFF_DEVICE static void place_keys(const AttentionArgs& a, Shared& shared, const Split& s,
                                       int thread) {
    const Job& job = shared.job;
    for (int key = thread; key < kSplit; key += kThreads) {
      const int64_t position = s.base + key;
      const bool seen = position >= s.begin && position < s.stop;
      shared.place[key] = seen ? place_of_token(a.rows, job.b, job.h, a.heads, position) : -1;
    }
    if (thread == 0) shared.split = s;
    if (thread >= kQ) return;
    const int t = token_of(a, job, thread);
    const bool real = t < job.row.count;
    const KeyRange seen = seen_by(a, job.row, real ? t : 0);
    shared.lo[thread] = within(seen.lo - s.base);
    shared.hi[thread] = real ? within(seen.hi - s.base) : 0;
  }

  /// Zeros for queries that are not real, and behind D up to a whole unit of the cache.
  ARDIFF_DEVICE static void read_query(const AttentionArgs& a, Shared& shared, int thread) {
    const Job& job = shared.job;
    const int i = thread / kHeadThreads, t = token_of(a, job, i);
    const bool real = t < job.row.count;
    const int64_t start = real ? start_of(a.q, job.b, t, head_of(a, job, i)) : 0;
    const int end = a.tile.units * 4 * kOfWord<T>;
    for (int d = kEight * (thread % kHeadThreads); d < end; d += kEight * kHeadThreads) {
      float* x = &shared.query[i][d];
      if (real && d < a.D) {
        read_eight(a.q, start + d, x);
      } else {
        store_four(x, 0, 0, 0, 0);
        store_four(x + 4, 0, 0, 0, 0);
      }
    }
  }

  ARDIFF_DEVICE static void sum_squares(const AttentionArgs& a, Shared& shared, int thread) {
    for (int i = thread; i < kQ * kSumOfLanes; i += kThreads) {
      shared.part[i / kQ][i % kQ] = square_sum(shared.query[i % kQ], a.D, i / kQ);
    }
  }

  ARDIFF_DEVICE static void prepare_query(const AttentionArgs& a, Shared& shared, int thread) {
    const Job& job = shared.job;
    const int i = thread / kHeadThreads, t = token_of(a, job, i);
    if (t >= job.row.count) return;
    float squares[kSumOfLanes];
    for (int l = 0; l < kSumOfLanes; ++l) squares[l] = shared.part[l][i];
    prepare_head(a.head, a.D, squares, rotary_row(a.rows, job.row, job.b, t), a.scale,
                 shared.query[i], thread % kHeadThreads, kHeadThreads);
  }

  /// Four queries' weighted values, a group of keys after the other, into the ring; then their sums
  /// into the workspace.
  ARDIFF_DEVICE static void spread(const AttentionArgs& a, Shared& shared, const State& state,
                                   const float (*acc)[kEight]) {
    if (state.group >= a.tile.groups) return;
    float* to =
        reinterpret_cast<float*>(shared.ring) + 4 * state.group * a.D + kEight * state.chunk;
#pragma unroll
    for (int i = 0; i < 4; ++i, to += a.D) {
      store_four(to, acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
      store_four(to + 4, acc[i][4], acc[i][5], acc[i][6], acc[i][7]);
    }
  }

  ARDIFF_DEVICE static int64_t slot_of(const AttentionArgs& a, const Shared& shared, int i) {
    const Job& job = shared.job;
    const int64_t row = (job.b - a.first_row) * a.splits + shared.split.slot;
    return (row * a.rows.T + token_of(a, job, i)) * a.heads * a.G + head_of(a, job, i);
  }

  ARDIFF_DEVICE static void leave(const AttentionArgs& a, Shared& shared, int from, int thread) {
    const float* spread = reinterpret_cast<const float*>(shared.ring);
    const Job& job = shared.job;
    const int quads = a.D / 4;
    for (int e = thread; e < 4 * quads; e += kThreads) {
      const int i = e / quads, d = 4 * (e % quads);
      if (token_of(a, job, from + i) >= job.row.count) continue;
      float sum[4], x[4];
      widen_unit<float>(spread + i * a.D + d, sum);
      for (int group = 1; group < a.tile.groups; ++group) {
        widen_unit<float>(spread + (4 * group + i) * a.D + d, x);
        for (int k = 0; k < 4; ++k) sum[k] += x[k];
      }
      float* to = a.partial + slot_of(a, shared, from + i) * a.D + d;
      store_four(to, sum[0], sum[1], sum[2], sum[3]);
    }
    if (from > 0 || thread >= kQ || token_of(a, job, thread) >= job.row.count) return;
    float sum = 0.0f;
    for (int l = 0; l < Work::kPartials; ++l) sum += shared.part[Work::kPartials + l][thread];
    const int64_t at = slot_of(a, shared, thread);
    a.high[at] = Work::maximum(shared, thread);
    a.sum[at] = sum;
  }

  ARDIFF_DEVICE static void flow(const AttentionArgs& a, Shared& shared, const Team& team) {
    team.threads([&](int thread, State& state) {
      if (thread == 0) shared.job = job_of(a, team.number());
      state.key = thread / a.tile.units;
      state.unit = thread % a.tile.units;
      state.group = thread / (a.D / kEight);
      state.chunk = thread % (a.D / kEight);
    });
    if (shared.job.row.count == 0) return;
    bool prepared = false;
    for (int slot = shared.job.slot; slot < a.splits; slot += a.step) {
      Split split;
      if (!find_split(a, shared.job, slot, split)) continue;
      team.threads([&](int thread) {
        place_keys(a, shared, split, thread);
        if (!prepared) read_query(a, shared, thread);
      });
      team.threads([&](int thread, State& state) {
#pragma unroll 1
        for (int index = 0; index < 2; ++index) Work::copy_tile(a, shared, state, index);
        if (!prepared && a.head.norm) sum_squares(a, shared, thread);
      });
      team.threads([&](int thread, State& state) {
        if (!prepared) prepare_query(a, shared, thread);
        state.copies.template wait<1>();
      });
      prepared = true;
      const int tiles = shared.split.tiles, first = shared.split.first;
#pragma unroll 1
      for (int index = 0; index < tiles; ++index) {
        team.threads([&](int thread, State& state) {
          Work::copy_tile(a, shared, state, index + 2);
          Work::multiply(a, shared, index, thread);
        });
        team.threads([&](int thread, State& state) {
          Work::add_parts(a, shared, first + index, thread);
          state.copies.template wait<1>();
        });
      }
      team.threads([&](int thread) { Work::find_maxima(a, shared, thread); });
      team.threads([&](int thread, State& state) {
        Work::find_weights(a, shared, thread);
#pragma unroll
        for (int i = 0; i < kQ; ++i) {
#pragma unroll
          for (int d = 0; d < kEight; ++d) state.acc[i][d] = 0.0f;
        }
      });
#pragma unroll 1
      for (int index = tiles; index < 2 * tiles; ++index) {
        team.threads([&](int, State& state) {
          Work::copy_tile(a, shared, state, index + 2);
          Work::add_tile(a, shared, state, index);
          state.copies.template wait<1>();
        });
      }
#pragma unroll
      for (int from = 0; from < kQ; from += 4) {
        team.threads([&](int, State& state) { spread(a, shared, state, state.acc + from); });
        team.threads([&](int thread) { leave(a, shared, from, thread); });
      }
    }
  }
};

}  // namespace ardiff
