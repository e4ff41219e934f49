#pragma once

#include "../../../csrc/cpu/philox_normal/words.h"
#include "../../../csrc/cpu/tiling.h"
#include "harness.h"

ARDIFF_TEST_KERNEL(philox_normal_tiles, Tiled<NormalArgs>)
ARDIFF_TEST_KERNEL(philox_words, WordsArgs)

namespace ardiff_test {

inline void test_philox_normal() {
  const auto kernels = philox_normal_tiles();
  for (const Shape& shape : shapes()) {
    check("philox_normal", kernels, shape, [&](Call& call) {
      ardiff::Tiled<ardiff::NormalArgs> a{};
      a.B = call.B;
      a.d = call.d;
      a.tiling = ardiff::tiling_of(a.B, a.d, 4);
      a.address = {&call.key, call.streams(), {}, 0xfffffffeu};
      a.out = call.output(Type::float32);
      return a;
    });
  }
  for (int64_t quads : {1, 7, 16, 33}) {
    Call call(1, 1, 0, 7);
    for (const auto& kernel : philox_words()) {
      kernel.run({-5, -(int64_t{1} << 40), 3, call.flat_output<uint32_t>(4 * quads)}, 0, quads);
    }
  }
}

}  // namespace ardiff_test
