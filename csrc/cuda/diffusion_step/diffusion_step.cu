// diffusion_step on CUDA: launch and registration; the kernel is kernel.cuh.
#include "../../torch/diffusion_step.h"
#include "../step_launch.cuh"
#include "kernel.cuh"

namespace ardiff {
namespace {

template <class State, bool kSecond>
struct Step {
  template <class Model, bool kVector>
  using Body = DiffusionBody<State, kSecond, Model, kVector>;
};

template <class State>
void run_state(const DiffusionArgs& a, int32_t device) {
  const Type model = a.model_out.type;
  a.memories > 1 ? launch_step<Step<State, true>::template Body>(a, model, device)
                 : launch_step<Step<State, false>::template Body>(a, model, device);
}

void run(const DiffusionArgs& a, int32_t device) {
  a.x.type == Type::bfloat16 ? run_state<BFloat16>(a, device) : run_state<float>(a, device);
}

using Op = DiffusionStep<&run>;

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ARDIFF_CUDA_NAMESPACE, ARDIFF_CUDA_KEY, m) {
  ARDIFF_IMPL(m, "diffusion_step", &ardiff::Op::functional);
  ARDIFF_IMPL(m, "diffusion_step_", &ardiff::Op::in_place);
}
