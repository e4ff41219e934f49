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
  ARDIFF_IMPL(m, "philox_normal", &ardiff::Op::functional);
  ARDIFF_IMPL(m, "philox_normal_", &ardiff::Op::in_place);
}
