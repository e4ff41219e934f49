#pragma once

#include "step.h"

ARDIFF_TEST_KERNEL(uld_step_tiles, Tiled<UldArgs>)

namespace ardiff_test {

inline void test_uld_step() {
  const auto kernels = uld_step_tiles();
  for (const Shape& shape : shapes()) {
    for (int index = 0; index < kStepOptions; index += stride_of(shape)) {
      const Options options(index);
      check("uld_step, options " + std::to_string(index), kernels, shape, [&](Call& call) {
        ardiff::Tiled<ardiff::UldArgs> a{};
        fill_step(a, call, options, call.d, 2);
        Out* const news[] = {&a.z_new, &a.v_new, &a.anchor_new};
        In* const olds[] = {&a.z, &a.v, &a.anchor};
        for (int i = 0; i < 3; ++i) {
          *news[i] = options.in_place ? call.state(Type::float32) : call.output(Type::float32);
          *olds[i] = options.in_place ? as_input(*news[i]) : call.input(Type::float32);
        }
        return a;
      });
    }
  }
}

}  // namespace ardiff_test
