// What a round of head_lookahead does beside the head, a block of threads per patch: the rows of
// the last round are verified, and those of the next are drafted. Elements go in parallel, rows one
// after another only where a state or memory follows from the one before.
#pragma once

#include "../../math/lookahead.h"
#include "../head/phase.cuh"

namespace ardiff {

/// The members of RowSums, in memory.
enum LookaheadSum { kFirst, kSecond, kSquare, kProduct, kLookaheadSums };

/// Of the rounds; what has two places is written in turn, so that a round knows the last one.
struct LookaheadRounds {
  int patches, rows;  // N, L
  bool two_memories, by_law;
  double bound;                         // tolerance^2 d
  const float* plan;                    // [T, 20]
  int *row[2], *count[2];               // [N], the window of each patch: its first row, how many
  int* place;                           // [N, L], first row of its modulations; -1: not evaluated
  float* states[2];                     // [N, L + 1, d]
  float* velocities;                    // the same; null: none
  float *drafts, *data[2];              // [N, L, d], guesses and data predictions
  float* gain[2];                       // [N, L]
  float *kept_memory, *drafted_memory;  // [N, L + 1, 2, d], by data predictions and by guesses
  float* normals;                       // [N, L, 2, d]
  double* sums;                         // [N, L, kLookaheadSums]
  float* factor;                        // [N, L], on delta, of the reflection; NaN: the row holds
  int32_t *rounds, *accepted, *evaluated;  // [N]
};

struct HeadLookaheadArgs : HeadArgs {
  LookaheadRounds look;
};

/// An int that another block may have written in an earlier phase.
ARDIFF_DEVICE int read_fresh(const int* p) {
#ifdef __CUDA_ARCH__
  return __ldcg(p);
#else
  return *p;
#endif
}
ARDIFF_DEVICE double read_fresh(const double* p) {
#ifdef __CUDA_ARCH__
  return __ldcg(p);
#else
  return *p;
#endif
}

/// A row of the table on an element, with the noise scale of the patch.
struct LookaheadRow {
  const float *coef, *plan;
  bool kinetic;  // of uld_step, else of diffusion_step
  float scale;

  ARDIFF_DEVICE bool calls() const { return plan[LookaheadColumn::calls] != 0.0f; }
  ARDIFF_DEVICE bool couples() const {
    return plan[LookaheadColumn::couples] != 0.0f && scale != 0.0f;
  }
  ARDIFF_DEVICE bool noisy() const {
    return kinetic ? UldWindow<float>::noisy(coef, scale)
                   : DiffusionWindow<float>::noisy(coef, scale);
  }

  /// f(UldWindow or DiffusionWindow).
  template <class F>
  ARDIFF_DEVICE auto visit(F f) const {
    const PlanRow<float> p = plan_row<float>(plan);
    return kinetic ? f(UldWindow<float>(coef, p, scale))
                   : f(DiffusionWindow<float>(coef, p, scale));
  }
  ARDIFF_DEVICE MemoryOf<float> remember(float x, float x0, const MemoryOf<float>& m,
                                         bool two) const {
    return visit([&](const auto& row) {
      return two ? row.template remember<true>(x, x0, m) : row.template remember<false>(x, x0, m);
    });
  }
  ARDIFF_DEVICE WindowState<float> advance(const WindowState<float>& s, float x0, float n1,
                                           float n2, bool two) const {
    return visit([&](const auto& row) {
      return two ? row.template advance<true>(s, x0, n1, n2)
                 : row.template advance<false>(s, x0, n1, n2);
    });
  }
  /// The same with the model's output, which a row of uld_step takes as it is.
  ARDIFF_DEVICE WindowState<float> advance_by(const WindowState<float>& s, float x0, float out,
                                              float n1, float n2, bool two) const {
    if (!kinetic || !calls()) return advance(s, x0, n1, n2, two);
    const UldState<float> next = uld_update(uld_row<float>(coef, scale), uld_starts_stage(coef),
                                            s.x, s.v, out, s.memory.first, n1, n2);
    return {next.z, next.v, s.memory};
  }
  ARDIFF_DEVICE Difference<float> difference(float apart, const MemoryOf<float>& drafted,
                                             const MemoryOf<float>& kept) const {
    return visit([&](const auto& row) { return row.difference(apart, drafted, kept); });
  }
};

/// A patch between two rounds: `round` counts from 0, which has nothing to verify.
struct LookaheadWindow {
  const HeadLookaheadArgs& a;
  const HeadTeam& team;
  const int64_t b, round;

  ARDIFF_DEVICE const LookaheadRounds& k() const { return a.look; }
  ARDIFF_DEVICE const HeadSolver& s() const { return a.solver; }
  ARDIFF_DEVICE int d() const { return a.inputs; }
  ARDIFF_DEVICE int next() const { return static_cast<int>(round % 2); }
  ARDIFF_DEVICE int last() const { return 1 - next(); }

  // Places of row j of the patch's window in scratch memory.
  ARDIFF_DEVICE int64_t of_row(int j) const { return b * k().rows + j; }
  ARDIFF_DEVICE int64_t at_row(int j, int i) const { return of_row(j) * d() + i; }
  ARDIFF_DEVICE int64_t at_state(int j, int i) const { return (b * (k().rows + 1) + j) * d() + i; }
  ARDIFF_DEVICE float* result(int which, int i) const {
    return static_cast<float*>(s().result[which].data) + b * s().result[which].stride + i;
  }
  ARDIFF_DEVICE bool has_v() const { return k().velocities != nullptr; }

  ARDIFF_DEVICE LookaheadRow table_row(int64_t i) const {
    return {s().coef + i * kColumns, k().plan + i * kColumns, s().op && s().op[i] != 0,
            s().noise_scale.data ? at(s().noise_scale, b) : 1.0f};
  }
  ARDIFF_DEVICE int32_t draw_of(int64_t i) const {
    return static_cast<int32_t>(static_cast<uint32_t>(at(s().draw, b)) + static_cast<uint32_t>(i));
  }

  // Without a second memory the place of it holds the memory.
  ARDIFF_DEVICE MemoryOf<float> memory(const float* from, int j, int i) const {
    const float* p = from + 2 * at_state(j, 0) + i;
    return {read_fresh(p), read_fresh(p + d())};
  }
  ARDIFF_DEVICE void keep_memory(float* to, int j, int i, const MemoryOf<float>& m) const {
    float* p = to + 2 * at_state(j, 0) + i;
    p[0] = m.first;
    p[d()] = m.second;
  }
  ARDIFF_DEVICE MemoryOf<float> result_memory(int i) const {
    return {read_fresh(result(1, i)), read_fresh(result(1, k().two_memories ? d() + i : i))};
  }
  ARDIFF_DEVICE void write_memory(int i, const MemoryOf<float>& m) const {
    *result(1, i) = m.first;
    if (k().two_memories) *result(1, d() + i) = m.second;
  }
  ARDIFF_DEVICE Rule rule(const LookaheadRow& r) const {
    return rule_of(r.couples(), !k().by_law, k().bound);
  }

  /// The entry of a row of the table in what a round knows, where `which` are its places; -1: none.
  ARDIFF_DEVICE int known(int which, bool any, int64_t i) const {
    if (!any) return -1;
    const int64_t entry = i - read_fresh(k().row[which] + b);
    return entry >= 0 && entry < read_fresh(k().count[which] + b) ? static_cast<int>(entry) : -1;
  }

  /// f(element) for all elements of the patch, or f(row, element) for n rows.
  template <class F>
  ARDIFF_DEVICE void elements(F f) const {
    team.threads([&](int thread) {
#pragma unroll 1
      for (int i = thread; i < d(); i += HeadTeam::kSize) f(i);
    });
  }
  template <class F>
  ARDIFF_DEVICE void rows_of(int n, int each, F f) const {
    team.threads([&](int thread) {
#pragma unroll 1
      for (int64_t i = thread; i < static_cast<int64_t>(n) * each; i += HeadTeam::kSize) {
        f(static_cast<int>(i / each), static_cast<int>(i % each));
      }
    });
  }

  ARDIFF_DEVICE float guided(int j, int i) const {
    const int64_t r = of_row(j);
    if (read_fresh(k().place + r) < 0) return 0.0f;  // no set
    const float* p = a.out + r * a.out_stride + i;
    const int64_t way = static_cast<int64_t>(a.N) * a.out_stride;
    const float out = read_fresh(p);
    if (a.ways == 1) return out;
    const float uncond = read_fresh(p + way), w = at(s().guidance, b);
    if (a.ways == 2) return guide(out, uncond, w);
    return guide(out, uncond, read_fresh(p + 2 * way), w, at(s().guidance2, b));
  }

  /// Takes the state as it is given.
  ARDIFF_DEVICE void begin() const {
    elements([&](int i) {
      const auto given = [&](int which) {
        return static_cast<const float*>(s().given[which].data) + b * s().given[which].stride + i;
      };
      *result(0, i) = *given(0);
      write_memory(i, {*given(1), k().two_memories ? given(1)[d()] : 0.0f});
      if (has_v()) *result(2, i) = *given(2);
    });
    team.threads([&](int thread) {
      if (thread != 0) return;
      k().row[0][b] = 0;
      k().rounds[b] = k().accepted[b] = k().evaluated[b] = 0;
    });
  }

  /// The state after row j by the model's output, with these normals.
  ARDIFF_DEVICE WindowState<float> true_state(const LookaheadRow& r, int j, int i, float x0,
                                              const MemoryOf<float>& kept, float n1,
                                              float n2) const {
    WindowState<float> state{read_fresh(k().states[last()] + at_state(j, i)), 0.0f, kept};
    if (has_v()) state.v = read_fresh(k().velocities + at_state(j, i));
    return r.advance_by(state, x0, r.kinetic ? guided(j, i) : 0.0f, n1, n2, k().two_memories);
  }

  /// 1 where the row's own state is another than the drafted one: the sum of Rule::equal.
  ARDIFF_DEVICE float differs(const WindowState<float>& own, int j, int i) const {
    const float x = read_fresh(k().states[last()] + at_state(j + 1, i));
    const float v = has_v() ? read_fresh(k().velocities + at_state(j + 1, i)) : own.v;
    return own.x == x && own.v == v ? 0.0f : 1.0f;
  }

  /// Terms of the sums of row j, for the elements of a lane in the chunk from `begin`.
  ARDIFF_DEVICE void lane_terms(int64_t row, int j, int64_t begin, int lane,
                                float (&terms)[kSums]) const {
#pragma unroll
    for (int t = 0; t < kSums; ++t) terms[t] = 0.0f;
    const LookaheadRow r = table_row(row + j);
    const PlanRow<float> p = plan_row<float>(r.plan);
    const Rule rule = this->rule(r);
    const int entry = known(next(), round > 1, row + j);
    const int before = j > 0 ? j - 1 : known(next(), round > 1, row - 1);
    const int from = j > 0 ? last() : next();
    const int64_t end = begin + kChunk < d() ? begin + kChunk : d();
#pragma unroll 1
    for (int64_t e = begin + lane; e < end; e += kSumLanes) {
      const int i = static_cast<int>(e);
      const float x = read_fresh(k().states[last()] + at_state(j, i));
      const float x0 = read_fresh(k().data[last()] + at_row(j, i));
      const float guess = read_fresh(k().drafts + at_row(j, i));
      const MemoryOf<float> kept = memory(k().kept_memory, j, i);
      const Difference<float> apart =
          r.difference(guess - x0, memory(k().drafted_memory, j, i), kept);
      const float* normals = k().normals + 2 * at_row(j, 0) + i;
      const float n1 = read_fresh(normals), n2 = read_fresh(normals + d());
      float &first = terms[kFirst], &second = terms[kSecond];
      if (rule == Rule::law) add_decision<Rule::law>(p, apart, n1, n2, first, second);
      if (rule == Rule::equal) first += differs(true_state(r, j, i, x0, kept, n1, n2), j, i);
      if (rule == Rule::within) add_decision<Rule::within>(p, apart, n1, n2, first, second);
      float dx = 0.0f, d0 = 0.0f;
      if (entry >= 0) {
        dx = x - read_fresh(k().states[next()] + at_state(entry, i));
        d0 = x0 - read_fresh(k().data[next()] + at_row(entry, i));
      } else if (before >= 0) {
        const float x0_before = read_fresh(k().data[from] + at_row(before, i));
        const float x_before = read_fresh(k().states[from] + at_state(before, i));
        dx = beside_the_mean(p, x, x_before, x0_before);
        d0 = x0 - x0_before;
      }
      terms[kSquare] = fma(dx, dx, terms[kSquare]);
      terms[kProduct] = fma(dx, d0, terms[kProduct]);
    }
  }

  ARDIFF_DEVICE RowSums sums_of(int j) const {
    const double* sums = k().sums + of_row(j) * kLookaheadSums;
    return {read_fresh(sums + kFirst), read_fresh(sums + kSecond), read_fresh(sums + kSquare),
            read_fresh(sums + kProduct)};
  }

  /// Whether row j holds (then its factor is NaN), or the factor of its reflection.
  ARDIFF_DEVICE void decide(int64_t row, int j) const {
    const Rule rule = this->rule(table_row(row + j));
    const float log_u =
        rule == Rule::law ? log_accept_uniform(*s().key, s().stream[b], draw_of(row + j)) : 0.0f;
    const RowDecision found = decide_row(rule, sums_of(j), log_u, k().bound);
    k().factor[of_row(j)] = found.holds ? from_bits(0x7fc00000u) : found.factor;
  }

  /// What follows row by row: the gains, and how far the patch is now.
  ARDIFF_DEVICE void count_rows(int64_t row, int n) const {
    int accepted = 0;
    float gain_before = 0.0f;
    const int before = known(next(), round > 1, row - 1);
    bool any = before >= 0;
    if (any) gain_before = read_fresh(k().gain[next()] + of_row(before));
#pragma unroll 1
    for (int j = 0; j < n; ++j) {
      const float* plan = table_row(row + j).plan;
      const int entry = known(next(), round > 1, row + j);
      const float kept = entry >= 0 ? read_fresh(k().gain[next()] + of_row(entry))
                                    : kept_gain(plan, any, gain_before);
      gain_before = measured_gain(plan, sums_of(j), any || entry >= 0, kept);
      any = true;
      k().gain[last()][of_row(j)] = gain_before;
      const float factor = read_fresh(k().factor + of_row(j));
      if (accepted == j && factor != factor) ++accepted;
    }
    k().accepted[b] += accepted;
    k().row[next()][b] = static_cast<int>(row) + (accepted < n ? accepted + 1 : n);
  }

  /// The state at the new row.
  ARDIFF_DEVICE void move(int64_t row, int64_t new_row, int n, int i) const {
    const int passed = static_cast<int>(new_row - row), j = passed - 1;
    const float factor = read_fresh(k().factor + of_row(j));
    float x = read_fresh(k().states[last()] + at_state(passed, i));
    float v = has_v() ? read_fresh(k().velocities + at_state(passed, i)) : 0.0f;
    if (factor == factor) {
      const LookaheadRow r = table_row(row + j);
      const float guess = read_fresh(k().drafts + at_row(j, i));
      const float x0 = read_fresh(k().data[last()] + at_row(j, i));
      const MemoryOf<float> kept = memory(k().kept_memory, j, i);
      const float* normals = k().normals + 2 * at_row(j, 0) + i;
      float n1 = read_fresh(normals), n2 = read_fresh(normals + d());
      if (rule(r) == Rule::law) {
        const Difference<float> apart =
            r.difference(guess - x0, memory(k().drafted_memory, j, i), kept);
        n1 = fma(factor, apart.one, n1);
        n2 = fma(factor, apart.two, n2);
      }
      const WindowState<float> state = true_state(r, j, i, x0, kept, n1, n2);
      x = state.x;
      v = state.v;
    }
    write_memory(i, memory(k().kept_memory, passed, i));
    *result(0, i) = x;
    if (has_v()) *result(2, i) = v;
  }

  ARDIFF_DEVICE void verify() const {
    const int64_t row = read_fresh(k().row[last()] + b);
    const int n = read_fresh(k().count[last()] + b);
    if (n == 0) {
      team.threads([&](int thread) {
        if (thread == 0) k().row[next()][b] = static_cast<int>(row);
      });
      return;
    }
    rows_of(n, d(), [&](int j, int i) {
      const LookaheadRow r = table_row(row + j);
      float x0 = read_fresh(k().drafts + at_row(j, i));
      if (r.calls()) {
        const float x = read_fresh(k().states[last()] + at_state(j, i));
        x0 = predicted(plan_row<float>(r.plan), x, guided(j, i));
      }
      k().data[last()][at_row(j, i)] = x0;
    });
    elements([&](int i) {
      MemoryOf<float> kept = result_memory(i), drafted = kept;
#pragma unroll 1
      for (int j = 0; j <= n; ++j) {
        keep_memory(k().kept_memory, j, i, kept);
        keep_memory(k().drafted_memory, j, i, drafted);
        if (j == n) break;
        const LookaheadRow r = table_row(row + j);
        const float x = read_fresh(k().states[last()] + at_state(j, i));
        kept = r.remember(x, read_fresh(k().data[last()] + at_row(j, i)), kept, k().two_memories);
        drafted = r.remember(x, read_fresh(k().drafts + at_row(j, i)), drafted, k().two_memories);
      }
    });
    team.warps([&](const Warp& warp) {
#pragma unroll 1
      for (int j = warp.index; j < n; j += HeadTeam::kWarps) {
        double* sums = k().sums + of_row(j) * kLookaheadSums;
#pragma unroll 1
        for (int64_t begin = 0; begin < d(); begin += kChunk) {
          warp.sums(
              [&](int lane, float (&terms)[kSums]) { lane_terms(row, j, begin, lane, terms); },
              [&](int which, float sum) {
                if (which >= kLookaheadSums) return;
                sums[which] = begin == 0 ? sum : sums[which] + sum;
              });
        }
      }
    });
    rows_of(n, 1, [&](int j, int) { decide(row, j); });
    team.threads([&](int thread) {
      if (thread == 0) count_rows(row, n);
    });
    const int64_t new_row = read_fresh(k().row[next()] + b);
    elements([&](int i) { move(row, new_row, n, i); });
  }

  /// Draws the normals of a quad of row j.
  ARDIFF_DEVICE void draw_normals(int64_t row, int j, int quad) const {
    const LookaheadRow r = table_row(row + j);
    Four<float> p{}, q{};
    if (r.noisy()) {
      const uint32_t counter = counter_word(draw_of(row + j), kStepNoise);
      const SampleAddress address = sample_address(s().key, s().stream[b], counter);
      p = quad_normals(address, static_cast<uint32_t>(r.kinetic ? 2 * quad : quad));
      if (r.kinetic) q = quad_normals(address, static_cast<uint32_t>(2 * quad + 1));
    }
    const Four<float> n1 = r.kinetic ? Four<float>{p.v[0], p.v[2], q.v[0], q.v[2]} : p;
    const Four<float> n2 = r.kinetic ? Four<float>{p.v[1], p.v[3], q.v[1], q.v[3]} : Four<float>{};
    const int left = d() - kUnit * quad;
    float* to = k().normals + 2 * at_row(j, 0) + kUnit * quad;
    write_some(to, left, n1);
    write_some(to + d(), left, n2);
  }

  /// Runs an element through n rows on guesses.
  ARDIFF_DEVICE void draft_element(int64_t row, int n, int i) const {
    WindowState<float> state{read_fresh(result(0, i)), has_v() ? read_fresh(result(2, i)) : 0.0f,
                             result_memory(i)};
    float x_before = 0.0f, guess_before = 0.0f, gain_before = 0.0f;
    const int first = known(last(), round > 0, row - 1);
    const bool any = first >= 0;
    if (any) {
      x_before = read_fresh(k().states[last()] + at_state(first, i));
      guess_before = read_fresh(k().data[last()] + at_row(first, i));
      gain_before = read_fresh(k().gain[last()] + of_row(first));
    }
#pragma unroll 1
    for (int j = 0; j <= k().rows; ++j) {
      k().states[next()][at_state(j, i)] = state.x;
      if (has_v()) k().velocities[at_state(j, i)] = state.v;
      if (j >= n) continue;
      const LookaheadRow r = table_row(row + j);
      const PlanRow<float> p = plan_row<float>(r.plan);
      const int entry = known(last(), round > 0, row + j);
      float guess, gain;
      if (entry >= 0) {
        gain = read_fresh(k().gain[last()] + of_row(entry));
        guess = known_guess(state.x, read_fresh(k().states[last()] + at_state(entry, i)),
                            read_fresh(k().data[last()] + at_row(entry, i)), gain);
      } else {
        gain = kept_gain(r.plan, any, gain_before);
        guess =
            any || j > 0 ? fresh_guess(p, state.x, x_before, guess_before, gain) : gain * state.x;
      }
      k().drafts[at_row(j, i)] = guess;
      const float* normals = k().normals + 2 * at_row(j, 0) + i;
      x_before = state.x;
      guess_before = guess;
      gain_before = gain;
      state =
          r.advance(state, guess, read_fresh(normals), read_fresh(normals + d()), k().two_memories);
    }
  }

  ARDIFF_DEVICE void draft() const {
    const int64_t row = read_fresh(k().row[next()] + b), left = s().steps - row;
    const int n = static_cast<int>(left < k().rows ? left : k().rows);
    const auto evaluated = [&](int j) { return j < n && table_row(row + j).calls(); };
    rows_of(k().rows, 1, [&](int j, int) {
      const int set = evaluated(j) ? s().set[row + j] : -1;
      const bool own = a.modulation_rows != a.ways;
      const bool there = set >= 0 && set < s().sets;
      k().place[of_row(j)] = there ? set * a.modulation_rows + (own ? static_cast<int>(b) : 0) : -1;
      if (j > 0) return;
      k().count[next()][b] = n;
      if (n > 0) ++k().rounds[b];
      for (int other = 0; other < n; ++other) k().evaluated[b] += evaluated(other);
    });
    if (n == 0) return;
    rows_of(n, quotient_up(d(), kUnit), [&](int j, int quad) { draw_normals(row, j, quad); });
    elements([&](int i) { draft_element(row, n, i); });
  }
};

/// The rows of activations of a round: row j of patch b is b L + j.
struct DraftedRows {
  const HeadLookaheadArgs& a;
  const int64_t round;

  ARDIFF_DEVICE int place(int64_t row) const { return read_fresh(a.look.place + row % a.N); }
  ARDIFF_DEVICE ModulationRow modulation_of(const HeadArgs&, int64_t row) const {
    const int own = place(row), ways = static_cast<int>(row / a.N);
    const int each = a.modulation_rows / a.ways;  // rows of a way
    return {a.modulation, (own < 0 ? 0 : own) + static_cast<int64_t>(ways) * each};
  }
  ARDIFF_DEVICE Four<float> input(const HeadArgs&, int64_t row, int i, int n) const {
    if (place(row) < 0) return {};
    const int64_t b = row / a.look.rows, j = row % a.look.rows;
    return read_some(a.look.states[round % 2] + (b * (a.look.rows + 1) + j) * a.inputs + i, n);
  }
  ARDIFF_DEVICE bool any(const HeadArgs&, int64_t first, int count) const {
    bool found = false;
#pragma unroll 4
    for (int i = 0; i < count; ++i) found |= place(first + i) >= 0;
    return found;
  }
};

/// The kernel of a call. A round is a phase of the windows and one for each layer.
template <class W>
struct HeadLookaheadBody {
  using Team = HeadTeam;

  ARDIFF_DEVICE static void begin(const HeadLookaheadArgs& a, const Team& team, float* shared) {
    keep_weights(a, memory_of(a, shared).resident, team);
  }

  /// A round passes a row or more of each patch; behind the last one the windows are verified.
  ARDIFF_HD static int64_t phases(const HeadLookaheadArgs& a) {
    return static_cast<int64_t>(a.solver.steps) * (a.layers() + 1) + 1;
  }

  /// After the windows of a round: whether no patch has one.
  ARDIFF_DEVICE static bool ended(const HeadLookaheadArgs& a, int64_t phase) {
    const int64_t round = phase / (a.layers() + 1);
    if (phase % (a.layers() + 1) != 1) return false;
    int left = 0;
#pragma unroll 4
    for (int b = 0; b < a.look.patches; ++b) left |= read_fresh(a.look.count[round % 2] + b);
    return left == 0;
  }

  ARDIFF_DEVICE static void phase(const HeadLookaheadArgs& a, const Team& team, float* shared,
                                  int64_t phase) {
    const int64_t round = phase / (a.layers() + 1);
    const int layer = static_cast<int>(phase % (a.layers() + 1)) - 1;
    if (layer >= 0) {
      const HeadMemory memory = memory_of(a, shared);
      HeadLayerPhase<W, true, DraftedRows>{a, team, memory, layer, 0, {a, round}}.run();
      return;
    }
#pragma unroll 1
    for (int64_t b = team.block; b < a.look.patches; b += team.blocks) {
      const LookaheadWindow window{a, team, b, round};
      if (round == 0) window.begin();
      if (round > 0) window.verify();
      window.draft();
    }
  }
};

}  // namespace ardiff
