#pragma once

#include <cmath>

#include "step.h"

ARDIFF_TEST_KERNEL(diffusion_step_tiles, Tiled<DiffusionArgs>)

namespace ardiff_test {

inline void test_diffusion_step() {
  const auto kernels = diffusion_step_tiles();
  for (const Shape& shape : shapes()) {
    for (int index = 0; index < kStepOptions; index += stride_of(shape)) {
      // All of the state's type and the memory's width, in turn with the other options.
      const Type state = index % 5 < 2 ? Type::bfloat16 : Type::float32;
      const int memories = 1 + index % 7 % 3;
      const Options options(index);
      const bool learned = index % 11 < 4;
      check("diffusion_step, options " + std::to_string(index), kernels, shape, [&](Call& call) {
        ardiff::Tiled<ardiff::DiffusionArgs> a{};
        fill_step(a, call, options, learned ? 2 * call.d : call.d, 1);
        const int64_t width = memories * call.d;
        a.packed = a.packed && memories == 1;
        a.learned_range = learned;
        a.memories = memories;
        a.x0_limit = options.guidance == 2 ? 0.75f : INFINITY;
        a.x_new = options.in_place ? call.state(state) : call.output(state);
        a.x = options.in_place ? as_input(a.x_new) : call.input(state);
        a.memory_new = options.in_place ? call.state(state, width) : call.output(state, width);
        a.memory = options.in_place ? as_input(a.memory_new) : call.input(state, width);
        a.x0 = options.in_place && options.z_model ? Out{} : call.output(state);
        return a;
      });
    }
  }
}

}  // namespace ardiff_test
