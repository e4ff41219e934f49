// lookahead_verify for one instruction set; free of torch, built once for each. A sample is one
// thread's, row after row: data predictions and the gain's sums of all rows; the decision's sums
// while the window goes on, then the memories of a row that holds, or the state of the one that
// does not.
#include "../lookahead/window.h"
#include "../sums.h"

namespace ARDIFF_NS {
namespace {

struct alignas(64) Scratch {
  explicit Scratch(const LookaheadArgs& a) : normals(a) {}

  Normals normals;
  float out[kTile];
};

/// Where a state and its data prediction lie; null where there is none.
struct Evaluated {
  const float *x, *x0;
};

/// A row of one sample, from its first element on.
struct Verified {
  WindowRow r;
  int64_t b, j;
  const float *x, *v, *guess;
  float* x0;
};

/// Calls f(i0, n) for the tiles of a sample.
template <class Function>
ARDIFF_INLINE void for_each_tile(int64_t d, Function f) {
  for (int64_t i0 = 0; i0 < d; i0 += kTile) f(i0, smaller(kTile, d - i0));
}

/// Data predictions at the row's states.
void predict(const VerifyArgs& a, const Verified& row, Scratch& scratch) {
  if (row.r.plan[LookaheadColumn::calls] == 0.0f) return copy(row.x0, row.guess, a.d);
  const float limit = a.x0_limit;
  for_each_tile(a.d, [&](int64_t i0, int64_t n) {
    const float* out = as_float(a.outs, row.b, row.j * a.d + i0, n, scratch.out);
    for_each_lane(
        n, [&](auto lane) { return plan_row<decltype(lane)>(row.r.plan); },
        [&](int64_t i, auto lane, const auto& plan) {
          using F = decltype(lane);
          const F x0 = predicted(plan, load_as<F>(row.x + i0 + i), load_as<F>(out + i));
          store_as(row.x0 + i0 + i, clamp(x0, F(-limit), F(limit)));
        });
  });
}

/// Sums over a sample's chunks: sum(chunk's first element, its length, where its sums go).
template <class Sum>
ARDIFF_INLINE void sum_sample(int64_t d, double (&total)[2], Sum sum) {
  const int64_t chunks = (d + kChunk - 1) / kChunk, used = smaller(chunks, kGroups);
  double groups[kGroups][2];
  for (int64_t g = 0; g < used; ++g) groups[g][0] = groups[g][1] = 0.0;
  for (int64_t c = 0; c < chunks; ++c) {
    double part[2];
    sum(c * kChunk, smaller(kChunk, d - c * kChunk), part);
    for (int s = 0; s < 2; ++s) groups[c % kGroups][s] += part[s];
  }
  total[0] = total[1] = 0.0;
  for (int64_t g = 0; g < used; ++g) {
    for (int s = 0; s < 2; ++s) total[s] += groups[g][s];
  }
}

/// |dx|^2 and dx.d0 of the row's gain: from the row itself where it is known, else from the row
/// before.
void sum_gain(const VerifyArgs& a, const Verified& row, const Evaluated& known,
              const Evaluated& before, RowSums& sums) {
  double total[2];
  const float* const x = row.x;
  const float* const x0 = row.x0;
  const auto add = [](auto dx, auto d0, auto* acc) {
    acc[0] = fma(dx, dx, acc[0]);
    acc[1] = fma(dx, d0, acc[1]);
  };
  const Evaluated e = known.x ? known : before;
  sum_sample(a.d, total, [&](int64_t begin, int64_t n, double (&part)[2]) {
    if (known.x) {
      sum_chunk<2>(
          n, [](auto) { return 0; },
          [&](int64_t i, auto lane, int, auto* acc) {
            using F = decltype(lane);
            i += begin;
            add(load_as<F>(x + i) - load_as<F>(e.x + i), load_as<F>(x0 + i) - load_as<F>(e.x0 + i),
                acc);
          },
          part);
    } else {
      sum_chunk<2>(
          n, [&](auto lane) { return plan_row<decltype(lane)>(row.r.plan); },
          [&](int64_t i, auto lane, const auto& plan, auto* acc) {
            using F = decltype(lane);
            i += begin;
            const F other = load_as<F>(e.x0 + i);
            add(beside_the_mean(plan, load_as<F>(x + i), load_as<F>(e.x + i), other),
                load_as<F>(x0 + i) - other, acc);
          },
          part);
    }
  });
  sums.square = total[0];
  sums.product = total[1];
}

/// The decision's sums.
template <Rule kRule, class Kind, bool kSecond>
void sum_decision(const VerifyArgs& a, const Verified& row, Scratch& scratch, RowSums& sums) {
  constexpr bool kKinetic = Kind::template Row<float>::kKinetic;
  const MemoryRows<float> drafted = memory_rows(a, a.drafted, row.b, 0);
  const MemoryRows<float> memory = memory_rows(a, a.memory_new, row.b, 0);
  double total[2];
  sum_sample(a.d, total, [&](int64_t begin, int64_t n, double (&part)[2]) {
    const int64_t i0 = begin / kTile * kTile;
    if (kRule == Rule::law && begin == i0) {
      scratch.normals.fetch(a, row.r, row.b, row.j, i0, smaller(kTile, a.d - i0), true, row.x + i0);
    }
    const float* const n1 = scratch.normals.first + (begin - i0);
    const float* const n2 = scratch.normals.second + (begin - i0);
    sum_chunk<2>(
        n, make_row<Kind>(row.r),
        [&](int64_t k, auto lane, const auto& each, auto* acc) {
          using F = decltype(lane);
          const int64_t i = begin + k;
          const F apart = load_as<F>(row.guess + i) - load_as<F>(row.x0 + i);
          const Difference<F> difference = each.window.difference(
              apart, load_memory<kSecond, F>(drafted, i), load_memory<kSecond, F>(memory, i));
          F one(0.0f), two(0.0f);
          if constexpr (kRule == Rule::law) one = load_as<F>(n1 + k);
          if constexpr (kRule == Rule::law && kKinetic) two = load_as<F>(n2 + k);
          add_decision<kRule>(each.plan, difference, one, two, acc[0], acc[1]);
        },
        part);
  });
  sums.first = total[0];
  sums.second = total[1];
}

/// Moves both memories over a row that holds.
template <class Kind, bool kSecond>
void remember(const VerifyArgs& a, const Verified& row) {
  const auto move = [&](const Out& to, const float* x0) {
    const MemoryRows<float> memory = memory_rows(a, to, row.b, 0);
    for_each_lane(a.d, make_row<Kind>(row.r), [&](int64_t i, auto lane, const auto& each) {
      using F = decltype(lane);
      store_memory<kSecond>(
          memory, i,
          each.window.template remember<kSecond>(load_as<F>(row.x + i), load_as<F>(x0 + i),
                                                 load_memory<kSecond, F>(memory, i)));
    });
  };
  move(a.memory_new, row.x0);
  move(a.drafted, row.guess);
}

/// The state after a row by the model's data prediction, its normals reflected along delta.
template <class Kind, bool kSecond>
void take(const VerifyArgs& a, const Verified& row, float factor, Scratch& scratch) {
  constexpr bool kKinetic = Kind::template Row<float>::kKinetic;
  const bool noisy = is_noisy(row.r);
  for_each_tile(a.d, [&](int64_t i0, int64_t n) {
    scratch.normals.fetch(a, row.r, row.b, row.j, i0, n, noisy, row.x + i0);
    const MemoryRows<float> drafted = memory_rows(a, a.drafted, row.b, i0);
    const MemoryRows<float> memory = memory_rows(a, a.memory_new, row.b, i0);
    float* const x_new = address<float>(a.x_new, row.b, i0);
    float* const v_new = kKinetic ? address<float>(a.v_new, row.b, i0) : nullptr;
    const float *const n1 = scratch.normals.first, *const n2 = scratch.normals.second;
    for_each_lane(n, make_row<Kind>(row.r), [&](int64_t i, auto lane, const auto& each) {
      using F = decltype(lane);
      const int64_t at = i0 + i;
      const F v = kKinetic ? load_as<F>(row.v + at) : F(0.0f);
      const F x0 = load_as<F>(row.x0 + at);
      const MemoryOf<F> kept = load_memory<kSecond, F>(memory, i);
      F one = load_as<F>(n1 + i), two = load_as<F>(n2 + i);
      if (factor != 0.0f) {
        const Difference<F> difference = each.window.difference(
            load_as<F>(row.guess + at) - x0, load_memory<kSecond, F>(drafted, i), kept);
        one = fma(F(factor), difference.one, one);
        if (kKinetic) two = fma(F(factor), difference.two, two);
      }
      const WindowState<F> next =
          each.window.template advance<kSecond>({load_as<F>(row.x + at), v, kept}, x0, one, two);
      store_as(x_new + i, next.x);
      if constexpr (kKinetic) store_as(v_new + i, next.v);
      store_memory<kSecond>(memory, i, next.memory);
    });
  });
  if (!kKinetic && row.v) copy(address<float>(a.v_new, row.b, 0), row.v, a.d);
}

/// Whether a row holds; its memories are moved if it does, else the state is taken.
bool decide(const VerifyArgs& a, const Verified& row, RowSums& sums, Scratch& scratch) {
  const Rule rule = rule_of(row.r.couples, a.by_tolerance, a.bound);
  bool holds = false;
  with_window(row.r.kinetic, a.second_memory, [&](auto kind, auto second) {
    using Kind = decltype(kind);
    constexpr bool kSecond = decltype(second)::value;
    rule == Rule::law      ? sum_decision<Rule::law, Kind, kSecond>(a, row, scratch, sums)
    : rule == Rule::within ? sum_decision<Rule::within, Kind, kSecond>(a, row, scratch, sums)
                           : sum_decision<Rule::equal, Kind, kSecond>(a, row, scratch, sums);
    float log_u = 0.0f;
    if (rule == Rule::law) {
      log_u = log_accept_uniform(*a.address.key, a.address.stream[row.b], row.r.draw);
    }
    const RowDecision decision = decide_row(rule, sums, log_u, a.bound);
    holds = decision.holds;
    if (!holds) {
      take<Kind, kSecond>(a, row, decision.factor, scratch);
    } else if (moves_memory(row.r)) {
      remember<Kind, kSecond>(a, row);
    }
  });
  return holds;
}

void verify(const VerifyArgs& a, int64_t b, Scratch& scratch) {
  const int64_t rows = window_rows(a, b), d = a.d;
  const int64_t width = a.second_memory ? 2 * d : d;
  const float* memory = address<float>(a.memory, b, 0);
  copy(address<float>(a.memory_new, b, 0), memory, width);
  if (rows > 0) copy(address<float>(a.drafted, b, 0), memory, width);

  const auto known_at = [&](int64_t k) {
    if (k < 0) return Evaluated{nullptr, nullptr};
    return Evaluated{address<float>(a.known_x, b, k * d), address<float>(a.known_0, b, k * d)};
  };
  const int64_t last = known_entry(a, b, int64_t{a.row[b]} - 1);
  Evaluated before = known_at(last);
  float gain_before = last >= 0 ? a.gain[b * a.K + last] : 0.0f;
  int64_t accepted = 0, ended = 0;
  for (int64_t j = 0; j < rows; ++j) {
    const Verified row{window_row(a, b, j),
                       b,
                       j,
                       address<float>(a.states, b, j * d),
                       a.velocities.data ? address<float>(a.velocities, b, j * d) : nullptr,
                       address<float>(a.drafts, b, j * d),
                       address<float>(a.x0, b, j * d)};
    predict(a, row, scratch);
    RowSums sums{};
    if (!ended) (decide(a, row, sums, scratch) ? accepted : ended) += 1;

    const Evaluated known = known_at(row.r.known);
    const bool measured = known.x || before.x;
    if (measured) sum_gain(a, row, known, before, sums);
    const float kept =
        known.x ? a.gain[b * a.K + row.r.known] : kept_gain(row.r.plan, before.x, gain_before);
    gain_before = measured_gain(row.r.plan, sums, measured, kept);
    a.gain_new[b * a.L + j] = gain_before;
    before = {row.x, row.x0};
  }
  for (int64_t j = rows; j < a.L; ++j) {
    std::memset(address<float>(a.x0, b, j * d), 0, sizeof(float) * d);
    a.gain_new[b * a.L + j] = 0.0f;
  }
  if (!ended) {
    copy(address<float>(a.x_new, b, 0), address<float>(a.states, b, rows * d), d);
    if (a.velocities.data) {
      copy(address<float>(a.v_new, b, 0), address<float>(a.velocities, b, rows * d), d);
    }
  }
  a.accepted[b] = static_cast<int32_t>(accepted);
  a.row_new[b] = static_cast<int32_t>(a.row[b] + accepted + ended);
}

}  // namespace

void lookahead_verify_tiles(const Tiled<VerifyArgs>& a, int64_t first, int64_t last) {
  Scratch scratch{a};
  for (int64_t b = first; b < last; ++b) verify(a, b, scratch);
}

}  // namespace ARDIFF_NS
