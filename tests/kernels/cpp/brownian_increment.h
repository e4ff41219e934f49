#pragma once

#include "../../../csrc/cpu/tiling.h"
#include "harness.h"

ARDIFF_TEST_KERNEL(brownian_increment_tiles, Tiled<IncrementArgs>)

namespace ardiff_test {

inline void test_brownian_increment() {
  const auto kernels = brownian_increment_tiles();
  for (const Shape& shape : shapes()) {
    check("brownian_increment", kernels, shape, [&](Call& call) {
      static const float start = 0.0f, end = 3.7e9f;  // all octaves
      ardiff::Tiled<ardiff::IncrementArgs> a{};
      a.B = call.B;
      a.d = call.d;
      a.tiling = ardiff::tiling_of(a.B, a.d, 4);
      a.address = {&call.key, call.streams(), {}, 0};
      a.start = {&start, 0};
      a.end = {&end, 0};
      a.out = call.output(Type::float32);
      return a;
    });
  }
}

}  // namespace ardiff_test
