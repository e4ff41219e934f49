// uld_step_backward on the CPU: threads and registration; the kernel is kernel.cpp.
#include "../../torch/uld_step_backward.h"

#include "../../torch/choice.h"
#include "../isa.h"
#include "../launch.h"

ARDIFF_DECLARE_KERNEL(uld_step_backward_tiles, Tiled<UldBackwardArgs>)

namespace ardiff {
namespace {

void run(const UldBackwardArgs& a, int32_t) { run_tiles(uld_step_backward_tiles(), tiled(a)); }

using Op = UldStepBackward<&run>;

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ardiff, CPU, m) {
  ARDIFF_IMPL(m, "uld_step_backward", &ardiff::Op::functional);
}
