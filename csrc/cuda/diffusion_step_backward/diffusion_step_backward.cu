// diffusion_step_backward on CUDA: launch and registration; the kernel is kernel.cuh.
#include "../../torch/diffusion_step_backward.h"
#include "../step_launch.cuh"
#include "kernel.cuh"

namespace ardiff {
namespace {

template <class Model, bool kVector>
using Float32Body = DiffusionBackwardBody<float, Model, kVector>;
template <class Model, bool kVector>
using BFloat16Body = DiffusionBackwardBody<BFloat16, Model, kVector>;

void run(const DiffusionBackwardArgs& a, int32_t device) {
  const Type model = a.model_out.type;
  a.x.type == Type::bfloat16 ? launch_step<BFloat16Body>(a, model, device)
                             : launch_step<Float32Body>(a, model, device);
}

using Op = DiffusionStepBackward<&run>;

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ARDIFF_CUDA_NAMESPACE, ARDIFF_CUDA_KEY, m) {
  ARDIFF_IMPL(m, "diffusion_step_backward", &ardiff::Op::functional);
}
