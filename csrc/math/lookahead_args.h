// The arguments of the kernels of lookahead_draft and lookahead_verify, for every backend: plain
// data.
#pragma once

#include "args.h"
#include "columns.h"
#include "noise_address.h"

namespace ardiff {

/// What both ops have in common. `L` rows of `T`; `K` known entries.
struct LookaheadArgs {
  int64_t B, d, T, L, K;
  const float *coef, *plan;
  const int32_t *row, *count, *op;
  NoiseAddress address;  // the draw is that of row 0
  bool second_memory;    // memory is [B, 2d]
  float x0_limit;        // infinite: no clamp
  PerSample<float> noise_scale;
  In memory, noise;
  In known_x, known_0;
  const float* gain;  // absent where nothing is known
  const int32_t *known_row, *known_count;
};

struct DraftArgs : LookaheadArgs {
  In x, v;
  Out states, velocities, drafts;
};

/// `bound` is tolerance^2 d where there is a tolerance.
struct VerifyArgs : LookaheadArgs {
  In states, velocities, drafts, outs;
  bool by_tolerance;
  double bound;
  Out x_new, v_new, memory_new, x0;
  Out drafted;  // scratch of the shape of memory: the memory of the drafted rows
  float* gain_new;
  int32_t *row_new, *accepted;
};

}  // namespace ardiff

namespace ARDIFF_NS {

// visit_rows(args, visit) calls visit with every tensor of rows, absent ones too.

template <class Visit>
void visit_rows(const LookaheadArgs& a, Visit visit) {
  for (const In* in : {&a.memory, &a.noise, &a.known_x, &a.known_0}) visit(*in);
}

template <class Visit>
void visit_rows(const DraftArgs& a, Visit visit) {
  visit_rows(static_cast<const LookaheadArgs&>(a), visit);
  for (const In* in : {&a.x, &a.v}) visit(*in);
  for (const Out* out : {&a.states, &a.velocities, &a.drafts}) visit(*out);
}

template <class Visit>
void visit_rows(const VerifyArgs& a, Visit visit) {
  visit_rows(static_cast<const LookaheadArgs&>(a), visit);
  for (const In* in : {&a.states, &a.velocities, &a.drafts, &a.outs}) visit(*in);
  for (const Out* out : {&a.x_new, &a.v_new, &a.memory_new, &a.x0, &a.drafted}) visit(*out);
}

/// A window's row as one sample has it.
struct WindowRow {
  const float *coef, *plan;
  int32_t draw;
  float scale;    // of the noise
  bool kinetic;   // a row of uld_step
  bool couples;   // by the plan, and not without noise
  int64_t known;  // the entry of what is known of it, or -1
};

/// The entry of what is known of a row of sample b, or -1.
ARDIFF_HD int64_t known_entry(const LookaheadArgs& a, int64_t b, int64_t row) {
  if (!a.gain) return -1;
  const int64_t k = row - a.known_row[b];
  const int64_t entries = a.known_count[b] < a.K ? a.known_count[b] : a.K;
  return k >= 0 && k < entries ? k : -1;
}

/// How many rows sample b has in its window: n of the ops.
ARDIFF_HD int64_t window_rows(const LookaheadArgs& a, int64_t b) {
  const int64_t row = a.row[b];
  if (row < 0 || row >= a.T) return 0;
  int64_t n = a.count[b] < a.L ? a.count[b] : a.L;
  n = n < a.T - row ? n : a.T - row;
  return n > 0 ? n : 0;
}

/// Row j < window_rows of sample b.
ARDIFF_HD WindowRow window_row(const LookaheadArgs& a, int64_t b, int64_t j) {
  const int64_t row = a.row[b] + j;
  const float* plan = a.plan + kColumns * row;
  const float scale = a.noise_scale.data ? at(a.noise_scale, b) : 1.0f;
  const uint32_t draw = static_cast<uint32_t>(at(a.address.draw, b)) + static_cast<uint32_t>(row);
  return {a.coef + kColumns * row,    plan,
          static_cast<int32_t>(draw), scale,
          a.op && a.op[row] != 0,     plan[LookaheadColumn::couples] != 0.0f && scale != 0.0f,
          known_entry(a, b, row)};
}

}  // namespace ARDIFF_NS
