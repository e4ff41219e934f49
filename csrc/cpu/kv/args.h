// What the torch side hands to the kernels of kv_append and kv_attention: plain data.
#pragma once

#include "../args.h"

namespace ardiff {

enum class CacheType { float32, bfloat16, int8, float8 };

/// Blocks [N, heads, S, D] of keys and values, and where each row's tokens lie in them.
struct KvCache {
  void *k, *v;
  float *k_scale, *v_scale;  // null: not quantised
  CacheType type;
  int64_t heads, S, D;
  const int32_t* block_table;  // [B, M]; null: row b has block b
  int64_t M;
};

/// Rows of new tokens: [B, T, heads, D], strides in elements, unit stride in D.
struct KvTokens {
  const void* data;
  int64_t stride_b, stride_t, stride_h;
  Type type;
};

/// What is done with a head before it is stored or used.
struct KvHead {
  const float *norm, *cos, *sin;  // null: not done
  float eps;
  int64_t half;             // R / 2, columns of cos and sin
  const int32_t* position;  // [B, T]; null: length + t
};

struct KvArgs {
  int64_t B, d;  // rows of work and elements in each, by which threads are counted
  Tiling tiling;
  int64_t T;
  const int32_t *length, *count;  // count may be null
  KvCache cache;
  KvHead head;
};

/// A tile is one token of one row.
struct KvAppendArgs : KvArgs {
  KvTokens k, v;
};

/// A unit is kQueryGroup queries of one key head of one row; a tile is a unit with all its splits
/// or, where `partial` is given, one split of a unit.
struct KvAttentionArgs : KvArgs {
  KvTokens q;
  void* out;  // [B, T, G * heads, D] in q's type
  int64_t G, window;
  bool causal;
  float scale;
  int64_t units, groups;  // groups of queries a head
  const int32_t* order;   // units in the order of work
  int64_t splits;         // the most of any unit
  float* partial;         // [units, splits, kQueryGroup, D + 2]
};

constexpr int kQueryGroup = 16;

}  // namespace ardiff
