// The arguments that lookahead_draft and lookahead_verify share, for the tests of their kernels.
#pragma once

#include "../../../csrc/math/lookahead_args.h"
#include "step.h"

namespace ardiff_test {

/// What a call of both ops has: all of it in kLookaheadOptions calls.
struct LookaheadOptions {
  explicit LookaheadOptions(int index) {
    Options digits(index);
    rule = digits.guidance;
    type = digits.type;
    second = digits.in_place;
    kinetic = digits.given_noise;
    known = digits.z_model;
  }
  int rule;   // by law, tolerance 0, a tolerance within which all rows hold
  Type type;  // of the model's outputs
  bool second, kinetic, known;
};
constexpr int kLookaheadOptions = kStepOptions;
constexpr int64_t kDrafted = 3, kKnown = 2;

template <class T, class Value>
const T* flat(Call& call, int64_t n, Value value) {
  T* data = call.flat_output<T>(n);
  for (int64_t i = 0; i < n; ++i) data[i] = value(i);
  return data;
}

/// Row 1 does not call the model, row 2 does not couple; every other row is uld_step's.
template <class Args>
void fill_lookahead(Args& a, Call& call, const LookaheadOptions& options) {
  using Column = ardiff::LookaheadColumn;
  constexpr int kColumns = ardiff::kColumns;
  a.B = call.B;
  a.d = call.d;
  a.T = 4;
  a.L = kDrafted;
  a.coef = table(call);
  a.plan = flat<float>(call, kColumns * a.T, [&](int64_t i) {
    const bool off = i == kColumns + Column::calls || i == 2 * kColumns + Column::couples;
    return off ? 0.0f : call.values.value();
  });
  a.row = call.rows(a.B, a.T).data;
  a.count = flat<int32_t>(call, a.B, [](int64_t b) { return (b + kDrafted) % (kDrafted + 2); });
  a.op = options.kinetic ? flat<int32_t>(call, a.T, [](int64_t i) { return i % 2; }) : nullptr;
  a.address = {&call.key, call.streams(), call.rows(a.B, 1000), 0};
  a.second_memory = options.second;
  a.x0_limit = options.kinetic ? INFINITY : 0.5f;
  a.noise_scale = options.known ? call.floats(a.B) : PerSample<float>{};
  a.memory = call.input(Type::float32, options.second ? 2 * a.d : a.d);
  const bool noise = !options.kinetic && options.second;
  a.noise = input_unless(!noise, call, Type::float32, a.L * a.d);
  if (!options.known) return;
  a.K = kKnown;
  a.known_x = call.input(Type::float32, a.K * a.d);
  a.known_0 = call.input(Type::float32, a.K * a.d);
  a.gain = call.floats(a.B * a.K).data;
  a.known_row = flat<int32_t>(call, a.B, [&](int64_t b) { return a.row[b] - b % 3; });
  a.known_count = flat<int32_t>(call, a.B, [](int64_t b) { return b % (kKnown + 2); });
}

}  // namespace ardiff_test
