// head_loop as torch calls it: arguments, checks, which repeat
// ardiff_kernels/ops/head_loop/checks.py in order and wording, and the functional form, for every
// backend.
#pragma once

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "head.h"

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
  const int64_t rows = t.x.sizes[0], d = t.x.sizes[1], outs = t.outs();
  if (d > 2 * kQuads) {
    fail(op, ": x must have at most ", 2 * kQuads, " elements per row, got ", d);
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
    const std::initializer_list<const Arg*> written = {&t.x, &l.memory, &l.v};
    check_placement(op, all, written);
    const std::vector<Span> spans = spans_of(written);
    check_apart(op, written, spans, t.modulation, false);
    for (const Arg& a : t.weights) check_apart(op, written, spans, a, false);
    for (const Arg& a : t.scales) check_apart(op, written, spans, a, false);
  } else {
    check_placement(op, all, {});
  }
}

/// kRun runs the steps with checked arguments from `from` (x, memory, v) to `to`.
template <void (*kRun)(const char* op, const HeadTensors&, const HeadLoopTensors&,
                       const HeadOptions&, const Arg (&from)[kStates], const Arg (&to)[kStates])>
struct HeadLoop {
  using Optional = std::optional<Tensor>;
  using Tensors = std::vector<Tensor>;

  static std::tuple<Tensor, Tensor, Tensor> functional(
      Tensor x, Tensor memory, Tensor modulation, Tensor set, Tensors weights, Tensors scales,
      Tensor coef, Tensor draw, Tensor key, Tensor stream, std::string norm, std::string mlp,
      int64_t depth, double eps, Optional v, Optional op, Optional guidance, Optional guidance2,
      Optional noise_scale, bool) {
    const char* name = "head_loop";
    const HeadTensors t = head_tensors(x, modulation, weights, scales);
    const HeadLoopTensors l{{"memory", memory},
                            {"set", set},
                            {"coef", coef},
                            {"draw", draw},
                            {"key", key},
                            {"stream", stream},
                            {"v", v},
                            {"op", op},
                            {"guidance", guidance},
                            {"guidance2", guidance2},
                            {"noise_scale", noise_scale}};
    const HeadOptions options{norm, mlp, depth, eps, head_loop_ways(name, l)};
    check_head_loop(name, t, l, options, false);
    Tensor x_new = fresh_tensor(t.x, ScalarType::Float, 2, t.x.sizes);
    Tensor memory_new = fresh_tensor(t.x, ScalarType::Float, 2, t.x.sizes);
    Tensor v_new = l.v.given() ? fresh_tensor(t.x, ScalarType::Float, 2, t.x.sizes)
                               : no_result(t.x, ScalarType::Float);
    kRun(name, t, l, options, {t.x, l.memory, l.v},
         {Arg("x", x_new), Arg("memory", memory_new), result("v", v_new)});
    return {x_new, memory_new, v_new};
  }

  static void in_place(Tensor x, Tensor memory, Tensor modulation, Tensor set, Tensors weights,
                       Tensors scales, Tensor coef, Tensor draw, Tensor key, Tensor stream,
                       std::string norm, std::string mlp, int64_t depth, double eps, Optional v,
                       Optional op, Optional guidance, Optional guidance2, Optional noise_scale,
                       bool) {
    const char* name = "head_loop_";
    const HeadTensors t = head_tensors(x, modulation, weights, scales);
    const HeadLoopTensors l{{"memory", memory},
                            {"set", set},
                            {"coef", coef},
                            {"draw", draw},
                            {"key", key},
                            {"stream", stream},
                            {"v", v},
                            {"op", op},
                            {"guidance", guidance},
                            {"guidance2", guidance2},
                            {"noise_scale", noise_scale}};
    const HeadOptions options{norm, mlp, depth, eps, head_loop_ways(name, l)};
    check_head_loop(name, t, l, options, true);
    const Arg state[kStates] = {t.x, l.memory, l.v};
    kRun(name, t, l, options, state, state);
  }
};

}  // namespace ardiff
