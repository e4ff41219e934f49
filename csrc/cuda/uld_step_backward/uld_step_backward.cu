// uld_step_backward on CUDA: launch and registration; the kernel is kernel.cuh.
#include "../../torch/uld_step_backward.h"
#include "../step_launch.cuh"
#include "kernel.cuh"

namespace ardiff {
namespace {

void run(const UldBackwardArgs& a, int32_t device) {
  launch_step<UldBackwardBody>(a, a.outputs.type, device);
}

using Op = UldStepBackward<&run>;

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ARDIFF_CUDA_NAMESPACE, ARDIFF_CUDA_KEY, m) {
  ARDIFF_IMPL(m, "uld_step_backward", &ardiff::Op::functional);
}
