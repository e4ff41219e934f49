// kv_attention on the CPU: the division of work and registration; the kernels are kernel.cpp and
// dots.cpp.
#include "../../torch/kv_attention.h"

#include <memory>
#include <numeric>
#include <vector>

#include "../../torch/choice.h"
#include "../isa.h"
#include "../kv/launch.h"

ARDIFF_DECLARE_KERNEL(kv_attention_tiles, KvAttentionArgs)
ARDIFF_DECLARE_KERNEL(kv_attention_merge, KvAttentionArgs)

#define ARDIFF_DECLARE_DOTS(isa)                                     \
  namespace isa {                                                    \
  void kv_attention_tiles(const KvAttentionArgs&, int64_t, int64_t); \
  }

namespace ardiff {
ARDIFF_DECLARE_DOTS(avx512_bf16)
ARDIFF_DECLARE_DOTS(emulated_avx512_bf16)

namespace {

using Kernel = void (*)(const KvAttentionArgs&, int64_t, int64_t);

/// Dot products of bfloat16 serve where cache and queries are bfloat16; there is no variant of
/// tiles.
Kernel tiles_kernel(const KvAttentionArgs& a) {
  const Kernel common = kv_attention_tiles();
  if (a.cache.type != CacheType::bfloat16 || !a.q.bfloat16) return common;
  switch (dots()) {
    case Dots::common:
      return common;
    case Dots::emulated_avx512_bf16:
    case Dots::emulated_amx:
      return &emulated_avx512_bf16::kv_attention_tiles;
    case Dots::avx512_bf16:
    case Dots::amx:
#ifdef ARDIFF_HAS_AVX512_BF16
      return &avx512_bf16::kv_attention_tiles;
#endif
      break;
  }
  return common;
}

constexpr int64_t kKeysOfSplit = 256;

/// The most keys that a query of row b sees, which is what the row's units cost.
int64_t keys_of(const KvAttentionArgs& a, int64_t b) {
  const int64_t count = a.rows.count ? a.rows.count[b] : a.rows.T;
  if (count == 0) return 0;
  const int64_t keys = a.rows.length[b] + count;
  return a.window && a.window < keys ? std::min(keys, a.window + count - 1) : keys;
}

/// Long units first, so that the last to be taken are short.
std::vector<int32_t> longest_first(const KvAttentionArgs& a) {
  const int64_t per_row = a.cache.heads * a.groups;
  std::vector<int32_t> order(a.units);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t i, int32_t j) {
    return keys_of(a, i / per_row) > keys_of(a, j / per_row);
  });
  return order;
}

void divide_and_run(KvAttentionArgs& a, int64_t rows) {
  constexpr int64_t kUnitsPerThread = 4;
  a.groups = (a.rows.T * a.G + kQueryGroup - 1) / kQueryGroup;
  a.units = rows * a.cache.heads * a.groups;
  if (a.units == 0) return;
  const std::vector<int32_t> order = longest_first(a);
  a.order = order.data();
  int64_t most = 0, total = 0;
  for (int64_t b = 0; b < rows; ++b) {
    most = std::max(most, keys_of(a, b));
    total += keys_of(a, b);
  }
  // Keys need not begin at a split.
  a.splits = (most + kKeysOfSplit - 1) / kKeysOfSplit + (a.window ? 1 : 0);
  // As elements of the step ops count: four dimensions of a key, and each of a result.
  a.B = a.units;
  a.d = (total / rows + 4 * std::min<int64_t>(a.rows.T * a.G, kQueryGroup)) * a.cache.D / 4;
  a.tiling = {1, 1, a.units};
  const int64_t threads = torch::stable::get_num_threads();
  if (threads == 1 || a.units >= kUnitsPerThread * threads || a.splits < 2) {
    return run_tiles(tiles_kernel(a), a);
  }
  const std::unique_ptr<float[]> partial(
      new float[a.units * a.splits * kQueryGroup * (a.cache.D + 2)]);
  a.partial = partial.get();
  a.tiling.count = a.units * a.splits;
  run_tiles(tiles_kernel(a), a);
  a.tiling.count = a.units;
  run_tiles(kv_attention_merge(), a);
}

void run(const KvTensors& t, const KvAttentionOptions& o, void* out) {
  check_kv_data("kv_attention", t);
  KvAttentionArgs a{};
  fill_kv(a, t, o.norm_eps);
  a.q = tokens_of(t.tokens);
  a.out = out;
  a.G = t.tokens.sizes[2] / a.cache.heads;
  a.window = o.window;
  a.causal = o.causal;
  a.scale = o.scale;
  divide_and_run(a, t.tokens.sizes[0]);
}

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ardiff, CPU, m) {
  ARDIFF_IMPL(m, "kv_attention", &ardiff::KvAttention<ardiff::run>::functional);
}
