// kv_append on the CPU: checks, threads and registration; the kernel is kernel.cpp.
#include <torch/csrc/stable/library.h>

#include "../isa.h"
#include "../kv/launch.h"

ARDIFF_DECLARE_KERNEL(kv_append_tiles, KvAppendArgs)

namespace ardiff {
namespace {

using Optional = std::optional<Tensor>;

void run(const KvTensors& t, double eps) {
  check_kv_data("kv_append", t);
  KvAppendArgs a{};
  fill_kv(a, t, eps);
  a.k = tokens_of(t.tokens);
  a.v = tokens_of(t.v);
  a.B = t.tokens.sizes[0] * a.T;
  a.d = 2 * a.cache.heads * a.cache.D;
  a.tiling = {1, 1, a.B};
  run_tiles(kv_append_tiles(), a);
}

void kv_append_(Tensor k, Tensor v, Tensor k_cache, Tensor v_cache, Tensor length, Optional count,
                Optional block_table, Optional position, Optional cos, Optional sin,
                Optional k_norm, double norm_eps, Optional k_scale, Optional v_scale) {
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
  run(t, norm_eps);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> kv_append(Tensor k, Tensor v, Tensor k_cache,
                                                     Tensor v_cache, Tensor length, Optional count,
                                                     Optional block_table, Optional position,
                                                     Optional cos, Optional sin, Optional k_norm,
                                                     double norm_eps, Optional k_scale,
                                                     Optional v_scale) {
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
  const Tensor keys = torch::stable::clone(k_cache), values = torch::stable::clone(v_cache);
  t.k_cache = {"k_cache", keys};
  t.v_cache = {"v_cache", values};
  const auto copy_of = [&](const Arg& a) {
    return a.given() ? torch::stable::clone(*a.tensor) : no_result(t.tokens, ScalarType::Float);
  };
  const Tensor k_scales = copy_of(t.k_scale), v_scales = copy_of(t.v_scale);
  if (t.k_scale.given()) {
    t.k_scale = {"k_scale", k_scales};
    t.v_scale = {"v_scale", v_scales};
  }
  run(t, norm_eps);
  return {keys, values, k_scales, v_scales};
}

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ardiff, CPU, m) {
  m.impl("kv_append", TORCH_BOX(&ardiff::kv_append));
  m.impl("kv_append_", TORCH_BOX(&ardiff::kv_append_));
}
