#pragma once

#include "kv.h"

ARDIFF_TEST_KERNEL(kv_attention_tiles, KvAttentionArgs)
ARDIFF_TEST_KERNEL(kv_attention_merge, KvAttentionArgs)

namespace ardiff {
namespace emulated_avx512_bf16 {
void kv_attention_tiles(const KvAttentionArgs&, int64_t, int64_t);
}
}  // namespace ardiff

namespace ardiff_test {

/// Whole units and units by splits on kernels that must all agree to the bit.
inline void test_kv_attention(const std::vector<Kernel<ardiff::KvAttentionArgs>>& kernels,
                              const std::vector<Kernel<ardiff::KvAttentionArgs>>& merges,
                              const KvCase& c, int index) {
  const int64_t G = index % 4 + 1, window = index % 3 == 1 ? 100 : 0;
  const bool half = index % 2 == 1;
  std::vector<char> expected;
  for (bool by_splits : {false, true}) {
    check_kv("kv_attention, case " + std::to_string(index), kernels, expected, [&](size_t i) {
      KvTensorsOf tensors(c);
      ardiff::KvAttentionArgs a{};
      tensors.fill(a);
      a.q = tensors.tokens(G * c.heads, half);
      a.out = tensors.bytes(c.rows * c.T * G * c.heads * c.D * (half ? 2 : 4));
      a.G = G;
      a.window = window;
      a.causal = index % 5 != 4;
      a.scale = 0.1f;
      a.groups = (c.T * G + ardiff::kQueryGroup - 1) / ardiff::kQueryGroup;
      a.units = c.rows * c.heads * a.groups;
      int32_t* order = reinterpret_cast<int32_t*>(tensors.bytes(4 * a.units));
      for (int64_t u = 0; u < a.units; ++u) order[u] = static_cast<int32_t>(a.units - 1 - u);
      a.order = order;
      a.B = a.units;
      a.d = 16384;  // work for several threads
      a.splits = (c.S * c.M + 255) / 256 + 1;
      a.tiling = {1, 1, a.units};
      // Not among the tensors, since whole units leave it as it was.
      std::vector<float> partial(a.units * a.splits * ardiff::kQueryGroup * (c.D + 2));
      if (by_splits) {
        a.partial = partial.data();
        a.tiling.count = a.units * a.splits;
      }
      ardiff::run_tiles(kernels[i].run, a);
      a.tiling.count = a.units;
      if (by_splits) ardiff::run_tiles(merges[i].run, a);
      return tensors.contents();
    });
  }
}

/// The dot products, which round otherwise, agree with themselves.
inline void test_kv_attention() {
  const std::vector<Kernel<ardiff::KvAttentionArgs>> dots = {
      {"emulated_avx512_bf16", ardiff::emulated_avx512_bf16::kv_attention_tiles}};
  int index = 0;
  for (const KvCase& c : kv_cases(7)) {
    test_kv_attention(kv_attention_tiles(), kv_attention_merge(), c, index);
    if (c.type == CacheType::bfloat16) test_kv_attention(dots, kv_attention_merge(), c, index);
    ++index;
  }
}

}  // namespace ardiff_test
