// The arguments that uld_step and diffusion_step share, for the tests of their kernels.
#pragma once

#include "harness.h"

namespace ardiff_test {

/// The options of a step: what `index` says in a mixed base, so that a loop reaches all of them.
struct Options {
  explicit Options(int index) : rest(index) {
    guidance = take(3);
    type = static_cast<Type>(take(3));
    in_place = take(2);
    given_noise = take(2);
    z_model = take(2);
  }
  int take(int n) {
    const int digit = rest % n;
    rest /= n;
    return digit;
  }
  int rest;
  int guidance;  // none, two-way, three-way
  Type type;     // of the model's outputs
  bool in_place, given_noise, z_model;
};
constexpr int kStepOptions = 3 * 3 * 2 * 2 * 2;

/// From one index of options to the next: all of them on small shapes, some on large ones.
inline int stride_of(const Shape& shape) { return takes_threads(shape) ? 13 : 1; }

/// Four rows of a table; row 1 leaves the memory, row 2 the second memory, row 3 draws no noise.
/// uld_step reads the same zeros as no start of a stage after row 0.
inline const float* table(Call& call) {
  constexpr int kRows = 4;
  float* c = call.flat_output<float>(16 * kRows);
  for (int i = 0; i < 16 * kRows; ++i) c[i] = call.values.value();
  for (int row = 1; row < kRows; ++row) c[16 * row + 12] = c[16 * row + 13] = 0.0f;
  for (int column : {8, 9, 10}) c[16 + column] = 0.0f;
  for (int column : {13, 14, 15}) c[32 + column] = 0.0f;
  for (int column : {5, 6, 7, 11}) c[48 + column] = 0.0f;
  return c;
}

/// `columns` of the model's outputs: d or, with a learned range, 2d. `noises`: tensors of noise.
inline void fill_step(ardiff::StepArgs& a, Call& call, const Options& options, int64_t columns,
                      int noises) {
  a.B = call.B;
  a.d = call.d;
  a.T = 4;
  a.tiling = ardiff::tiling_of(a.B, a.d, noises == 2 ? 2 : 4);
  a.packed = a.B > 1 && call.gap == 0 && columns == call.d;
  a.coef = table(call);
  a.row = call.rows(options.in_place ? 1 : a.B, a.T);
  a.address = {0x9e3779b97f4a7c15u, call.streams(), call.rows(a.B, 1000), 0};
  a.model_out = call.input(options.type, columns);
  a.uncond_out = options.guidance > 0 ? call.input(options.type, columns) : In{};
  a.uncond_out2 = options.guidance > 1 ? call.input(options.type, columns) : In{};
  a.guidance = options.guidance > 0 ? call.floats(1) : PerSample<float>{};
  a.guidance2 = options.guidance > 1 ? call.floats(a.B) : PerSample<float>{};
  a.noise_scale = options.guidance > 0 ? call.floats(a.B) : PerSample<float>{};
  a.noise = options.given_noise ? call.input(Type::float32) : In{};
  a.noise2 = options.given_noise && noises == 2 ? call.input(Type::float32) : In{};
  a.z_model = options.z_model ? call.output(Type::bfloat16) : Out{};
}

/// The same for a backward kernel, which writes no z_model.
template <class Args>
void fill_backward(Args& a, Call& call, Options options, int64_t columns) {
  options.z_model = false;
  fill_step(a, call, options, columns, 1);
  a.ways = options.guidance;
}

inline In as_input(const Out& out) { return {out.data, out.stride, out.type}; }

inline In input_unless(bool absent, Call& call, Type type, int64_t columns = 0) {
  return absent ? In{} : call.input(type, columns);
}
inline Out output_unless(bool absent, Call& call, Type type, int64_t columns = 0) {
  return absent ? Out{} : call.output(type, columns);
}

/// The second half of a [B, 2d] tensor.
template <class Tensor>
Tensor second_half(Tensor tensor, int64_t d) {
  if (tensor.data) tensor.data = (char*)(tensor.data) + d * size_of(tensor.type);
  return tensor;
}

}  // namespace ardiff_test
