// The arguments that uld_step and diffusion_step share, for the tests of their kernels.
#pragma once

#include "../../../csrc/cpu/tiling.h"
#include "../../../csrc/math/columns.h"
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

/// Four rows of a table; row 1 leaves the memory, row 2 the second memory, row 3 draws no noise and
/// has no term in the third memory or the unconditional prediction.
/// uld_step reads the same zeros as no start of a stage after row 0.
inline const float* table(Call& call) {
  constexpr int kRows = 4, kColumns = ardiff::kColumns;
  using Uld = ardiff::UldColumn;
  using Diffusion = ardiff::DiffusionColumn;
  float* c = call.flat_output<float>(kColumns * kRows);
  for (int i = 0; i < kColumns * kRows; ++i) c[i] = call.values.value();
  const auto clear = [&](int row, int column) { c[kColumns * row + column] = 0.0f; };
  for (int row = 1; row < kRows; ++row) {
    for (int column : {Uld::a_z, Uld::a_z_lo}) clear(row, column);
  }
  for (int column : {Diffusion::m_x, Diffusion::m_x_lo, Diffusion::m_0, Diffusion::m_u}) {
    clear(1, column);
  }
  for (int column : {Diffusion::s_x, Diffusion::s_m, Diffusion::s_2}) clear(2, column);
  for (int column : {Uld::z_1, Uld::z_2, Uld::v_1}) clear(3, column);
  for (int column : {Diffusion::x_n, Diffusion::x_3, Diffusion::x_u, Diffusion::m_u}) {
    clear(3, column);
  }
  clear(3, Diffusion::t_2);
  return c;
}

/// `columns` of the model's outputs: d or, with a learned range, 2d. `noises`: tensors of noise.
template <class Args>
void fill_step(ardiff::Tiled<Args>& a, Call& call, const Options& options, int64_t columns,
               int noises) {
  a.B = call.B;
  a.d = call.d;
  a.T = 4;
  a.tiling = ardiff::tiling_of(a.B, a.d, noises == 2 ? 2 : 4);
  a.packed = a.B > 1 && call.gap == 0 && columns == call.d;
  a.coef = table(call);
  a.row = call.rows(options.in_place ? 1 : a.B, a.T);
  a.address = {&call.key, call.streams(), call.rows(a.B, 1000), 0};
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
void fill_backward(ardiff::Tiled<Args>& a, Call& call, Options options, int64_t columns) {
  options.z_model = false;
  fill_step(a, call, options, columns, 1);
  a.outputs.ways = options.guidance;
  a.outputs.type = options.type;
}

inline In as_input(const Out& out) { return {out.data, out.stride, out.type}; }

inline In input_unless(bool absent, Call& call, Type type, int64_t columns = 0) {
  return absent ? In{} : call.input(type, columns);
}
inline Out output_unless(bool absent, Call& call, Type type, int64_t columns = 0) {
  return absent ? Out{} : call.output(type, columns);
}

}  // namespace ardiff_test
