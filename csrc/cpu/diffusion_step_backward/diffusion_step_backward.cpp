// diffusion_step_backward on the CPU: threads and registration; the kernel is kernel.cpp.
#include "../../torch/diffusion_step_backward.h"

#include "../../torch/choice.h"
#include "../isa.h"
#include "../launch.h"

ARDIFF_DECLARE_KERNEL(diffusion_step_backward_tiles, Tiled<DiffusionBackwardArgs>)

namespace ardiff {
namespace {

void run(const DiffusionBackwardArgs& a, int32_t) {
  run_tiles(diffusion_step_backward_tiles(), tiled(a));
}

using Op = DiffusionStepBackward<&run>;

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ardiff, CPU, m) {
  ARDIFF_IMPL(m, "diffusion_step_backward", &ardiff::Op::functional);
}
