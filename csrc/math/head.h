// What the kernels of a diffusion head have in common, on the CPU and on CUDA: plain data.
#pragma once

namespace ardiff {

/// Parts of a step; norms, and the packing of what packed matrices multiply, are parts of their own
/// on the CPU alone.
enum class HeadPart { input, inner, outer, last, norm, pack };

/// States of the solver: x, memory and velocity.
constexpr int kStates = 3;

}  // namespace ardiff
