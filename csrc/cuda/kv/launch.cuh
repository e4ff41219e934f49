// From checked tensors to the arguments of kv_append and kv_attention.
#pragma once

#include "../../torch/kv_checks.h"
#include "../launch_phases.cuh"
#include "rows.cuh"

namespace ardiff {

/// Whether a tensor begins at a multiple of `bytes`.
inline bool aligned(const Arg& a, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(a.tensor->const_data_ptr()) % bytes == 0;
}

inline KvRows rows_of(const KvTensors& t) {
  const int64_t* cache = t.k_cache.sizes;
  return {pointer<int32_t>(t.length),
          pointer<int32_t>(t.count),
          pointer<int32_t>(t.block_table),
          pointer<int32_t>(t.position),
          t.tokens.sizes[1],
          cache[0],
          cache[2],
          t.block_table.given() ? t.block_table.sizes[1] : 1,
          t.cos.given() ? t.cos.sizes[0] : 0};
}

inline KvHead head_of(const KvTensors& t, double eps) {
  return {pointer<float>(t.norm), pointer<float>(t.cos), pointer<float>(t.sin),
          static_cast<float>(eps), t.cos.given() ? static_cast<int>(t.cos.sizes[1]) : 0};
}

inline KvTokens tokens_of(const Arg& a) {
  bool vector = aligned(a, 16);
  int64_t strides[3];
  for (int i = 0; i < 3; ++i) {
    strides[i] = a.sizes[i] == 1 ? 0 : a.strides[i];
    vector = vector && strides[i] % kEight == 0;
  }
  return {a.tensor->const_data_ptr(),      strides[0], strides[1], strides[2],
          a.dtype == ScalarType::BFloat16, vector};
}

}  // namespace ardiff
