#pragma once

#include "lookahead.h"

ARDIFF_TEST_KERNEL(lookahead_verify_tiles, Tiled<VerifyArgs>)

namespace ardiff_test {

inline void test_lookahead_verify() {
  const auto kernels = lookahead_verify_tiles();
  for (const Shape& shape : shapes()) {
    for (int index = 0; index < kLookaheadOptions; index += stride_of(shape)) {
      const LookaheadOptions options(index);
      check("lookahead_verify, options " + std::to_string(index), kernels, shape, [&](Call& call) {
        ardiff::Tiled<ardiff::VerifyArgs> a{};
        fill_lookahead(a, call, options);
        a.tiling = {1, 1, a.B};
        a.states = call.input(Type::float32, (a.L + 1) * a.d);
        a.velocities = input_unless(!options.kinetic, call, Type::float32, (a.L + 1) * a.d);
        a.drafts = call.input(Type::float32, a.L * a.d);
        a.outs = call.input(options.type, a.L * a.d);
        a.by_tolerance = options.rule > 0;
        a.bound = options.rule > 1 ? 1e9 : 0.0;
        a.x_new = call.output(Type::float32);
        a.v_new = output_unless(!options.kinetic, call, Type::float32);
        const int64_t width = options.second ? 2 * a.d : a.d;
        a.memory_new = call.output(Type::float32, width);
        a.drafted = call.state(Type::float32, width);
        a.x0 = call.output(Type::float32, a.L * a.d);
        a.gain_new = call.flat_output<float>(a.B * a.L);
        a.row_new = call.flat_output<int32_t>(a.B);
        a.accepted = call.flat_output<int32_t>(a.B);
        return a;
      });
    }
  }
}

}  // namespace ardiff_test
