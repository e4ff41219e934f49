// SiLU, x / (1 + e^-x), on the lanes of an instruction set.
#pragma once

#include "../math/exp.h"
#include "tile.h"

namespace ARDIFF_NS {

ARDIFF_INLINE float quotient(float a, float b) { return a / b; }
#if ARDIFF_LANES > 1
ARDIFF_INLINE VFloat quotient(VFloat a, VFloat b) { return a.v / b.v; }
#endif

template <class F>
ARDIFF_INLINE F silu(F x) {
  return quotient(x, F(1.0f) + exp_limited(F(0.0f) - x));
}

}  // namespace ARDIFF_NS
