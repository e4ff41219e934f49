// mala_accept on the CPU: threads and registration; the kernel is kernel.cpp.
#include "../../torch/mala_accept.h"

#include "../../torch/choice.h"
#include "../isa.h"
#include "../launch.h"

ARDIFF_DECLARE_KERNEL(mala_accept_tiles, Tiled<AcceptArgs>)

namespace ardiff {
namespace {

/// A sample is one thread's; short samples share a tile.
void run(const AcceptArgs& a, int32_t) {
  constexpr int64_t kElementsATile = 4096;
  const int64_t samples = std::max<int64_t>(1, kElementsATile / a.d);
  const Tiling tiling{samples, 1, (a.B + samples - 1) / samples};
  run_tiles(mala_accept_tiles(), Tiled<AcceptArgs>{a, tiling, false});
}

using Op = MalaAccept<&run>;

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ardiff, CPU, m) {
  ARDIFF_IMPL(m, "mala_accept", &ardiff::Op::functional);
  ARDIFF_IMPL(m, "mala_accept_", &ardiff::Op::in_place);
}
