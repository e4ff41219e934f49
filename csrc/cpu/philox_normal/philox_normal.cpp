// philox_normal on the CPU: threads and registration; the kernel is kernel.cpp.
#include "../../torch/philox_normal.h"

#include "../../torch/choice.h"
#include "../isa.h"
#include "../launch.h"
#include "words.h"

ARDIFF_DECLARE_KERNEL(philox_normal_tiles, Tiled<NormalArgs>)
ARDIFF_DECLARE_KERNEL(philox_words, WordsArgs)

namespace ardiff {
namespace {

void run(const NormalArgs& a, int32_t) { run_tiles(philox_normal_tiles(), tiled(a)); }

using Op = PhiloxNormal<&run>;

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ardiff, CPU, m) {
  ARDIFF_IMPL(m, "philox_normal", &ardiff::Op::functional);
  ARDIFF_IMPL(m, "philox_normal_", &ardiff::Op::in_place);
}

/// The words of quads [0, count) at an address, four per quad, by the instruction set in use.
extern "C" __attribute__((visibility("default"))) void ardiff_philox_words(
    int64_t key, uint32_t counter, int64_t stream, int64_t count, uint32_t* out) {
  ardiff::philox_words()({key, stream, counter, out}, 0, count);
}
