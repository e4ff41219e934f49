// Activations behind a product.
#pragma once

#include "../math/exp.h"
#include "phases.cuh"

namespace ardiff {

/// x / (1 + e^-x).
ARDIFF_DEVICE float silu(float x) { return x / (1.0f + exp_limited(0.0f - x)); }

}  // namespace ardiff
