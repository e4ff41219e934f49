// Argument checks of head_loop. They repeat ardiff_kernels/_head_loop_checks.py in order and
// wording.
#pragma once

#include "head_checks.h"

namespace ardiff {

/// What head_loop has beside the head's tensors; x is among those.
struct HeadLoopTensors {
  Arg memory, set, coef, draw, key, stream;
  Arg v, op, guidance, guidance2, noise_scale;
};

/// How many conditions a patch has.
inline int64_t head_loop_ways(const char* op, const HeadLoopTensors& l) {
  if (l.guidance2.given() && !l.guidance.given()) {
    fail(op, ": guidance2 goes only beside guidance");
  }
  return 1 + l.guidance.given() + l.guidance2.given();
}

inline void check_head_loop(const char* op, const HeadTensors& t, const HeadLoopTensors& l,
                            const HeadOptions& o, bool in_place) {
  check_head_step(op, t, 0, o);
  const int64_t rows = t.x.sizes[0], d = t.x.sizes[1], outs = t.weights.rbegin()[1].sizes[0];
  if (d > 2 * kQuads) {
    fail(op, ": x must have at most ", 2 * kQuads, " elements a row, got ", d);
  }
  if (outs != d) {
    fail(op, ": the final layer must have an output for each of the ", d,
         " elements of a row of x, got ", outs);
  }
  check_matrix(op, l.memory, ScalarType::Float, rows, d);
  if (l.v.given() != l.op.given()) fail(op, ": v and op go together: pass both or neither");
  check_matrix(op, l.v, ScalarType::Float, rows, d);
  check_table(op, l.coef);
  const int64_t steps = l.coef.sizes[0];
  check_vector(op, l.set, ScalarType::Int, steps);
  check_vector(op, l.op, ScalarType::Int, steps);
  check_vector(op, l.draw, ScalarType::Int, rows, 1);
  check_vector(op, l.key, ScalarType::Long, 1);
  check_vector(op, l.stream, ScalarType::Long, rows);
  check_vector(op, l.guidance, ScalarType::Float, rows, 1);
  check_vector(op, l.guidance2, ScalarType::Float, rows, 1);
  check_vector(op, l.noise_scale, ScalarType::Float, rows, 1);
  const std::initializer_list<const Arg*> all = {
      &t.x,    &l.memory, &l.v,      &l.set,      &l.op,        &l.coef,
      &l.draw, &l.key,    &l.stream, &l.guidance, &l.guidance2, &l.noise_scale};
  if (in_place) {
    check_placement(op, all, {&t.x, &l.memory, &l.v});
  } else {
    check_placement(op, all, {});
  }
}

}  // namespace ardiff
