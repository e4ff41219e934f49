// kv_append on the CPU: threads and registration; the kernel is kernel.cpp.
#include "../../torch/kv_append.h"

#include "../../torch/choice.h"
#include "../isa.h"
#include "../kv/launch.h"

ARDIFF_DECLARE_KERNEL(kv_append_tiles, KvAppendArgs)

namespace ardiff {
namespace {

void run(const KvTensors& t, double norm_eps) {
  check_kv_data("kv_append", t);
  KvAppendArgs a{};
  fill_kv(a, t, norm_eps);
  a.k = tokens_of(t.tokens);
  a.v = tokens_of(t.v);
  a.B = t.tokens.sizes[0] * a.rows.T;
  a.d = 2 * a.cache.heads * a.cache.D;
  a.tiling = {1, 1, a.B};
  run_tiles(kv_append_tiles(), a);
}

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ardiff, CPU, m) {
  ARDIFF_IMPL(m, "kv_append", &ardiff::KvAppend<ardiff::run>::functional);
  ARDIFF_IMPL(m, "kv_append_", &ardiff::KvAppend<ardiff::run>::in_place);
}
