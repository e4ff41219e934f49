// From checked arguments to what kernels are given, and fresh tensors for results.
#pragma once

#include <sys/mman.h>

#include "../math/args.h"
#include "arg.h"

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
const T* pointer(const Arg& a) {
  return a.given() ? static_cast<const T*>(a.tensor->const_data_ptr()) : nullptr;
}

template <class T>
T* target(const Arg& a) {
  return a.given() ? static_cast<T*>(a.tensor->mutable_data_ptr()) : nullptr;
}

template <class T>
PerSample<T> per_sample(const Arg& a) {
  return {pointer<T>(a), a.given() && a.sizes[0] != 1 ? 1 : 0};
}

/// Asks for huge pages under fresh memory of the host where it is large: the first touch of 4 KiB
/// pages costs more than a step.
inline void ask_for_huge_pages(void* data, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  if (bytes < int64_t{4} << 20) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kHugePage - 1);
  // Refusal costs nothing but speed.
  if (end > begin) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

/// A fresh contiguous tensor [B, ...] of `dim` sizes on the device of `like`, for rows.
inline Tensor fresh(const Arg& like, ScalarType dtype, int64_t dim, const int64_t* sizes) {
  Tensor t = fresh_tensor(like, dtype, dim, sizes);
  if (like.device_type == aoti_torch_device_type_cpu()) {
    int64_t bytes = size_of(type_of(dtype));
    for (int64_t i = 0; i < dim; ++i) bytes *= sizes[i];
    ask_for_huge_pages(t.mutable_data_ptr(), bytes);
  }
  return t;
}

inline Tensor fresh(const Arg& like, ScalarType dtype, int64_t rows, int64_t columns) {
  const int64_t sizes[] = {rows, columns};
  return fresh(like, dtype, 2, sizes);
}

/// The same of the shape of `like`.
inline Tensor fresh(const Arg& like, ScalarType dtype) {
  return fresh(like, dtype, like.dim, like.sizes);
}

}  // namespace ardiff
