// What the torch side hands to the kernels of kv_append and kv_attention: plain data.
#pragma once

#include "../../math/kv.h"
#include "../args.h"

namespace ardiff {

struct KvArgs {
  int64_t B, d;  // rows of work and elements in each, by which threads are counted
  Tiling tiling;
  KvRows rows;
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
  int64_t units, groups;  // groups of queries per head
  const int32_t* order;   // units in the order of work
  int64_t splits;         // the most of any unit
  float* partial;         // [units, splits, kQueryGroup, D + 2]
};

constexpr int kQueryGroup = 16;

}  // namespace ardiff
