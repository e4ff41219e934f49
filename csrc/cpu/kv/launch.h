// From checked tensors to the arguments of kv_append and kv_attention, and the check of what the
// tensors say, which a CPU can make at once.
#pragma once

#include "../../torch/kv_checks.h"
#include "../launch.h"
#include "args.h"

namespace ardiff {

template <class T>
const T* data_of(const Arg& a) {
  return a.given() ? static_cast<const T*>(a.tensor->const_data_ptr()) : nullptr;
}

/// Counts, room in the cache, block numbers and rotary positions; repeats check_data of
/// ardiff_kernels/_kv_checks.py.
inline void check_kv_data(const char* op, const KvTensors& t) {
  const int64_t rows = t.tokens.sizes[0], tokens = t.tokens.sizes[1];
  const int64_t blocks = t.k_cache.sizes[0], size = t.k_cache.sizes[2];
  const int64_t columns = t.block_table.given() ? t.block_table.sizes[1] : 1;
  const int32_t *length = data_of<int32_t>(t.length), *count = data_of<int32_t>(t.count);
  const int32_t *table = data_of<int32_t>(t.block_table), *position = data_of<int32_t>(t.position);
  for (int64_t b = 0; b < rows; ++b) {
    const int64_t before = length[b], added = count ? count[b] : tokens;
    if (before < 0) fail(op, ": length must be at least 0, got ", before, " in row ", b);
    if (added < 0 || added > tokens) {
      fail(op, ": count must lie in [0, ", tokens, "], got ", added, " in row ", b);
    }
    if (before + added > size * columns) {
      fail(op, ": row ", b, " needs position ", before + added - 1, ", but the cache holds ",
           size * columns, " tokens a sequence; make a larger cache");
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

inline KvTokens tokens_of(const Arg& a) {
  return {a.tensor->const_data_ptr(), a.strides[0], a.strides[1], a.strides[2], type_of(a.dtype)};
}

/// Fills what both ops have in common. kv_attention only reads the cache.
inline void fill_kv(KvArgs& a, const KvTensors& t, double eps) {
  const Arg& cache = t.k_cache;
  a.T = t.tokens.sizes[1];
  a.length = data_of<int32_t>(t.length);
  a.count = data_of<int32_t>(t.count);
  a.cache.k = const_cast<void*>(cache.tensor->const_data_ptr());
  a.cache.v = const_cast<void*>(t.v_cache.tensor->const_data_ptr());
  a.cache.k_scale = const_cast<float*>(data_of<float>(t.k_scale));
  a.cache.v_scale = const_cast<float*>(data_of<float>(t.v_scale));
  a.cache.type = cache.dtype == ScalarType::Float      ? CacheType::float32
                 : cache.dtype == ScalarType::BFloat16 ? CacheType::bfloat16
                 : cache.dtype == ScalarType::Char     ? CacheType::int8
                                                       : CacheType::float8;
  a.cache.heads = cache.sizes[1];
  a.cache.S = cache.sizes[2];
  a.cache.D = cache.sizes[3];
  a.cache.block_table = data_of<int32_t>(t.block_table);
  a.cache.M = t.block_table.given() ? t.block_table.sizes[1] : 1;
  a.head.norm = data_of<float>(t.norm);
  a.head.cos = data_of<float>(t.cos);
  a.head.sin = data_of<float>(t.sin);
  a.head.eps = static_cast<float>(eps);
  a.head.half = t.cos.given() ? t.cos.sizes[1] : 0;
  a.head.position = data_of<int32_t>(t.position);
}

}  // namespace ardiff
