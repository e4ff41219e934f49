// philox_normal on CUDA: fills a [B, n] tensor with addressed normals. A thread makes the four
// normals of one Philox quad and writes them in one 128-bit store; see layout.cuh for which quad.
// The arithmetic is csrc/math's, so the values are those of the CPU library to the bit.
#pragma once

#include "../../math/step_args.h"
#include "../layout.cuh"
#include "../unit.cuh"

namespace ardiff {

template <bool kVector>
struct NormalBody {
  ARDIFF_HD static void run(const NormalArgs& a, const Place& place) {
    const SampleAddress address =
        sample_address(a.address.key, a.address.stream[place.sample], a.address.counter);
    const Four<float> n = quad_normals(address, static_cast<uint32_t>(place.unit));
    const int64_t i = kUnit * place.unit;
    store<float, kVector>(a.out, place.sample, i, unit_length<kVector>(a.d, i), n);
  }
};

}  // namespace ardiff
