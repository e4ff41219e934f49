// lookahead_verify on CUDA: one launch, a block for each sample; the kernel is kernel.cuh.
#include "../../torch/lookahead.h"
#include "../launch_phases.cuh"
#include "kernel.cuh"

namespace ardiff {
namespace {

template <class Model, bool kSecond>
void launch_as(const VerifyArgs& a, int32_t device) {
  takes_units(a) ? launch_blocks<VerifyBody<Model, kSecond, true>>(a, a.B, device)
                 : launch_blocks<VerifyBody<Model, kSecond, false>>(a, a.B, device);
}

template <class Model>
void run_model(const VerifyArgs& a, int32_t device) {
  a.second_memory ? launch_as<Model, true>(a, device) : launch_as<Model, false>(a, device);
}

void run(const VerifyArgs& a, int32_t device) {
  switch (a.outs.type) {
    case Type::float32:
      return run_model<float>(a, device);
    case Type::float16:
      return run_model<Float16>(a, device);
    case Type::bfloat16:
      return run_model<BFloat16>(a, device);
  }
}

using Op = LookaheadVerify<&run>;

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ARDIFF_CUDA_NAMESPACE, ARDIFF_CUDA_KEY, m) {
  ARDIFF_IMPL(m, "lookahead_verify", &ardiff::Op::functional);
}
