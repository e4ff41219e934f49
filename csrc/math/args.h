// Tensors as kernels are given them. The structs are plain data, since translation units built for
// different instruction sets share them; the functions belong to one of those each (ARDIFF_NS).
#pragma once

#include <cstdint>

#include "lane.h"

namespace ardiff {

enum class Type { float32, float16, bfloat16 };

/// A [B, d] tensor with unit inner stride; `stride` is in elements. Absent: data is null.
struct In {
  const void* data;
  int64_t stride;
  Type type;
};
struct Out {
  void* data;
  int64_t stride;
  Type type;
};

/// A [B] (step 1) or [1] (step 0) tensor. Absent: data is null.
template <class T>
struct PerSample {
  const T* data;
  int64_t step;
};

}  // namespace ardiff

namespace ARDIFF_NS {

template <class T>
ARDIFF_HD T at(const PerSample<T>& p, int64_t b) {
  return p.data[b * p.step];
}

ARDIFF_HD int64_t size_of(Type type) { return type == Type::float32 ? 4 : 2; }

/// Part `k` of a [B, n d] tensor, from column k d on; absent where the tensor is, or without such a
/// part.
ARDIFF_HD In part_of(In a, int k, int n, int64_t d) {
  if (k >= n) return {};
  if (a.data) a.data = static_cast<const char*>(a.data) + k * d * size_of(a.type);
  return a;
}
ARDIFF_HD Out part_of(Out a, int k, int n, int64_t d) {
  if (k >= n) return {};
  if (a.data) a.data = static_cast<char*>(a.data) + k * d * size_of(a.type);
  return a;
}

}  // namespace ARDIFF_NS
