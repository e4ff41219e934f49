// uld_step on CUDA: launch and registration; the kernel is kernel.cuh.
#include "../../torch/uld_step.h"
#include "../step_launch.cuh"
#include "kernel.cuh"

namespace ardiff {
namespace {

void run(const UldArgs& a, int32_t device) { launch_step<UldBody>(a, a.model_out.type, device); }

using Op = UldStep<&run>;

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ARDIFF_CUDA_NAMESPACE, ARDIFF_CUDA_KEY, m) {
  ARDIFF_IMPL(m, "uld_step", &ardiff::Op::functional);
  ARDIFF_IMPL(m, "uld_step_", &ardiff::Op::in_place);
}
