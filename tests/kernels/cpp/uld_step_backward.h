#pragma once

#include "step.h"

ARDIFF_TEST_KERNEL(uld_step_backward_tiles, Tiled<UldBackwardArgs>)

namespace ardiff_test {

inline void test_uld_step_backward() {
  const auto kernels = uld_step_backward_tiles();
  for (const Shape& shape : shapes()) {
    for (int index = 0; index < kStepOptions; index += stride_of(shape)) {
      const Options options(index);
      const std::string name = "uld_step_backward, options " + std::to_string(index);
      check(name, kernels, shape, [&](Call& call) {
        ardiff::Tiled<ardiff::UldBackwardArgs> a{};
        fill_backward(a, call, options, call.d);
        // In turn, each gradient is absent and each result not wanted.
        In* const grads[] = {&a.grad_z, &a.grad_v, &a.grad_anchor};
        for (int i = 0; i < 3; ++i) *grads[i] = input_unless(index % 4 == i, call, Type::float32);
        const Type f = Type::float32, m = options.type;
        a.z = output_unless(index % 5 == 0, call, f);
        a.v = output_unless(index % 5 == 1, call, f);
        a.anchor = output_unless(index % 5 == 2, call, f);
        a.outputs.cond = output_unless(index % 5 == 3, call, m);
        a.outputs.uncond = output_unless(options.guidance < 1, call, m);
        a.outputs.uncond2 = output_unless(options.guidance < 2, call, m);
        a.n1 = output_unless(options.given_noise, call, f);
        a.n2 = output_unless(options.z_model, call, f);
        return a;
      });
    }
  }
}

}  // namespace ardiff_test
