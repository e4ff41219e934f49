// mala_accept on CUDA: the Metropolis test of csrc/math/mala_accept.h in one launch, for any d. The
// order of the sums is the CPU library's, so both give the same bits. Bound by memory: five tensors
// are read once for the sums, and the selected rows a second time, mostly from the caches.
#include "../../torch/mala_accept.h"
#include "../launch_phases.cuh"
#include "kernel.cuh"

namespace ardiff {
namespace {

template <class Model>
void launch_as(const AcceptWork& a, bool vector, int32_t device) {
  vector ? launch_blocks<AcceptBody<Model, true>>(a, a.blocks, device)
         : launch_blocks<AcceptBody<Model, false>>(a, a.blocks, device);
}

void run(const AcceptArgs& args, int32_t device) {
  const AcceptWork a = divided(args);
  const bool vector = takes_units(a);
  switch (a.out_x.type) {
    case Type::float32:
      return launch_as<float>(a, vector, device);
    case Type::float16:
      return launch_as<Float16>(a, vector, device);
    case Type::bfloat16:
      return launch_as<BFloat16>(a, vector, device);
  }
}

using Op = MalaAccept<&run>;

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ARDIFF_CUDA_NAMESPACE, ARDIFF_CUDA_KEY, m) {
  ARDIFF_IMPL(m, "mala_accept", &ardiff::Op::functional);
  ARDIFF_IMPL(m, "mala_accept_", &ardiff::Op::in_place);
}
