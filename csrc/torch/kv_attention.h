// kv_attention as torch calls it: arguments, checks and the result, for every backend.
#pragma once

#include <torch/csrc/stable/library.h>

#include <cmath>

#include "kv.h"

namespace ardiff {

/// What kv_attention is told beside its tensors.
struct KvAttentionOptions {
  double norm_eps;
  float scale;
  int64_t window;  // 0: no limit
  bool causal;
};

inline void check_kv_attention(const char* op, const KvTensors& t, double eps, int64_t window) {
  constexpr int64_t kMostTokens = 64;
  const Arg &q = t.tokens, &cache = t.k_cache;
  check_tokens(op, q);
  check_cache(op, t);
  const int64_t tokens = q.sizes[1], heads = q.sizes[2], kv_heads = cache.sizes[1];
  if (tokens < 1 || tokens > kMostTokens || heads < 1 || heads % kv_heads ||
      q.sizes[3] != cache.sizes[3]) {
    fail(op, ": q must be [B, T, H, ", cache.sizes[3], "] with T from 1 to ", kMostTokens,
         " and H a multiple of ", kv_heads, " for a cache ", shape_of(cache), ", got ",
         shape_of(q));
  }
  check_unit_stride(op, q);
  check_rows(op, t);
  check_norm(op, t.norm, eps, q.sizes[3]);
  if (window < 0) fail(op, ": window must be at least 0, got ", window);
  check_kv_placement(op, t, false);
}

/// kRun attends to the cache with checked arguments, of one row at least, and fills `out`, which is
/// as q but contiguous.
template <void (*kRun)(const KvTensors&, const KvAttentionOptions&, void* out)>
struct KvAttention {
  using Optional = std::optional<Tensor>;

  static Tensor functional(Tensor q, Tensor k_cache, Tensor v_cache, Tensor length, Optional count,
                           Optional block_table, Optional position, Optional cos, Optional sin,
                           Optional q_norm, double norm_eps, Optional k_scale, Optional v_scale,
                           std::optional<double> scale, int64_t window, bool causal) {
    const KvTensors t{{"q", q},
                      {},
                      {"k_cache", k_cache},
                      {"v_cache", v_cache},
                      {"length", length},
                      {"count", count},
                      {"block_table", block_table},
                      {"position", position},
                      {"cos", cos},
                      {"sin", sin},
                      {"q_norm", q_norm},
                      {"k_scale", k_scale},
                      {"v_scale", v_scale}};
    check_kv_attention("kv_attention", t, norm_eps, window);
    const int64_t* n = t.tokens.sizes;
    Tensor out = fresh_tensor(t.tokens, t.tokens.dtype, 4, n);
    if (n[0] == 0) return out;
    const double usual = 1.0 / std::sqrt(static_cast<double>(n[3]));
    kRun(t, {norm_eps, static_cast<float>(scale.value_or(usual)), window, causal},
         out.mutable_data_ptr());
    return out;
  }
};

}  // namespace ardiff
