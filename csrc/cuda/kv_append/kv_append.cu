// kv_append on CUDA: new keys (RMS-normed, rotated) and values into the cache in one launch. Bound
// by launch and latency: a token is a few hundred bytes per head.
#include "../../torch/kv_append.h"
#include "../launch_phases.cuh"
#include "kernel.cuh"

namespace ardiff {
namespace {

void run(const KvTensors& t, double norm_eps) {
  AppendArgs a{};
  a.rows = rows_of(t);
  a.head = head_of(t, norm_eps);
  a.k = tokens_of(t.tokens);
  a.v = tokens_of(t.v);
  a.cache = cache_of(t);
  const int64_t bytes = is_quantized(t.k_cache.dtype) ? 8 : 16;
  a.vector = aligned(t.k_cache, bytes) && aligned(t.v_cache, bytes);
  const int64_t heads = a.rows.T * a.cache.heads;
  if (heads >= int64_t{1} << 31) fail("kv_append: 2^31 heads and more in a row; split the call");
  a.blocks_of_row = (heads + AppendBody::kHeads - 1) / AppendBody::kHeads;
  launch_blocks<AppendBody>(a, t.tokens.sizes[0] * a.blocks_of_row, t.tokens.device_index);
}

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ARDIFF_CUDA_NAMESPACE, ARDIFF_CUDA_KEY, m) {
  ARDIFF_IMPL(m, "kv_append", &ardiff::KvAppend<ardiff::run>::functional);
  ARDIFF_IMPL(m, "kv_append_", &ardiff::KvAppend<ardiff::run>::in_place);
}
