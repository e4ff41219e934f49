// From checked tensors to kernel arguments, and the division of work over threads.
#pragma once

#include <sys/mman.h>
#include <torch/csrc/stable/ops.h>

#include "../torch/checks.h"
#include "tiling.h"

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

/// Asks for huge pages under fresh memory: the first touch of 4 KiB pages costs more than a step.
inline void ask_for_huge_pages(void* data, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kHugePage - 1);
  // Refusal costs nothing but speed.
  if (end > begin) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

/// A fresh contiguous [rows, columns] tensor beside `like`.
inline Tensor empty_like(const Arg& like, ScalarType dtype, int64_t rows, int64_t columns) {
  const int64_t sizes[] = {rows, columns};
  Tensor fresh = fresh_tensor(like, dtype, 2, sizes);
  const int64_t bytes = rows * columns * (dtype == ScalarType::Float ? 4 : 2);
  if (bytes >= int64_t{4} << 20) ask_for_huge_pages(fresh.mutable_data_ptr(), bytes);
  return fresh;
}

/// A fresh contiguous tensor [B, ...] of the shape of `like`.
inline Tensor empty_like(const Arg& like, ScalarType dtype) {
  Tensor fresh = fresh_tensor(like, dtype, like.dim, like.sizes);
  const int64_t bytes = like.sizes[0] * like.width() * (dtype == ScalarType::Float ? 4 : 2);
  if (bytes >= int64_t{4} << 20) ask_for_huge_pages(fresh.mutable_data_ptr(), bytes);
  return fresh;
}

/// Runs a kernel over all tiles on torch's threads.
template <class Args>
void run_tiles(void (*kernel)(const Args&, int64_t, int64_t), const Args& args) {
  share_tiles(kernel, args, torch::stable::get_num_threads(), [](int64_t threads, auto work) {
    torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) { work(); });
  });
}

/// Fills what the step ops have in common; the state's strides are still to be judged (`packed`).
inline void fill_step(StepArgs& a, const Arg& lead, const StepTensors& t, int64_t elements_a_quad) {
  a.B = lead.sizes[0];
  a.d = lead.width();
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
  a.packed = a.B > 1 && t.model_out.width() == a.d;
  for (const In* in : {&a.model_out, &a.uncond_out, &a.uncond_out2, &a.noise, &a.noise2}) {
    a.packed = a.packed && (!in->data || in->stride == a.d);
  }
  a.packed = a.packed && (!a.z_model.data || a.z_model.stride == a.d);
}

}  // namespace ardiff
