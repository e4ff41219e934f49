// From checked tensors to kernel arguments, and the division of work over threads.
#pragma once

#include <sys/mman.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

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

/// The part of a [B, 2d] tensor from column d on; absent where the tensor is.
inline In second_half(In a, int64_t d) {
  if (a.data) a.data = static_cast<const char*>(a.data) + d * (a.type == Type::float32 ? 4 : 2);
  return a;
}
inline Out second_half(Out a, int64_t d) {
  if (a.data) a.data = static_cast<char*>(a.data) + d * (a.type == Type::float32 ? 4 : 2);
  return a;
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
/// Threads take chunks as they get to them, so a thread that the system delays holds up no other.
template <class Args>
void run_tiles(void (*kernel)(const Args&, int64_t, int64_t), const Args& args) {
  constexpr double kElementsPerThread = 8192;
  constexpr int64_t kChunksPerThread = 16;
  const int64_t count = args.tiling.count;
  const double elements = static_cast<double>(args.B) * args.d;
  const int64_t useful = static_cast<int64_t>(elements / kElementsPerThread);
  const int64_t threads =
      useful > 1 ? std::min<int64_t>({useful, count, torch::stable::get_num_threads()}) : 1;
  if (threads <= 1) {
    kernel(args, 0, count);
    return;
  }
  const int64_t chunks = std::min(useful, threads * kChunksPerThread);
  const int64_t size = (count + chunks - 1) / chunks;
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (;;) {
      const int64_t first = next.fetch_add(size, std::memory_order_relaxed);
      if (first >= count) return;
      kernel(args, first, std::min(first + size, count));
    }
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
