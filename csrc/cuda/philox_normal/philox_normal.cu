// philox_normal on CUDA: launch and registration; the kernel is kernel.cuh.
#include "../../torch/philox_normal.h"
#include "../launch.cuh"
#include "kernel.cuh"

namespace ardiff {
namespace {

void run(const NormalArgs& a, int32_t device) {
  takes_units(a) ? launch<NormalBody<true>>(a, device) : launch<NormalBody<false>>(a, device);
}

using Op = PhiloxNormal<&run>;

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ARDIFF_CUDA_NAMESPACE, ARDIFF_CUDA_KEY, m) {
  m.impl("philox_normal", TORCH_BOX(&ardiff::Op::functional));
  m.impl("philox_normal_", TORCH_BOX(&ardiff::Op::in_place));
}
