// kv_append as torch calls it: arguments, checks and the functional form, for every backend.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "kv.h"

namespace ardiff {

inline void check_kv_append(const char* op, const KvTensors& t, double eps, bool in_place) {
  const Arg &k = t.tokens, &v = t.v, &cache = t.k_cache;
  check_tokens(op, k);
  check_cache(op, t);
  if (k.sizes[1] < 1 || k.sizes[2] != cache.sizes[1] || k.sizes[3] != cache.sizes[3]) {
    fail(op, ": k must be [B, T, ", cache.sizes[1], ", ", cache.sizes[3],
         "] with T >= 1 for a cache ", shape_of(cache), ", got ", shape_of(k));
  }
  bool same = v.dim == 4 && v.dtype == k.dtype;
  for (int i = 0; same && i < 4; ++i) same = v.sizes[i] == k.sizes[i];
  if (!same) fail(op, ": v must be ", name_of(k.dtype), " ", shape_of(k), " as k, ", got(v));
  check_unit_stride(op, k);
  check_unit_stride(op, v);
  check_rows(op, t);
  check_norm(op, t.norm, eps, k.sizes[3]);
  check_kv_placement(op, t, in_place);
}

inline Tensor clone(const Arg& a) {
  try {
    return torch::stable::clone(*a.tensor);
  } catch (const std::runtime_error&) {
    no_memory(a, a.dtype, a.dim, a.sizes);
  }
}

/// kRun writes the tokens of checked arguments into their cache.
template <void (*kRun)(const KvTensors&, double norm_eps)>
struct KvAppend {
  using Optional = std::optional<Tensor>;

  static void in_place(Tensor k, Tensor v, Tensor k_cache, Tensor v_cache, Tensor length,
                       Optional count, Optional block_table, Optional position, Optional cos,
                       Optional sin, Optional k_norm, double norm_eps, Optional k_scale,
                       Optional v_scale) {
    const KvTensors t{{"k", k},
                      {"v", v},
                      {"k_cache", k_cache},
                      {"v_cache", v_cache},
                      {"length", length},
                      {"count", count},
                      {"block_table", block_table},
                      {"position", position},
                      {"cos", cos},
                      {"sin", sin},
                      {"k_norm", k_norm},
                      {"k_scale", k_scale},
                      {"v_scale", v_scale}};
    check_kv_append("kv_append_", t, norm_eps, true);
    kRun(t, norm_eps);
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> functional(
      Tensor k, Tensor v, Tensor k_cache, Tensor v_cache, Tensor length, Optional count,
      Optional block_table, Optional position, Optional cos, Optional sin, Optional k_norm,
      double norm_eps, Optional k_scale, Optional v_scale) {
    KvTensors t{{"k", k},
                {"v", v},
                {"k_cache", k_cache},
                {"v_cache", v_cache},
                {"length", length},
                {"count", count},
                {"block_table", block_table},
                {"position", position},
                {"cos", cos},
                {"sin", sin},
                {"k_norm", k_norm},
                {"k_scale", k_scale},
                {"v_scale", v_scale}};
    check_kv_append("kv_append", t, norm_eps, false);
    const Tensor keys = clone(t.k_cache), values = clone(t.v_cache);
    t.k_cache = {"k_cache", keys};
    t.v_cache = {"v_cache", values};
    const auto copy_of = [&](const Arg& a) {
      return a.given() ? clone(a) : no_result(t.tokens, ScalarType::Float);
    };
    const Tensor k_scales = copy_of(t.k_scale), v_scales = copy_of(t.v_scale);
    if (t.k_scale.given()) {
      t.k_scale = {"k_scale", k_scales};
      t.v_scale = {"v_scale", v_scales};
    }
    kRun(t, norm_eps);
    return {keys, values, k_scales, v_scales};
  }
};

}  // namespace ardiff
