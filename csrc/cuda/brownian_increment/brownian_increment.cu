// brownian_increment on CUDA: launch and registration; the kernel is kernel.cuh.
#include "../../torch/brownian_increment.h"
#include "../launch.cuh"
#include "kernel.cuh"

namespace ardiff {
namespace {

void run(const IncrementArgs& a, int32_t device) {
  takes_units(a) ? launch<IncrementBody<true>>(a, device) : launch<IncrementBody<false>>(a, device);
}

using Op = BrownianIncrement<&run>;

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ARDIFF_CUDA_NAMESPACE, ARDIFF_CUDA_KEY, m) {
  ARDIFF_IMPL(m, "brownian_increment", &ardiff::Op::functional);
  ARDIFF_IMPL(m, "brownian_increment_", &ardiff::Op::in_place);
}
