// lookahead_verify on the CPU: threads and registration; the kernel is kernel.cpp.
#include "../../torch/choice.h"
#include "../../torch/lookahead.h"
#include "../isa.h"
#include "../launch.h"

ARDIFF_DECLARE_KERNEL(lookahead_verify_tiles, Tiled<VerifyArgs>)

namespace ardiff {
namespace {

void run(const VerifyArgs& a, int32_t) {
  run_tiles(lookahead_verify_tiles(), Tiled<VerifyArgs>{a, {1, 1, a.B}, false}, a.L);
}

using Op = LookaheadVerify<&run>;

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ardiff, CPU, m) {
  ARDIFF_IMPL(m, "lookahead_verify", &ardiff::Op::functional);
}
