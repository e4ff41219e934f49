// From checked tensors to kernel arguments, and the division of work over threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../common/checks.h"
#include "args.h"

namespace ardiff {

inline Type type_of(ScalarType dtype) {
  return dtype == ScalarType::Half       ? Type::float16
         : dtype == ScalarType::BFloat16 ? Type::bfloat16
                                         : Type::float32;
}

inline In input(const Arg& a) {
  if (!a.given()) return {};
  return {a.tensor->const_data_ptr(), a.row_stride(), type_of(a.dtype)};
}

inline Out output(const Arg& a) {
  if (!a.given()) return {};
  return {a.tensor->mutable_data_ptr(), a.row_stride(), type_of(a.dtype)};
}

template <class T>
PerSample<T> per_sample(const Arg& a) {
  if (!a.given()) return {};
  return {static_cast<const T*>(a.tensor->const_data_ptr()), a.sizes[0] == 1 ? 0 : 1};
}

/// A fresh contiguous [rows, columns] tensor beside `like`.
inline Tensor empty_like(const Arg& like, ScalarType dtype, int64_t rows, int64_t columns) {
  const int64_t sizes[] = {rows, columns}, strides[] = {columns, 1};
  AtenTensorHandle handle = nullptr;
  const int32_t code =
      dtype == ScalarType::BFloat16 ? aoti_torch_dtype_bfloat16() : aoti_torch_dtype_float32();
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(2, sizes, strides, code, like.device_type,
                                                         like.device_index, &handle));
  return Tensor(handle);
}

/// elements_a_quad: 4 for one normal an element, 2 for two.
inline Tiling tiling_of(int64_t B, int64_t d, int64_t elements_a_quad) {
  if (B == 0 || d == 0) return {1, 1, 0};
  const int64_t slot = (d + elements_a_quad - 1) / elements_a_quad * elements_a_quad;
  const int64_t samples = std::max<int64_t>(1, kTile / slot);
  if (samples > 1) return {samples, 1, (B + samples - 1) / samples};
  const int64_t tiles = (d + kTile - 1) / kTile;
  return {1, tiles, B * tiles};
}

/// Runs a kernel over all tiles, on the calling thread where starting others would cost more.
template <class Args>
void run_tiles(void (*kernel)(const Args&, int64_t, int64_t), const Args& args) {
  constexpr double kElementsPerThread = 8192;
  const Tiling& t = args.tiling;
  const double elements_per_tile =
      static_cast<double>(args.B) * args.d / std::max<int64_t>(1, t.count);
  const int64_t grain = 1 + static_cast<int64_t>(kElementsPerThread / (elements_per_tile + 1));
  if (t.count <= grain) {
    kernel(args, 0, t.count);
    return;
  }
  torch::stable::parallel_for(0, t.count, grain,
                              [&](int64_t first, int64_t last) { kernel(args, first, last); });
}

/// Fills what the step ops have in common; the state's strides are still to be judged (`packed`).
inline void fill_step(StepArgs& a, const Arg& lead, const StepTensors& t, int64_t elements_a_quad) {
  a.B = lead.sizes[0];
  a.d = lead.sizes[1];
  a.T = t.coef.sizes[0];
  a.tiling = tiling_of(a.B, a.d, elements_a_quad);
  a.coef = static_cast<const float*>(t.coef.tensor->const_data_ptr());
  a.row = per_sample<int32_t>(t.row);
  a.address.key = *static_cast<const uint64_t*>(t.key.tensor->const_data_ptr());
  a.address.stream = static_cast<const int64_t*>(t.stream.tensor->const_data_ptr());
  a.address.draw = per_sample<int32_t>(t.draw);
  a.address.counter = 0;
  a.model_out = input(t.model_out);
  a.uncond_out = input(t.uncond_out);
  a.uncond_out2 = input(t.uncond_out2);
  a.guidance = per_sample<float>(t.guidance);
  a.guidance2 = per_sample<float>(t.guidance2);
  a.noise_scale = per_sample<float>(t.noise_scale);
  a.noise = input(t.noise);
  a.noise2 = input(t.noise2);
  a.z_model = output(t.z_model);
  a.packed = a.B > 1 && t.model_out.sizes[1] == a.d;
  for (const In* in : {&a.model_out, &a.uncond_out, &a.uncond_out2, &a.noise, &a.noise2}) {
    a.packed = a.packed && (!in->data || in->stride == a.d);
  }
  a.packed = a.packed && (!a.z_model.data || a.z_model.stride == a.d);
}

}  // namespace ardiff
