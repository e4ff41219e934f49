// From checked tensors to the arguments of kv_append and kv_attention, and the check of what the
// tensors say, which a CPU can make at once.
#pragma once

#include "../../torch/kv.h"
#include "../launch.h"
#include "args.h"

namespace ardiff {

/// Counts, room in the cache, block numbers and rotary positions; repeats check_data of
/// ardiff_kernels/ops/_shared/kv_cache.py.
inline void check_kv_data(const char* op, const KvTensors& t) {
  const int64_t rows = t.tokens.sizes[0], tokens = t.tokens.sizes[1];
  const int64_t blocks = t.k_cache.sizes[0], size = t.k_cache.sizes[2];
  const int64_t columns = t.block_table.given() ? t.block_table.sizes[1] : 1;
  const int32_t *length = pointer<int32_t>(t.length), *count = pointer<int32_t>(t.count);
  const int32_t *table = pointer<int32_t>(t.block_table), *position = pointer<int32_t>(t.position);
  for (int64_t b = 0; b < rows; ++b) {
    const int64_t before = length[b], added = count ? count[b] : tokens;
    if (before < 0) fail(op, ": length must be at least 0, got ", before, " in row ", b);
    if (added < 0 || added > tokens) {
      fail(op, ": count must lie in [0, ", tokens, "], got ", added, " in row ", b);
    }
    if (before + added > size * columns) {
      fail(op, ": row ", b, " needs position ", before + added - 1, ", but the cache holds ",
           size * columns, " tokens per sequence; make a larger cache");
    }
    for (int64_t i = 0; table && i < (before + added + size - 1) / size; ++i) {
      const int32_t block = table[b * columns + i];
      if (block < 0 || block >= blocks) {
        fail(op, ": block_table must name blocks in [0, ", blocks, "), got ", block, " at [", b,
             ", ", i, "]");
      }
    }
    for (int64_t i = 0; t.cos.given() && i < added; ++i) {
      const int64_t at = position ? position[b * tokens + i] : before + i;
      if (at < 0 || at >= t.cos.sizes[0]) {
        fail(op, ": row ", b, " has position ", at, ", but cos and sin hold ", t.cos.sizes[0],
             " positions; make longer tables");
      }
    }
  }
}

/// Fills what both ops have in common.
inline void fill_kv(KvArgs& a, const KvTensors& t, double norm_eps) {
  a.rows = rows_of(t);
  a.cache = cache_of(t);
  a.head = head_of(t, norm_eps);
}

}  // namespace ardiff
