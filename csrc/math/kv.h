// What the kernels of kv_append and kv_attention are given, on the CPU and on CUDA: plain data, no
// functions, since translation units built for different instruction sets share it.
#pragma once

#include <cstdint>

namespace ardiff {

enum class CacheType { float32, bfloat16, int8, float8 };

/// Blocks [N, heads, S, D] of keys and values.
struct KvCache {
  void *k, *v;               // kv_attention only reads them
  float *k_scale, *v_scale;  // null: not quantised
  int64_t heads;
  int D;
  CacheType type;
};

/// Where the tokens of each row of the batch lie in a cache of N blocks of S tokens, M blocks a
/// row, and in rotary tables of P rows (0: no rotation). count, table and position may be null: T
/// new tokens, row b in block b, positions length + t.
struct KvRows {
  const int32_t *length, *count, *table, *position;
  int64_t T, N, S, M, P;
};

/// New tokens [B, T, heads, D]; strides in elements, unit stride in D. `vector`: eight elements lie
/// on 16 bytes.
struct KvTokens {
  const void* data;
  int64_t stride_b, stride_t, stride_h;
  bool bfloat16, vector;
};

/// What is done with a head before it is stored or used.
struct KvHead {
  const float *norm, *cos, *sin;  // null: not done
  float eps;
  int half;  // R / 2, columns of cos and sin
};

}  // namespace ardiff
