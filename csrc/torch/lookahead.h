// lookahead_draft and lookahead_verify as torch calls them, on every backend: arguments, checks,
// which repeat ardiff_kernels/ops/lookahead_draft/checks.py and .../lookahead_verify/checks.py in
// order and wording, and the kernels' arguments.
#pragma once

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "../math/lookahead_args.h"
#include "checks.h"
#include "operands.h"

namespace ardiff {

/// What both ops have; `v` is v or velocities.
struct LookaheadTensors {
  Arg memory, coef, plan, row, count, draw, key, stream;
  Arg v, op, known_x, known_0, gain, known_row, known_count, noise, noise_scale;
  std::optional<double> x0_clamp;
};

inline void check_known(const char* op, const LookaheadTensors& t, int64_t batch, int64_t d) {
  const Arg* const known[] = {&t.known_x, &t.known_0, &t.gain, &t.known_row, &t.known_count};
  const auto count =
      std::count_if(std::begin(known), std::end(known), [](const Arg* a) { return a->given(); });
  if (count == 0) return;
  if (count < 5) {
    fail(op, ": known_x, known_0, gain, known_row, known_count go together: pass all or none");
  }
  const int64_t entries = t.gain.dim == 2 ? t.gain.sizes[1] : 0;
  if (entries < 1) fail(op, ": gain must be float32 [", batch, ", K], ", got(t.gain));
  const int64_t sizes[] = {batch, entries};
  check_exact(op, t.gain, ScalarType::Float, sizes, 2);
  check_block(op, t.known_x, ScalarType::Float, {batch, entries, d});
  check_block(op, t.known_0, ScalarType::Float, {batch, entries, d});
  check_vector(op, t.known_row, ScalarType::Int, batch);
  check_vector(op, t.known_count, ScalarType::Int, batch);
}

/// Checks common to both ops; `first` are the tensors of the op alone, v left out.
inline void check_window(const char* op, const LookaheadTensors& t, int64_t batch, int64_t rows,
                         int64_t d, const char* velocity, const Arg& first, const Arg& second,
                         const Arg& third) {
  if (d < 1 || d > 2 * kQuads) {
    fail(op, ": a sample must have 1 to ", 2 * kQuads, " elements, got ", d);
  }
  if (t.memory.dtype != ScalarType::Float ||
      !(has_shape(t.memory, batch, d) || has_shape(t.memory, batch, 2 * d))) {
    fail(op, ": memory must be float32 ", shape_of(batch, d), " or ", shape_of(batch, 2 * d), ", ",
         got(t.memory));
  }
  check_table(op, t.coef);
  check_exact(op, t.plan, ScalarType::Float, t.coef.sizes, 2);
  check_vector(op, t.row, ScalarType::Int, batch);
  check_vector(op, t.count, ScalarType::Int, batch);
  check_vector(op, t.draw, ScalarType::Int, batch, 1);
  check_vector(op, t.key, ScalarType::Long, 1);
  check_vector(op, t.stream, ScalarType::Long, batch);
  if (t.v.given() != t.op.given()) {
    fail(op, ": ", velocity, " and op go together: pass both or neither");
  }
  check_vector(op, t.op, ScalarType::Int, t.coef.sizes[0]);
  check_known(op, t, batch, d);
  check_block(op, t.noise, ScalarType::Float, {batch, rows, d});
  if (t.op.given() && (t.noise.given() || t.x0_clamp)) {
    fail(op, ": ", t.noise.given() ? "noise" : "x0_clamp",
         " is for tables of diffusion_step rows, without op");
  }
  check_vector(op, t.noise_scale, ScalarType::Float, batch, 1);
  check_x0_clamp(op, t.x0_clamp);
  check_placement(
      op, {&first,     &second, &third,       &t.memory,      &t.coef,  &t.plan,       &t.row,
           &t.count,   &t.draw, &t.key,       &t.stream,      &t.v,     &t.op,         &t.known_x,
           &t.known_0, &t.gain, &t.known_row, &t.known_count, &t.noise, &t.noise_scale},
      {}, true);
}

/// What both ops give their kernels, of checked tensors.
template <class Args>
Args lookahead_args(const LookaheadTensors& t, int64_t batch, int64_t rows, int64_t d) {
  Args a{};
  a.B = batch;
  a.d = d;
  a.T = t.coef.sizes[0];
  a.L = rows;
  a.K = t.gain.given() ? t.gain.sizes[1] : 0;
  a.coef = pointer<float>(t.coef);
  a.plan = pointer<float>(t.plan);
  a.row = pointer<int32_t>(t.row);
  a.count = pointer<int32_t>(t.count);
  a.op = pointer<int32_t>(t.op);
  a.address.key = pointer<int64_t>(t.key);
  a.address.stream = pointer<int64_t>(t.stream);
  a.address.draw = per_sample<int32_t>(t.draw);
  a.second_memory = t.memory.sizes[1] != d;
  a.x0_limit = static_cast<float>(t.x0_clamp.value_or(INFINITY));
  a.noise_scale = per_sample<float>(t.noise_scale);
  a.memory = input(t.memory);
  a.noise = input(t.noise);
  a.known_x = input(t.known_x);
  a.known_0 = input(t.known_0);
  a.gain = pointer<float>(t.gain);
  a.known_row = pointer<int32_t>(t.known_row);
  a.known_count = pointer<int32_t>(t.known_count);
  return a;
}

/// The parameters that both ops end with, and what LookaheadTensors takes of all.
#define ARDIFF_LOOKAHEAD_OPTIONS                                                      \
  Optional op, Optional known_x, Optional known_0, Optional gain, Optional known_row, \
      Optional known_count, Optional noise, Optional noise_scale, std::optional<double> x0_clamp
#define ARDIFF_LOOKAHEAD_TENSORS(v)                                                                \
  {"memory", memory}, {"coef", coef}, {"plan", plan}, {"row", row}, {"count", count},              \
      {"draw", draw}, {"key", key}, {"stream", stream}, {#v, v}, {"op", op}, {"known_x", known_x}, \
      {"known_0", known_0}, {"gain", gain}, {"known_row", known_row},                              \
      {"known_count", known_count}, {"noise", noise}, {"noise_scale", noise_scale}, x0_clamp

/// A fresh tensor [B, rows, d] beside `like`.
inline Tensor fresh_block(const Arg& like, int64_t batch, int64_t rows, int64_t d) {
  const int64_t sizes[] = {batch, rows, d};
  return fresh(like, ScalarType::Float, 3, sizes);
}

/// kRun runs the rows of checked arguments, on the device of that index.
template <void (*kRun)(const DraftArgs&, int32_t)>
struct LookaheadDraft {
  using Optional = std::optional<Tensor>;

  static std::tuple<Tensor, Tensor, Tensor> functional(Tensor x, Tensor memory, Tensor coef,
                                                       Tensor plan, Tensor row, Tensor count,
                                                       Tensor draw, Tensor key, Tensor stream,
                                                       int64_t rows, Optional v,
                                                       ARDIFF_LOOKAHEAD_OPTIONS) {
    const char* name = "lookahead_draft";
    const Arg state("x", x);
    const LookaheadTensors t{ARDIFF_LOOKAHEAD_TENSORS(v)};
    if (state.dim != 2) fail(name, ": x must be [B, d], got ", state.dim, " dimensions");
    const int64_t batch = state.sizes[0], d = state.sizes[1];
    check_matrix(name, state, ScalarType::Float, batch, d);
    if (rows < 1) fail(name, ": rows must be 1 or more, got ", rows);
    check_matrix(name, t.v, ScalarType::Float, batch, d);
    check_window(name, t, batch, rows, d, "v", state, t.v, {});

    const Tensor states = fresh_block(state, batch, rows + 1, d);
    const Tensor velocities =
        t.v.given() ? fresh_block(state, batch, rows + 1, d) : no_result(state, ScalarType::Float);
    const Tensor drafts = fresh_block(state, batch, rows, d);
    DraftArgs a = lookahead_args<DraftArgs>(t, batch, rows, d);
    a.x = input(state);
    a.v = input(t.v);
    a.states = output({"states", states});
    if (t.v.given()) a.velocities = output({"velocities", velocities});
    a.drafts = output({"drafts", drafts});
    kRun(a, state.device_index);
    return {states, velocities, drafts};
  }
};

/// kRun verifies the rows of checked arguments, on the device of that index.
template <void (*kRun)(const VerifyArgs&, int32_t)>
struct LookaheadVerify {
  using Optional = std::optional<Tensor>;
  using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

  static Results functional(Tensor states, Tensor drafts, Tensor outs, Tensor memory, Tensor coef,
                            Tensor plan, Tensor row, Tensor count, Tensor draw, Tensor key,
                            Tensor stream, Optional velocities, ARDIFF_LOOKAHEAD_OPTIONS,
                            std::optional<double> tolerance) {
    const char* name = "lookahead_verify";
    const Arg state("states", states), draft("drafts", drafts), out("outs", outs);
    const LookaheadTensors t{ARDIFF_LOOKAHEAD_TENSORS(velocities)};
    if (draft.dim != 3 || draft.sizes[1] < 1) {
      fail(name, ": drafts must be [B, L, d] with L >= 1, got ", shape_of(draft));
    }
    const int64_t batch = draft.sizes[0], rows = draft.sizes[1], d = draft.sizes[2];
    check_block(name, draft, ScalarType::Float, {batch, rows, d});
    check_block(name, state, ScalarType::Float, {batch, rows + 1, d});
    check_block(name, t.v, ScalarType::Float, {batch, rows + 1, d});
    if (!is_model_dtype(out.dtype)) {
      fail(name, ": outs must be float32, float16 or bfloat16, got ", name_of(out.dtype));
    }
    check_block(name, out, out.dtype, {batch, rows, d});
    if (tolerance && !(*tolerance >= 0)) {
      fail(name, ": tolerance must be 0 or more, got ", python_float(*tolerance));
    }
    check_window(name, t, batch, rows, d, "velocities", state, draft, out);

    constexpr ScalarType f32 = ScalarType::Float;
    const int64_t gains[] = {batch, rows};
    const Tensor x = fresh(draft, f32, batch, d);
    const Tensor v = t.v.given() ? fresh(draft, f32, batch, d) : no_result(draft, f32);
    const Tensor memory_new = fresh(t.memory, f32), drafted = fresh(t.memory, f32);
    const Tensor x0 = fresh_block(draft, batch, rows, d);
    const Tensor gain_new = fresh_tensor(draft, f32, 2, gains);
    const Tensor row_new = fresh_tensor(draft, ScalarType::Int, 1, &batch);
    const Tensor accepted = fresh_tensor(draft, ScalarType::Int, 1, &batch);
    VerifyArgs a = lookahead_args<VerifyArgs>(t, batch, rows, d);
    a.states = input(state);
    a.velocities = input(t.v);
    a.drafts = input(draft);
    a.outs = input(out);
    a.by_tolerance = tolerance.has_value();
    a.bound = tolerance.value_or(0.0) * tolerance.value_or(0.0) * static_cast<double>(d);
    a.x_new = output({"x", x});
    if (t.v.given()) a.v_new = output({"v", v});
    a.memory_new = output({"memory", memory_new});
    a.x0 = output({"x0", x0});
    a.drafted = output({"drafted", drafted});
    a.gain_new = target<float>({"gain", gain_new});
    a.row_new = target<int32_t>({"row", row_new});
    a.accepted = target<int32_t>({"accepted", accepted});
    kRun(a, draft.device_index);
    return {x, v, memory_new, x0, gain_new, row_new, accepted};
  }
};

#undef ARDIFF_LOOKAHEAD_OPTIONS
#undef ARDIFF_LOOKAHEAD_TENSORS

}  // namespace ardiff
