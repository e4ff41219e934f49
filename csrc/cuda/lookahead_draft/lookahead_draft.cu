// lookahead_draft on CUDA: launch and registration; the kernel is kernel.cuh.
#include "../../torch/lookahead.h"
#include "../launch.cuh"
#include "kernel.cuh"

namespace ardiff {
namespace {

template <bool kSecond>
void launch_as(const DraftArgs& a, int32_t device) {
  takes_units(a) ? launch<DraftBody<kSecond, true>>(a, device)
                 : launch<DraftBody<kSecond, false>>(a, device);
}

void run(const DraftArgs& a, int32_t device) {
  a.second_memory ? launch_as<true>(a, device) : launch_as<false>(a, device);
}

using Op = LookaheadDraft<&run>;

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ARDIFF_CUDA_NAMESPACE, ARDIFF_CUDA_KEY, m) {
  ARDIFF_IMPL(m, "lookahead_draft", &ardiff::Op::functional);
}
