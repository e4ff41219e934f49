// uld_step on the CPU: threads and registration; the kernel is kernel.cpp.
#include "../../torch/uld_step.h"

#include "../../torch/choice.h"
#include "../isa.h"
#include "../launch.h"

ARDIFF_DECLARE_KERNEL(uld_step_tiles, Tiled<UldArgs>)

namespace ardiff {
namespace {

void run(const UldArgs& a, int32_t) { run_tiles(uld_step_tiles(), tiled(a)); }

using Op = UldStep<&run>;

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ardiff, CPU, m) {
  ARDIFF_IMPL(m, "uld_step", &ardiff::Op::functional);
  ARDIFF_IMPL(m, "uld_step_", &ardiff::Op::in_place);
}
