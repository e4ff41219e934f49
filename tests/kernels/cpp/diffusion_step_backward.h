#pragma once

#include "step.h"

ARDIFF_TEST_KERNEL(diffusion_step_backward_tiles, Tiled<DiffusionBackwardArgs>)

namespace ardiff_test {

inline void test_diffusion_step_backward() {
  const auto kernels = diffusion_step_backward_tiles();
  for (const Shape& shape : shapes()) {
    for (int index = 0; index < kStepOptions; index += stride_of(shape)) {
      const Type state = index % 5 < 2 ? Type::bfloat16 : Type::float32;
      const int memories = 1 + index % 7 % 3;
      const bool learned = index % 11 < 4;
      const Options options(index);
      const std::string name = "diffusion_step_backward, options " + std::to_string(index);
      check(name, kernels, shape, [&](Call& call) {
        const int64_t d = call.d, width = learned ? 2 * d : d;
        ardiff::Tiled<ardiff::DiffusionBackwardArgs> a{};
        fill_backward(a, call, options, width);
        a.packed = a.packed && memories == 1;
        a.learned_range = learned;
        a.clamped = options.guidance == 2;
        a.x0_clamp = 0.75f;
        a.memories = memories;
        a.x = call.input(state);
        a.grad_x = input_unless(index % 4 == 0, call, state);
        a.grad_memory = input_unless(index % 4 == 1, call, state, memories * d);
        a.grad_x0 = input_unless(index % 4 == 2, call, state);
        a.new_x = output_unless(index % 5 == 0, call, state);
        a.memory = output_unless(index % 5 == 1, call, state, memories * d);
        a.outputs.cond = output_unless(index % 5 == 2, call, options.type, width);
        a.outputs.uncond = output_unless(options.guidance < 1, call, options.type, width);
        a.outputs.uncond2 = output_unless(options.guidance < 2, call, options.type, width);
        a.n = output_unless(index % 5 == 3, call, Type::float32);
        return a;
      });
    }
  }
}

}  // namespace ardiff_test
