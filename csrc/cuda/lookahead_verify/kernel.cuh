// lookahead_verify on CUDA, in phases between which the threads of a block wait for one another
// (csrc/cuda/phases.cuh). A block has one sample and goes over its rows: sums of a row in the order
// of csrc/math/sums.h, so the decisions are the CPU library's to the bit; one thread decides; then
// the memories of a row that holds are moved, or the state of the one that does not is taken. A
// thread has the same elements in every phase, so what it writes of them nobody else needs.
#pragma once

#include "../lookahead/window.cuh"
#include "../phases.cuh"
#include "../sums.cuh"

namespace ardiff {

constexpr int kRowSums = 4;  // of RowSums

/// What the threads of a block share. Rows of lanes are padded against bank conflicts.
struct VerifyShared {
  float lanes[kRowSums][kBlockGroups][kSumLanes + kUnit];
  double totals[kRowSums][kBlockGroups];
  RowDecision decision;
};

/// A row of the block's sample. `before`: the row before it, or what is known of that, is there.
struct VerifyRow {
  WindowRow r;
  int64_t b, j, last;
  bool going;
  Rule rule;

  ARDIFF_HD bool before() const { return j > 0 || last >= 0; }
};

template <class Model, bool kSecond, bool kVector>
struct VerifyBody {
  static constexpr int kBlocks = 2;
  using Shared = VerifyShared;
  using State = Nothing;
  using Team = ardiff::Team<kThreads>;

  ARDIFF_DEVICE static void flow(const VerifyArgs& a, Shared& shared, const Team& team) {
    const int64_t b = team.number(), rows = window_rows(a, b);
    const int64_t last = known_entry(a, b, int64_t{a.row[b]} - 1);
    float gain =
        last >= 0 ? a.gain[b * a.K + last] : 0.0f;  // of the row before; the first thread's
    int64_t accepted = 0, ended = 0;
    team.each([&](int thread) { begin(a, b, thread); });
#pragma unroll 1
    for (int64_t j = 0; j < rows; ++j) {
      VerifyRow row{window_row(a, b, j), b, j, last, ended == 0, Rule::equal};
      row.rule = rule_of(row.r.couples, a.by_tolerance, a.bound);
#pragma unroll 1
      for (int64_t round = 0; round * kGroups * kChunk < a.d; ++round) {
        if (round > 0) team.wait_in_warps();  // a group lies in one warp
        team.each([&](int thread) { sum(a, row, shared, thread, round); });
        team.wait_in_warps();
        team.each([&](int thread) { add(a, shared, thread, round); });
      }
      team.wait();
      team.threads([&](int thread) {
        if (thread == 0) decide(a, row, shared, gain);
      });
      if (!row.going) continue;
      const RowDecision decision = shared.decision;
      team.each([&](int thread) {
        row.r.kinetic ? update<UldWindow<float>>(a, row, decision, thread)
                      : update<DiffusionWindow<float>>(a, row, decision, thread);
      });
      (decision.holds ? accepted : ended) += 1;
    }
    team.each([&](int thread) { end(a, b, rows, accepted, ended, thread); });
  }

  /// Calls f(i, n) for the units of a thread's elements.
  template <class F>
  ARDIFF_HD static void units(int64_t d, int thread, F f) {
    const int64_t group = thread / kGroupThreads, member = thread % kGroupThreads;
#pragma unroll 1
    for (int64_t chunk = kChunk * group; chunk < d; chunk += kChunk * kGroups) {
      const int64_t stop = d - chunk < kChunk ? d : chunk + kChunk;
#pragma unroll 1
      for (int64_t i = chunk + kUnit * member; i < stop; i += kSumLanes) {
        f(i, unit_length<kVector>(d, i));
      }
    }
  }

  /// Both memories begin as the state's.
  ARDIFF_HD static void begin(const VerifyArgs& a, int64_t b, int thread) {
    units(a.d, thread, [&](int64_t i, int n) {
      const UnitMemory m = load_memory<kSecond, kVector>(a.memory, b, a.d, i, n);
      store_memory<kSecond, kVector>(a.memory_new, b, a.d, i, n, m);
      store_memory<kSecond, kVector>(a.drafted, b, a.d, i, n, m);
    });
  }

  /// Data predictions and lanes of this round's chunk.
  ARDIFF_HD static void sum(const VerifyArgs& a, const VerifyRow& row, VerifyShared& shared,
                            int thread, int64_t round) {
    const int group = thread / kGroupThreads;
    const int64_t lane = kUnit * (thread % kGroupThreads);
    const int64_t first = kChunk * (group + round * kGroups);
    if (first >= a.d) return;
    const int64_t stop = a.d - first < kChunk ? a.d : first + kChunk;
    Four<float> sums[kRowSums]{};
#pragma unroll 1
    for (int64_t i = first + lane; i < stop; i += kSumLanes) {
      const int n = unit_length<kVector>(a.d, i);
      const Four<float> x = load<float, kVector>(a.states, row.b, row.j * a.d + i, n);
      const Four<float> guess = load<float, kVector>(a.drafts, row.b, row.j * a.d + i, n);
      const Four<float> x0 = predict(a, row, i, n, x, guess);
      if (row.r.known >= 0 || row.before()) add_gain(a, row, i, n, x, x0, sums[2], sums[3]);
      if (!row.going) continue;
      row.r.kinetic ? add_terms<UldWindow<float>>(a, row, i, n, guess, x0, sums[0], sums[1])
                    : add_terms<DiffusionWindow<float>>(a, row, i, n, guess, x0, sums[0], sums[1]);
    }
    for (int s = 0; s < kRowSums; ++s) {
      store<float, true>({shared.lanes[s][group], 0}, 0, lane, kUnit, sums[s]);
    }
  }

  ARDIFF_HD static Four<float> predict(const VerifyArgs& a, const VerifyRow& row, int64_t i, int n,
                                       const Four<float>& x, const Four<float>& guess) {
    Four<float> x0 = guess;
    if (row.r.plan[LookaheadColumn::calls] != 0.0f) {
      const PlanRow<float> plan = plan_row<float>(row.r.plan);
      const Four<Model> out = load<Model, kVector>(a.outs, row.b, row.j * a.d + i, n);
      for (int k = 0; k < kUnit; ++k) {
        x0.v[k] = clamp(predicted(plan, x.v[k], widen(out.v[k])), -a.x0_limit, a.x0_limit);
      }
    }
    store<float, kVector>(a.x0, row.b, row.j * a.d + i, n, x0);
    return x0;
  }

  ARDIFF_HD static void add_gain(const VerifyArgs& a, const VerifyRow& row, int64_t i, int n,
                                 const Four<float>& x, const Four<float>& x0, Four<float>& square,
                                 Four<float>& product) {
    const bool known = row.r.known >= 0;
    const bool inside = !known && row.j > 0;  // the row before lies in the window
    const int64_t place = inside ? (row.j - 1) * a.d : (known ? row.r.known : row.last) * a.d;
    const Four<float> other =
        load<float, kVector>(inside ? a.states : a.known_x, row.b, place + i, n);
    const Four<float> other0 =
        load<float, kVector>(inside ? read(a.x0) : a.known_0, row.b, place + i, n);
    const PlanRow<float> plan = plan_row<float>(row.r.plan);
    for (int k = 0; k < kUnit; ++k) {
      const float dx =
          known ? x.v[k] - other.v[k] : beside_the_mean(plan, x.v[k], other.v[k], other0.v[k]);
      const float d0 = x0.v[k] - other0.v[k];
      square.v[k] = fma(dx, dx, square.v[k]);
      product.v[k] = fma(dx, d0, product.v[k]);
    }
  }

  template <class Row>
  ARDIFF_HD static void add_terms(const VerifyArgs& a, const VerifyRow& row, int64_t i, int n,
                                  const Four<float>& guess, const Four<float>& x0,
                                  Four<float>& first, Four<float>& second) {
    const PlanRow<float> plan = plan_row<float>(row.r.plan);
    const Row each(row.r.coef, plan, row.r.scale);
    const UnitMemory drafted = load_memory<kSecond, kVector>(read(a.drafted), row.b, a.d, i, n);
    const UnitMemory memory = load_memory<kSecond, kVector>(read(a.memory_new), row.b, a.d, i, n);
    UnitNormals normals{};
    if (row.rule == Rule::law) normals = unit_normals<kVector>(a, row.r, row.b, row.j, i, n);
    for (int k = 0; k < kUnit; ++k) {
      const Difference<float> difference = each.difference(
          guess.v[k] - x0.v[k], drafted.template at<kSecond>(k), memory.template at<kSecond>(k));
      const float n1 = normals.first.v[k], n2 = Row::kKinetic ? normals.second.v[k] : 0.0f;
      if (row.rule == Rule::law) {
        add_decision<Rule::law>(plan, difference, n1, n2, first.v[k], second.v[k]);
      } else if (row.rule == Rule::within) {
        add_decision<Rule::within>(plan, difference, n1, n2, first.v[k], second.v[k]);
      } else {
        add_decision<Rule::equal>(plan, difference, n1, n2, first.v[k], second.v[k]);
      }
    }
  }

  /// The chunk's sums from its lanes: one of the four per thread.
  ARDIFF_HD static void add(const VerifyArgs& a, VerifyShared& shared, int thread, int64_t round) {
    const int group = thread / kGroupThreads, member = thread % kGroupThreads;
    if (member >= kRowSums) return;
    double& total = shared.totals[member][group];
    if (round == 0) total = 0;
    if (kChunk * (group + round * kGroups) >= a.d) return;
    float lanes[kSumLanes];
    memcpy(lanes, shared.lanes[member][group], sizeof lanes);
    total += sum_lanes(lanes);
  }

  /// The row's gain, and whether it holds.
  ARDIFF_HD static void decide(const VerifyArgs& a, const VerifyRow& row, VerifyShared& shared,
                               float& gain) {
    double totals[kRowSums];
    for (int s = 0; s < kRowSums; ++s) {
      totals[s] = 0.0;
      for (int g = 0; g < kBlockGroups; ++g) totals[s] += shared.totals[s][g];
    }
    const RowSums sums{totals[0], totals[1], totals[2], totals[3]};
    const bool known = row.r.known >= 0;
    const float kept =
        known ? a.gain[row.b * a.K + row.r.known] : kept_gain(row.r.plan, row.before(), gain);
    gain = measured_gain(row.r.plan, sums, known || row.before(), kept);
    a.gain_new[row.b * a.L + row.j] = gain;
    if (!row.going) return;
    float log_u = 0.0f;
    if (row.rule == Rule::law) {
      log_u = log_accept_uniform(*a.address.key, a.address.stream[row.b], row.r.draw);
    }
    shared.decision = decide_row(row.rule, sums, log_u, a.bound);
  }

  /// Moves both memories over a row that holds; else takes the state after the row by the model's
  /// data prediction, its normals reflected along delta.
  template <class Row>
  ARDIFF_HD static void update(const VerifyArgs& a, const VerifyRow& row,
                               const RowDecision& decision, int thread) {
    if (decision.holds && !Row::moves_memory(row.r.coef)) return;
    const Row each(row.r.coef, plan_row<float>(row.r.plan), row.r.scale);
    units(a.d, thread, [&](int64_t i, int n) {
      const int64_t place = row.j * a.d + i;
      UnitMemory drafted = load_memory<kSecond, kVector>(read(a.drafted), row.b, a.d, i, n);
      UnitMemory memory = load_memory<kSecond, kVector>(read(a.memory_new), row.b, a.d, i, n);
      Four<float> x = load<float, kVector>(a.states, row.b, place, n);
      const Four<float> guess = load<float, kVector>(a.drafts, row.b, place, n);
      const Four<float> x0 = load<float, kVector>(read(a.x0), row.b, place, n);
      if (decision.holds) {
        for (int k = 0; k < kUnit; ++k) {
          memory.set(
              k, each.template remember<kSecond>(x.v[k], x0.v[k], memory.template at<kSecond>(k)));
          drafted.set(k, each.template remember<kSecond>(x.v[k], guess.v[k],
                                                         drafted.template at<kSecond>(k)));
        }
        store_memory<kSecond, kVector>(a.drafted, row.b, a.d, i, n, drafted);
      } else {
        const UnitNormals normals = unit_normals<kVector>(a, row.r, row.b, row.j, i, n);
        Four<float> v{};
        if (a.velocities.data) v = load<float, kVector>(a.velocities, row.b, place, n);
        for (int k = 0; k < kUnit; ++k) {
          const MemoryOf<float> kept = memory.template at<kSecond>(k);
          const Difference<float> difference =
              each.difference(guess.v[k] - x0.v[k], drafted.template at<kSecond>(k), kept);
          float n1 = normals.first.v[k], n2 = normals.second.v[k];
          if (decision.factor != 0.0f) {
            n1 = fma(decision.factor, difference.one, n1);
            n2 = fma(decision.factor, difference.two, n2);
          }
          const WindowState<float> next =
              each.template advance<kSecond>({x.v[k], v.v[k], kept}, x0.v[k], n1, n2);
          x.v[k] = next.x;
          v.v[k] = next.v;
          memory.set(k, next.memory);
        }
        store<float, kVector>(a.x_new, row.b, i, n, x);
        if (a.velocities.data) store<float, kVector>(a.v_new, row.b, i, n, v);
      }
      store_memory<kSecond, kVector>(a.memory_new, row.b, a.d, i, n, memory);
    });
  }

  /// What is left: the state where all rows hold, zeros past the rows, the new row.
  ARDIFF_HD static void end(const VerifyArgs& a, int64_t b, int64_t rows, int64_t accepted,
                            int64_t ended, int thread) {
    units(a.d, thread, [&](int64_t i, int n) {
      for (int64_t j = rows; j < a.L; ++j) {
        store<float, kVector>(a.x0, b, j * a.d + i, n, {});
      }
      if (ended) return;
      const int64_t place = rows * a.d + i;
      store<float, kVector>(a.x_new, b, i, n, load<float, kVector>(a.states, b, place, n));
      if (a.velocities.data) {
        store<float, kVector>(a.v_new, b, i, n, load<float, kVector>(a.velocities, b, place, n));
      }
    });
    if (thread != 0) return;
    for (int64_t j = rows; j < a.L; ++j) a.gain_new[b * a.L + j] = 0.0f;
    a.accepted[b] = static_cast<int32_t>(accepted);
    a.row_new[b] = static_cast<int32_t>(a.row[b] + accepted + ended);
  }
};

}  // namespace ardiff
