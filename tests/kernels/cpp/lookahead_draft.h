#pragma once

#include "lookahead.h"

ARDIFF_TEST_KERNEL(lookahead_draft_tiles, Tiled<DraftArgs>)

namespace ardiff_test {

inline void test_lookahead_draft() {
  const auto kernels = lookahead_draft_tiles();
  for (const Shape& shape : shapes()) {
    const int step = takes_threads(shape) ? 27 : 9;  // the rule and the type are not read
    for (int index = 0; index < kLookaheadOptions; index += step) {
      const LookaheadOptions options(index);
      check("lookahead_draft, options " + std::to_string(index), kernels, shape, [&](Call& call) {
        ardiff::Tiled<ardiff::DraftArgs> a{};
        fill_lookahead(a, call, options);
        const int64_t tiles = (a.d + ardiff::kTile - 1) / ardiff::kTile;
        a.tiling = {1, tiles, a.B * tiles};
        a.x = call.input(Type::float32);
        a.v = input_unless(!options.kinetic, call, Type::float32);
        a.states = call.output(Type::float32, (a.L + 1) * a.d);
        a.velocities = output_unless(!options.kinetic, call, Type::float32, (a.L + 1) * a.d);
        a.drafts = call.output(Type::float32, a.L * a.d);
        return a;
      });
    }
  }
}

}  // namespace ardiff_test
