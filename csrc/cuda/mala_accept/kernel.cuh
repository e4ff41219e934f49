// The kernel of mala_accept (csrc/math/mala_accept.h), in phases between which the threads of a
// block wait for one another (csrc/cuda/phases.cuh).
//
// Eight threads, a group, sum a chunk of kChunk elements, each of them four lanes in 128-bit
// accesses; a sample has one group a chunk, up to kGroups (a power of two, so a group lies in one
// warp and a sample in one block). Longer samples take several rounds. Then one thread per sample
// decides, and its groups copy the selected rows.
#pragma once

#include "../../math/mala_accept.h"
#include "../../math/step_args.h"
#include "../phases.cuh"
#include "../sums.cuh"

namespace ardiff {

/// The arguments and their division.
struct AcceptWork : AcceptArgs {
  int64_t chunks, groups;  // of a sample
  int64_t blocks;
  bool in_place;
};

/// What the threads of a block share. Rows of lanes are padded against bank conflicts.
struct AcceptShared {
  float lanes[3][kBlockGroups][kSumLanes + kUnit];
  AcceptSums<double> totals[kBlockGroups];
  bool take_y[kBlockGroups];  // at the first group of a sample
};

/// A thread's place: its group of the block, its lanes, and its sample.
struct AcceptPlace {
  int group, member;
  int64_t sample, group_of_sample;
  int first_group;  // the sample's first in the block
  bool inside;
};

ARDIFF_HD AcceptPlace accept_place(const AcceptWork& a, int64_t block, int thread) {
  AcceptPlace p;
  p.group = thread / kGroupThreads;
  p.member = thread % kGroupThreads;
  const int groups = static_cast<int>(a.groups);
  p.sample = block * (kBlockGroups / groups) + p.group / groups;
  p.group_of_sample = p.group % groups;
  p.first_group = p.group - p.group % groups;
  p.inside = p.sample < a.B;
  return p;
}

ARDIFF_HD const float* accept_coefficients(const AcceptWork& a, int64_t b) {
  const int32_t row = at(a.row, b);
  return row >= 0 && row < a.T ? a.coef + kColumns * static_cast<int64_t>(row) : nullptr;
}

template <class Model, bool kVector>
struct AcceptBody {
  static constexpr int kBlocks = 3;
  using Shared = AcceptShared;
  using State = Nothing;
  using Team = ardiff::Team<kThreads>;

  ARDIFF_DEVICE static void flow(const AcceptWork& a, Shared& shared, const Team& team) {
    const int64_t block = team.number();
    for (int64_t round = 0; round * a.groups < a.chunks; ++round) {
      if (round > 0) team.wait_in_warps();  // a group lies in one warp
      team.each([&](int thread) { sum(a, shared, block, thread, round); });
      team.wait_in_warps();
      team.each([&](int thread) { add(a, shared, block, thread, round); });
    }
    team.wait();
    team.threads([&](int thread) { decide(a, shared, block, thread); });
    team.threads([&](int thread) { select(a, shared, block, thread); });
  }

  /// Lanes of this round's chunk.
  ARDIFF_HD static void sum(const AcceptWork& a, AcceptShared& shared, int64_t block, int thread,
                            int64_t round) {
    const AcceptPlace p = accept_place(a, block, thread);
    const int64_t begin = (p.group_of_sample + round * a.groups) * kChunk;
    if (!p.inside || begin >= a.d) return;
    const float* c = accept_coefficients(a, p.sample);
    if (!c) return;
    const AcceptRow<float> row = accept_row<float>(c);
    Four<float> log_alpha{}, delta2{}, y2{};
    const int64_t end = a.d - begin < kChunk ? a.d : begin + kChunk;
#pragma unroll 1  // several units at once need half as many registers again
    for (int64_t i = begin + kUnit * p.member; i < end; i += kSumLanes) {
      const int n = unit_length<kVector>(a.d, i);
      const Four<float> x = load<float, kVector>(a.x, p.sample, i, n);
      const Four<float> y = load<float, kVector>(a.y, p.sample, i, n);
      const Four<Model> out_x = load<Model, kVector>(a.out_x, p.sample, i, n);
      const Four<Model> out_y = load<Model, kVector>(a.out_y, p.sample, i, n);
      const Four<float> anchor = load<float, kVector>(a.anchor, p.sample, i, n);
      Four<float> v_x{}, v_y{};
      Four<Model> mid{};
      if (a.v_x.data) {
        v_x = load<float, kVector>(a.v_x, p.sample, i, n);
        v_y = load<float, kVector>(a.v_y, p.sample, i, n);
      }
      if (a.out_mid.data) mid = load<Model, kVector>(a.out_mid, p.sample, i, n);
      for (int k = 0; k < kUnit; ++k) {
        const AcceptPair<float> pair{x.v[k], y.v[k], widen(out_x.v[k]), widen(out_y.v[k])};
        float t = accept_term(row, pair, anchor.v[k]);
        if (a.v_x.data) t = add_kinetic(row, v_x.v[k], v_y.v[k], t);
        if (a.out_mid.data) t = add_simpson(row, pair, widen(mid.v[k]), t);
        if (a.energy_x) t = subtract_trapezoid(row, pair, t);
        log_alpha.v[k] += t;
        const float delta = y.v[k] - x.v[k];
        delta2.v[k] = fma(delta, delta, delta2.v[k]);
        y2.v[k] = fma(y.v[k], y.v[k], y2.v[k]);
      }
    }
    const int64_t lane = kUnit * p.member;
    store<float, true>({shared.lanes[0][p.group], 0}, 0, lane, kUnit, log_alpha);
    store<float, true>({shared.lanes[1][p.group], 0}, 0, lane, kUnit, delta2);
    store<float, true>({shared.lanes[2][p.group], 0}, 0, lane, kUnit, y2);
  }

  /// The chunk's sums from its lanes: one of the three per thread.
  ARDIFF_HD static void add(const AcceptWork& a, AcceptShared& shared, int64_t block, int thread,
                            int64_t round) {
    const AcceptPlace p = accept_place(a, block, thread);
    if (p.member >= 3) return;
    AcceptSums<double>& totals = shared.totals[p.group];
    double& total = p.member == 0 ? totals.log_alpha : p.member == 1 ? totals.delta2 : totals.y2;
    if (round == 0) total = 0;
    const int64_t begin = (p.group_of_sample + round * a.groups) * kChunk;
    if (!p.inside || begin >= a.d) return;
    float lanes[kSumLanes];
    memcpy(lanes, shared.lanes[p.member][p.group], sizeof lanes);
    total += sum_lanes(lanes);
  }

  /// The decision, by the first thread of a sample.
  ARDIFF_HD static void decide(const AcceptWork& a, AcceptShared& shared, int64_t block,
                               int thread) {
    const AcceptPlace p = accept_place(a, block, thread);
    if (!p.inside || p.group_of_sample != 0 || p.member != 0) return;
    const int64_t b = p.sample;
    const float* c = accept_coefficients(a, b);
    Decision decision{false, 0.0f};
    if (c) {
      AcceptSums<double> sums{};
      for (int g = 0; g < a.groups; ++g) add_sums(sums, shared.totals[p.group + g]);
      const double radius = a.ball_radius.data ? at(a.ball_radius, b) : 0.0;
      const double ball2 = a.ball_radius.data ? radius * radius : c[MalaAcceptColumn::R2];
      const double energy = a.energy_x ? energy_drop(a.energy_x[b], a.energy_y[b]) : 0.0;
      const float log_u =
          log_accept_uniform(*a.address.key, a.address.stream[b], at(a.address.draw, b));
      decision = accept_decision(sums, energy, log_u, c[MalaAcceptColumn::r2], ball2);
    }
    const bool take_y = decision.accepted || !c;
    if (a.energy_x) a.energy_new[b] = take_y ? a.energy_y[b] : a.energy_x[b];
    a.accepted[b] = decision.accepted;
    a.log_alpha[b] = decision.log_alpha;
    shared.take_y[p.group] = take_y;
  }

  /// Copies the selected rows; in place only those of the origin.
  ARDIFF_HD static void select(const AcceptWork& a, const AcceptShared& shared, int64_t block,
                               int thread) {
    const AcceptPlace p = accept_place(a, block, thread);
    if (!p.inside) return;
    const bool take_y = shared.take_y[p.first_group];
    if (take_y && a.in_place) return;
    const In& x = take_y ? a.y : a.x;
    const In& out = take_y ? a.out_y : a.out_x;
    const In& v = take_y ? a.v_y : a.v_x;
    const int64_t step = a.groups * kGroupThreads;
#pragma unroll 1
    for (int64_t unit = p.group_of_sample * kGroupThreads + p.member; kUnit * unit < a.d;
         unit += step) {
      const int64_t i = kUnit * unit;
      const int n = unit_length<kVector>(a.d, i);
      store<float, kVector>(a.x_new, p.sample, i, n, load<float, kVector>(x, p.sample, i, n));
      store<Model, kVector>(a.out_new, p.sample, i, n, load<Model, kVector>(out, p.sample, i, n));
      if (!a.v_x.data) continue;
      Four<float> velocity = load<float, kVector>(v, p.sample, i, n);
      if (!take_y) {
        for (int k = 0; k < kUnit; ++k) {
          velocity.v[k] = from_bits(bits(velocity.v[k]) ^ 0x80000000u);
        }
      }
      store<float, kVector>(a.v_new, p.sample, i, n, velocity);
    }
  }
};

/// Blocks and groups for B samples of d elements; the groups depend on d alone.
inline AcceptWork divided(const AcceptArgs& args) {
  AcceptWork a{args, (args.d + kChunk - 1) / kChunk, 1, 0, args.x_new.data == args.y.data};
  while (a.groups < a.chunks && a.groups < kGroups) a.groups *= 2;
  const int64_t samples = kBlockGroups / a.groups;
  a.blocks = (a.B + samples - 1) / samples;
  return a;
}

}  // namespace ardiff
