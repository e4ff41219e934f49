#pragma once

#include "step.h"

ARDIFF_TEST_KERNEL(mala_accept_tiles, Tiled<AcceptArgs>)

namespace ardiff_test {

inline void test_mala_accept() {
  constexpr int64_t kElementsATile = 4096;  // as csrc/cpu/mala_accept
  const auto kernels = mala_accept_tiles();
  for (const Shape& shape : shapes()) {
    for (int index = 0; index < 3 * 3 * 2 * 2; index += stride_of(shape)) {
      Options digits(index);
      const int correction = digits.guidance;  // none, Simpson, energies
      const Type type = digits.type;
      const bool in_place = digits.in_place, kinetic = digits.given_noise;
      check("mala_accept, options " + std::to_string(index), kernels, shape, [&](Call& call) {
        ardiff::Tiled<ardiff::AcceptArgs> a{};
        a.B = call.B;
        a.d = call.d;
        a.T = 4;
        const int64_t samples = std::max<int64_t>(1, kElementsATile / a.d);
        a.tiling = {samples, 1, (a.B + samples - 1) / samples};
        a.coef = table(call);
        a.row = call.rows(a.B, a.T);
        a.address = {&call.key, call.streams(), call.rows(in_place ? 1 : a.B, 1000), 0};
        a.x = call.input(Type::float32);
        a.out_x = call.input(type);
        a.anchor = call.input(Type::float32);
        a.x_new = in_place ? call.state(Type::float32) : call.output(Type::float32);
        a.y = in_place ? as_input(a.x_new) : call.input(Type::float32);
        a.out_new = in_place ? call.state(type) : call.output(type);
        a.out_y = in_place ? as_input(a.out_new) : call.input(type);
        if (kinetic) {
          a.v_x = call.input(Type::float32);
          a.v_new = in_place ? call.state(Type::float32) : call.output(Type::float32);
          a.v_y = in_place ? as_input(a.v_new) : call.input(Type::float32);
        }
        if (correction == 1) a.out_mid = call.input(type);
        if (correction == 2) {
          a.energy_x = call.floats(a.B).data;
          a.energy_new = call.flat_output<float>(a.B);
          a.energy_y = in_place ? a.energy_new : call.floats(a.B).data;
        }
        if (index % 5 == 0) a.ball_radius = call.floats(a.B);
        a.accepted = call.flat_output<bool>(a.B);
        a.log_alpha = call.flat_output<float>(a.B);
        return a;
      });
    }
  }
}

}  // namespace ardiff_test
