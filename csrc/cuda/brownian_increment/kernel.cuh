// brownian_increment on CUDA: fills a [B, d] tensor with normalised increments of Brownian paths. A
// thread sums the normals of its unit's quad over the terms of its sample's increment, at most 110;
// which they are follows from the times alone (csrc/math/brownian.h), so the threads of a sample
// take the same branches.
#pragma once

#include "../../math/brownian.h"
#include "../../math/step_args.h"
#include "../layout.cuh"
#include "../unit.cuh"

namespace ardiff {

template <bool kVector>
struct IncrementBody {
  ARDIFF_HD static void run(const IncrementArgs& a, const Place& place) {
    const Increment x = increment_of(at(a.start, place.sample), at(a.end, place.sample));
    SampleAddress address = sample_address(a.address.key, a.address.stream[place.sample], 0);
    Four<float> sum{}, carry{};
#ifdef __CUDACC__
#pragma unroll 1
#endif
    for (int i = 0; i < x.terms; ++i) {
      const PathTerm term = path_term(x, i);
      if (term.coefficient == 0.0f) continue;
      address.c1 = term.counter;
      const Four<float> n = quad_normals(address, static_cast<uint32_t>(place.unit));
      for (int k = 0; k < kUnit; ++k) {
        add_term(term.coefficient, n.v[k], sum.v[k], carry.v[k]);
      }
    }
    for (int k = 0; k < kUnit; ++k) sum.v[k] *= x.scale;
    const int64_t i = kUnit * place.unit;
    store<float, kVector>(a.out, place.sample, i, unit_length<kVector>(a.d, i), sum);
  }
};

}  // namespace ardiff
