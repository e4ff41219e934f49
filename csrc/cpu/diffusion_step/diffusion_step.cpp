// diffusion_step on the CPU: threads and registration; the kernel is kernel.cpp.
#include "../../torch/diffusion_step.h"

#include "../../torch/choice.h"
#include "../isa.h"
#include "../launch.h"

ARDIFF_DECLARE_KERNEL(diffusion_step_tiles, Tiled<DiffusionArgs>)

namespace ardiff {
namespace {

void run(const DiffusionArgs& a, int32_t) { run_tiles(diffusion_step_tiles(), tiled(a)); }

using Op = DiffusionStep<&run>;

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ardiff, CPU, m) {
  ARDIFF_IMPL(m, "diffusion_step", &ardiff::Op::functional);
  ARDIFF_IMPL(m, "diffusion_step_", &ardiff::Op::in_place);
}
