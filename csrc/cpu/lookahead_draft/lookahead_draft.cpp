// lookahead_draft on the CPU: threads and registration; the kernel is kernel.cpp.
#include "../../torch/choice.h"
#include "../../torch/lookahead.h"
#include "../isa.h"
#include "../launch.h"

ARDIFF_DECLARE_KERNEL(lookahead_draft_tiles, Tiled<DraftArgs>)

namespace ardiff {
namespace {

void run(const DraftArgs& a, int32_t) {
  const int64_t tiles = (a.d + kTile - 1) / kTile;
  run_tiles(lookahead_draft_tiles(), Tiled<DraftArgs>{a, {1, tiles, a.B * tiles}, false}, a.L);
}

using Op = LookaheadDraft<&run>;

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ardiff, CPU, m) {
  ARDIFF_IMPL(m, "lookahead_draft", &ardiff::Op::functional);
}
