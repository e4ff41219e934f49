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
  double groups[kRowSums][kBlockGroups];
  double totals[kRowSums];
  RowDecision decision;
};

/// A row of the block's sample. `before`: the row before it, or what is known of that, is there.
struct VerifyRow {
  WindowRow r;
  int64_t b, j, last;
  bool going;
  Rule rule;

  ARDIFF_HD bool before() const { return j > 0 || last >= 0; }
  ARDIFF_HD bool calls() const { return r.plan[LookaheadColumn::calls] != 0.0f; }
};

template <class Model, bool kVector>
struct VerifyBody {
  static constexpr int kBlocks = 2;
  using Shared = VerifyShared;
  using State = Nothing;
  using Team = ardiff::Team<kThreads>;

  ARDIFF_DEVICE static void flow(const VerifyArgs& a, Shared& shared, const Team& team) {
    const int64_t b = team.number(), rows = window_rows(a, b);
    const int64_t last = known_entry(a, b, int64_t{a.row[b]} - 1);
    float gain = last >= 0 ? a.gain[b * a.K + last] : 0.0f;  // of the row before, in thread 0
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
      team.each([&](int thread) { total(a, shared, thread); });
      team.wait_in_warps();
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
      const UnitMemory m = load_memory<kVector>(a, a.memory, b, i, n);
      store_memory<kVector>(a, a.memory_new, b, i, n, m);
      store_memory<kVector>(a, a.drafted, b, i, n, m);
    });
  }

  /// Data predictions and lanes of this round's chunk. Two loops, the second of which finds in the
  /// first-level cache what the first has read: in one the sums need too many registers.
  ARDIFF_HD static void sum(const VerifyArgs& a, const VerifyRow& row, VerifyShared& shared,
                            int thread, int64_t round) {
    const int group = thread / kGroupThreads;
    const int64_t lane = kUnit * (thread % kGroupThreads);
    const int64_t first = kChunk * (group + round * kGroups);
    if (first >= a.d) return;
    const int64_t stop = a.d - first < kChunk ? a.d : first + kChunk;
    const auto sums_of = [&](int s, auto add) {
      Four<float> sums[2]{};
#pragma unroll 1
      for (int64_t i = first + lane; i < stop; i += kSumLanes) {
        add(i, unit_length<kVector>(a.d, i), sums[0], sums[1]);
      }
      store<float, true>({shared.lanes[s][group], 0}, 0, lane, kUnit, sums[0]);
      store<float, true>({shared.lanes[s + 1][group], 0}, 0, lane, kUnit, sums[1]);
    };
    sums_of(2, [&](int64_t i, int n, Four<float>& square, Four<float>& product) {
      const Four<float> x = load<float, kVector>(a.states, row.b, row.j * a.d + i, n);
      const Four<float> x0 = predict(a, row, i, n, x);
      if (row.r.known >= 0 || row.before()) add_gain(a, row, i, n, x, x0, square, product);
    });
    if (!row.going) return;
    sums_of(0, [&](int64_t i, int n, Four<float>& first, Four<float>& second) {
      row.r.kinetic ? add_terms<UldWindow<float>>(a, row, i, n, first, second)
                    : add_terms<DiffusionWindow<float>>(a, row, i, n, first, second);
    });
  }

  ARDIFF_HD static Four<float> predict(const VerifyArgs& a, const VerifyRow& row, int64_t i, int n,
                                       const Four<float>& x) {
    Four<float> x0;
    if (!row.calls()) {
      x0 = load<float, kVector>(a.drafts, row.b, row.j * a.d + i, n);
    } else {
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

  /// The terms of the row's decision.
  template <class Row>
  ARDIFF_HD static void add_terms(const VerifyArgs& a, const VerifyRow& row, int64_t i, int n,
                                  Four<float>& first, Four<float>& second) {
    const int64_t place = row.j * a.d + i;
    const PlanRow<float> plan = plan_row<float>(row.r.plan);
    const Row each(row.r.coef, plan, row.r.scale);
    const UnitMemory memory = load_memory<kVector>(a, read(a.memory_new), row.b, i, n);
    const Four<float> x0 = load<float, kVector>(read(a.x0), row.b, place, n);
    UnitNormals normals{};
    if (row.rule != Rule::within) {
      normals = unit_normals<kVector>(a, row.r, row.b, row.j, i, n);
    }
    if (row.rule == Rule::equal) {
      const Four<float> x = load<float, kVector>(a.states, row.b, place, n);
      const Four<float> x_next = load<float, kVector>(a.states, row.b, place + a.d, n);
      Four<float> v_next{};
      if (Row::kKinetic) v_next = load<float, kVector>(a.velocities, row.b, place + a.d, n);
      const UnitState s = advance(a, row, each, i, n, x, x0, memory, normals);
      for (int k = 0; k < kUnit; ++k) {  // the normals of absent elements are not zero
        if (k < n) add_unequal({s.x.v[k], s.v.v[k], {}}, x_next.v[k], v_next.v[k], first.v[k]);
      }
      return;
    }
    const Four<float> guess = load<float, kVector>(a.drafts, row.b, place, n);
    const UnitMemory drafted = load_memory<kVector>(a, read(a.drafted), row.b, i, n);
    for (int k = 0; k < kUnit; ++k) {
      const Difference<float> apart =
          each.difference(guess.v[k] - x0.v[k], drafted.at(k), memory.at(k));
      const float n1 = normals.first.v[k], n2 = normals.second.v[k];
      if (row.rule == Rule::law) {
        add_decision<Rule::law>(plan, apart, n1, n2, first.v[k], second.v[k]);
      } else {
        add_decision<Rule::within>(plan, apart, n1, n2, first.v[k], second.v[k]);
      }
    }
  }

  /// A unit of a state; v is zero where the row has none.
  struct UnitState {
    Four<float> x, v;
    UnitMemory memory;
  };

  /// The unit after the row by the model's data prediction x0, or its own output of a row of
  /// uld_step that calls it.
  template <class Row>
  ARDIFF_HD static UnitState advance(const VerifyArgs& a, const VerifyRow& row, const Row& each,
                                     int64_t i, int n, const Four<float>& x, const Four<float>& x0,
                                     const UnitMemory& memory, const UnitNormals& normals) {
    const int64_t place = row.j * a.d + i;
    Four<float> v{}, out;
    if (Row::kKinetic) v = load<float, kVector>(a.velocities, row.b, place, n);
    if (Row::kKinetic && row.calls()) {
      out = widened(load<Model, kVector>(a.outs, row.b, place, n));
    } else {
      for (int k = 0; k < kUnit; ++k) out.v[k] = each.output(x.v[k], x0.v[k]);
    }
    UnitState s;
    for (int k = 0; k < kUnit; ++k) {
      const WindowState<float> next =
          each.template advance_by<true>({x.v[k], v.v[k], memory.at(k)}, x0.v[k], out.v[k],
                                         normals.first.v[k], normals.second.v[k]);
      s.x.v[k] = next.x;
      s.v.v[k] = next.v;
      s.memory.set(a, k, next.memory);
    }
    return s;
  }

  /// The chunk's sums from its lanes: one of the four per thread.
  ARDIFF_HD static void add(const VerifyArgs& a, VerifyShared& shared, int thread, int64_t round) {
    const int group = thread / kGroupThreads, member = thread % kGroupThreads;
    if (member >= kRowSums) return;
    double& total = shared.groups[member][group];
    if (round == 0) total = 0;
    if (kChunk * (group + round * kGroups) >= a.d) return;
    float lanes[kSumLanes];
    memcpy(lanes, shared.lanes[member][group], sizeof lanes);
    total += sum_lanes(lanes);
  }

  /// The sample's sums from its groups: one of the four per thread.
  ARDIFF_HD static void total(const VerifyArgs& a, VerifyShared& shared, int thread) {
    if (thread >= kRowSums) return;
    double total = 0;
    for (int g = 0; g < kBlockGroups && kChunk * g < a.d; ++g) total += shared.groups[thread][g];
    shared.totals[thread] = total;
  }

  /// The row's gain, and whether it holds.
  ARDIFF_HD static void decide(const VerifyArgs& a, const VerifyRow& row, VerifyShared& shared,
                               float& gain) {
    const double* const t = shared.totals;
    const RowSums sums{t[0], t[1], t[2], t[3]};
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
      UnitMemory drafted = load_memory<kVector>(a, read(a.drafted), row.b, i, n);
      UnitMemory memory = load_memory<kVector>(a, read(a.memory_new), row.b, i, n);
      const Four<float> x = load<float, kVector>(a.states, row.b, place, n);
      const Four<float> guess = load<float, kVector>(a.drafts, row.b, place, n);
      const Four<float> x0 = load<float, kVector>(read(a.x0), row.b, place, n);
      if (decision.holds) {
        for (int k = 0; k < kUnit; ++k) {
          memory.set(a, k, each.template remember<true>(x.v[k], x0.v[k], memory.at(k)));
          drafted.set(a, k, each.template remember<true>(x.v[k], guess.v[k], drafted.at(k)));
        }
        store_memory<kVector>(a, a.drafted, row.b, i, n, drafted);
        store_memory<kVector>(a, a.memory_new, row.b, i, n, memory);
        return;
      }
      UnitNormals normals = unit_normals<kVector>(a, row.r, row.b, row.j, i, n);
      if (decision.factor != 0.0f) {
        for (int k = 0; k < kUnit; ++k) {
          const Difference<float> apart =
              each.difference(guess.v[k] - x0.v[k], drafted.at(k), memory.at(k));
          normals.first.v[k] = fma(decision.factor, apart.one, normals.first.v[k]);
          normals.second.v[k] = fma(decision.factor, apart.two, normals.second.v[k]);
        }
      }
      const UnitState s = advance(a, row, each, i, n, x, x0, memory, normals);
      store<float, kVector>(a.x_new, row.b, i, n, s.x);
      store_memory<kVector>(a, a.memory_new, row.b, i, n, s.memory);
      if (!a.velocities.data) return;
      Four<float> v = s.v;
      if (!Row::kKinetic) v = load<float, kVector>(a.velocities, row.b, place, n);
      store<float, kVector>(a.v_new, row.b, i, n, v);
    });
  }

  /// What is left: the state where all rows hold, zeros past the rows, the new row.
  ARDIFF_HD static void end(const VerifyArgs& a, int64_t b, int64_t rows, int64_t accepted,
                            int64_t ended, int thread) {
    units(a.d, thread, [&](int64_t i, int n) {
#pragma unroll 1
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
#pragma unroll 1
    for (int64_t j = rows; j < a.L; ++j) a.gain_new[b * a.L + j] = 0.0f;
    a.accepted[b] = static_cast<int32_t>(accepted);
    a.row_new[b] = static_cast<int32_t>(a.row[b] + accepted + ended);
  }
};

}  // namespace ardiff
