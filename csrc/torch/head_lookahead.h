// head_lookahead as torch calls it: arguments, checks, which repeat
// ardiff_kernels/ops/head_lookahead/checks.py in order and wording, and its results.
#pragma once

#include "head_loop.h"

namespace ardiff {

/// What head_lookahead has beside the tensors of head_loop.
struct HeadLookaheadOptions {
  Arg plan;
  int64_t rows;
  std::optional<double> tolerance;
};

/// What it makes; rounds, accepted and evaluated are int32 [N].
struct HeadLookaheadResults {
  Arg states[kStates];  // x, memory, v
  int32_t *rounds, *accepted, *evaluated;
};

inline void check_head_lookahead(const char* op, const HeadTensors& t, HeadLoopTensors l,
                                 const HeadOptions& o, const HeadLookaheadOptions& k) {
  if (k.rows < 1) fail(op, ": rows must be 1 or more, got ", k.rows);
  if (k.tolerance && !(*k.tolerance >= 0)) {
    fail(op, ": tolerance must be 0 or more, got ", python_float(*k.tolerance));
  }
  int64_t half[2] = {};
  if (t.x.dim == 2) {
    const int64_t rows = t.x.sizes[0], d = t.x.sizes[1];
    if (l.memory.dtype != ScalarType::Float ||
        !(has_shape(l.memory, rows, d) || has_shape(l.memory, rows, 2 * d))) {
      fail(op, ": memory must be float32 ", shape_of(rows, d), " or ", shape_of(rows, 2 * d), ", ",
           got(l.memory));
    }
    half[0] = rows, half[1] = d;
    l.memory.sizes = half;
  }
  check_head_loop(op, t, l, o, false);
  const Arg& p = k.plan;
  if (p.dtype != ScalarType::Float || !has_shape(p, l.coef.sizes[0], kColumns) || !p.contiguous()) {
    fail(op, ": plan must be a contiguous float32 ", shape_of(l.coef), ", ", got(p));
  }
  check_placement(op, {&t.x, &p}, {});
}

/// kRun runs the rounds with checked arguments.
template <void (*kRun)(const char* op, const HeadTensors&, const HeadLoopTensors&,
                       const HeadOptions&, const HeadLookaheadOptions&,
                       const HeadLookaheadResults&)>
struct HeadLookahead {
  using Optional = std::optional<Tensor>;
  using Tensors = std::vector<Tensor>;

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> functional(
      Tensor x, Tensor memory, Tensor modulation, Tensor set, Tensors weights, Tensors scales,
      Tensor coef, Tensor plan, Tensor draw, Tensor key, Tensor stream, int64_t rows,
      std::string norm, std::string mlp, int64_t depth, double eps, Optional v, Optional op,
      Optional guidance, Optional guidance2, Optional noise_scale, std::optional<double> tolerance,
      bool) {
    const char* name = "head_lookahead";
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
    const HeadLookaheadOptions more{{"plan", plan}, rows, tolerance};
    const HeadOptions options{norm, mlp, depth, eps, head_loop_ways(name, l)};
    check_head_lookahead(name, t, l, options, more);
    Tensor x_new = fresh_tensor(t.x, ScalarType::Float, 2, t.x.sizes);
    Tensor memory_new = fresh_tensor(t.x, ScalarType::Float, 2, l.memory.sizes);
    Tensor v_new = l.v.given() ? fresh_tensor(t.x, ScalarType::Float, 2, t.x.sizes)
                               : no_result(t.x, ScalarType::Float);
    Tensor rounds = fresh_tensor(t.x, ScalarType::Int, 1, t.x.sizes);
    Tensor accepted = fresh_tensor(t.x, ScalarType::Int, 1, t.x.sizes);
    Tensor evaluated = fresh_tensor(t.x, ScalarType::Int, 1, t.x.sizes);
    const auto counts = [](Tensor& c) { return static_cast<int32_t*>(c.mutable_data_ptr()); };
    kRun(name, t, l, options, more,
         {{Arg("x", x_new), Arg("memory", memory_new), result("v", v_new)},
          counts(rounds),
          counts(accepted),
          counts(evaluated)});
    return {x_new, memory_new, v_new, rounds, accepted, evaluated};
  }
};

}  // namespace ardiff
