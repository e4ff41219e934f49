#pragma once

#include "kv.h"

ARDIFF_TEST_KERNEL(kv_append_tiles, KvAppendArgs)

namespace ardiff_test {

inline void test_kv_append() {
  const auto kernels = kv_append_tiles();
  for (const KvCase& c : kv_cases(9)) {
    for (bool half : {false, true}) {
      std::vector<char> expected;
      check_kv("kv_append", kernels, expected, [&](size_t i) {
        KvTensorsOf tensors(c);
        ardiff::KvAppendArgs a{};
        tensors.fill(a);
        a.k = tensors.tokens(c.heads, half);
        a.v = tensors.tokens(c.heads, half);
        a.B = c.rows * c.T;
        a.d = 16384;  // work for several threads
        a.tiling = {1, 1, a.B};
        ardiff::run_tiles(kernels[i].run, a);
        return tensors.contents();
      });
    }
  }
}

}  // namespace ardiff_test
