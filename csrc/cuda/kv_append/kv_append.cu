// kv_append on CUDA: new keys (RMS-normed, rotated) and values into the cache in one launch. Bound
// by launch and latency: a token is a few hundred bytes a head.
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "../kv/launch.cuh"
#include "kernel.cuh"

namespace ardiff {
namespace {

using Optional = std::optional<Tensor>;

float* scales_of(const Arg& a) {
  return a.given() ? static_cast<float*>(a.tensor->mutable_data_ptr()) : nullptr;
}

void run(const KvTensors& t, double eps) {
  const Arg& cache = t.k_cache;
  AppendArgs a{};
  a.rows = rows_of(t);
  a.head = head_of(t, eps);
  a.k = tokens_of(t.tokens);
  a.v = tokens_of(t.v);
  a.k_cache = cache.tensor->mutable_data_ptr();
  a.v_cache = t.v_cache.tensor->mutable_data_ptr();
  a.k_scale = scales_of(t.k_scale);
  a.v_scale = scales_of(t.v_scale);
  a.type = cache.dtype == ScalarType::Float      ? CacheType::float32
           : cache.dtype == ScalarType::BFloat16 ? CacheType::bfloat16
           : cache.dtype == ScalarType::Char     ? CacheType::int8
                                                 : CacheType::float8;
  const int64_t bytes = is_quantized(cache.dtype) ? 8 : 16;
  a.vector = aligned(cache, bytes) && aligned(t.v_cache, bytes);
  a.D = static_cast<int>(cache.sizes[3]);
  a.heads = cache.sizes[1];
  const int64_t heads = a.rows.T * a.heads;
  if (heads >= int64_t{1} << 31) fail("kv_append: 2^31 heads and more in a row; split the call");
  a.blocks_of_row = (heads + AppendBody::kHeads - 1) / AppendBody::kHeads;
  launch_blocks<AppendBody>(a, t.tokens.sizes[0] * a.blocks_of_row, t.tokens.device_index);
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

STABLE_TORCH_LIBRARY_IMPL(ARDIFF_CUDA_NAMESPACE, ARDIFF_CUDA_KEY, m) {
  m.impl("kv_append", TORCH_BOX(&ardiff::kv_append));
  m.impl("kv_append_", TORCH_BOX(&ardiff::kv_append_));
}
