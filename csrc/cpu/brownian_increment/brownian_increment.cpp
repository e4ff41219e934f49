// brownian_increment on the CPU: threads and registration; the kernel is kernel.cpp.
#include "../../torch/brownian_increment.h"

#include "../../torch/choice.h"
#include "../isa.h"
#include "../launch.h"

ARDIFF_DECLARE_KERNEL(brownian_increment_tiles, Tiled<IncrementArgs>)

namespace ardiff {
namespace {

void run(const IncrementArgs& a, int32_t) { run_tiles(brownian_increment_tiles(), tiled(a)); }

using Op = BrownianIncrement<&run>;

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ardiff, CPU, m) {
  ARDIFF_IMPL(m, "brownian_increment", &ardiff::Op::functional);
  ARDIFF_IMPL(m, "brownian_increment_", &ardiff::Op::in_place);
}
