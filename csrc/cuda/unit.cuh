// A unit (four neighbouring elements) in memory and its addressed normals. Every kernel comes in
// two forms: kVector reads and writes a unit in one access (128 bits of float32, 64 of a 16-bit
// type); the other takes element by element, for row lengths, strides or pointers that do not allow
// that.
#pragma once

#include <cstring>
#include <type_traits>

#include "../math/args.h"
#include "../math/convert.h"
#include "../math/normal.h"
#include "../math/philox.h"
#include "layout.cuh"

namespace ardiff {

template <class T>
struct Four {
  T v[kUnit];
};

#ifdef __CUDACC__
template <size_t kBytes>
struct WordOf;
template <>
struct WordOf<16> {
  using type = uint4;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
#endif

/// n elements (four where kVector) from element i of sample b; zeros behind them.
template <class T, bool kVector>
ARDIFF_HD Four<T> load(const In& in, int64_t b, int64_t i, int n) {
  const T* p = static_cast<const T*>(in.data) + b * in.stride + i;
  Four<T> x;
  if constexpr (kVector) {
#ifdef __CUDA_ARCH__
    using Word = typename WordOf<sizeof x>::type;
    const Word word = *reinterpret_cast<const Word*>(p);
    memcpy(&x, &word, sizeof x);
#else
    std::memcpy(&x, p, sizeof x);
#endif
  } else {
    for (int k = 0; k < kUnit; ++k) x.v[k] = k < n ? p[k] : T{};
  }
  return x;
}

template <class T, bool kVector>
ARDIFF_HD void store(const Out& out, int64_t b, int64_t i, int n, const Four<T>& x) {
  T* p = static_cast<T*>(out.data) + b * out.stride + i;
  if constexpr (kVector) {
#ifdef __CUDA_ARCH__
    using Word = typename WordOf<sizeof x>::type;
    Word word;
    memcpy(&word, &x, sizeof x);
    __stwb(reinterpret_cast<Word*>(p), word);  // an assignment may be split into narrow stores
#else
    std::memcpy(p, &x, sizeof x);
#endif
  } else {
    for (int k = 0; k < kUnit; ++k) {
      if (k < n) p[k] = x.v[k];
    }
  }
}

ARDIFF_HD float widen(float x) { return x; }
ARDIFF_HD float widen(BFloat16 x) { return to_float(x); }
ARDIFF_HD float widen(Float16 x) {
#ifdef __CUDA_ARCH__
  float y;  // one exact instruction for the header's dozen
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  return to_float(x);
#endif
}

template <class T>
ARDIFF_HD T narrow(float x) {
  if constexpr (std::is_same_v<T, Float16>) {
#ifdef __CUDA_ARCH__
    Float16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#else
    return to_float16(x);
#endif
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    return to_bfloat16(x);
  } else {
    return x;
  }
}

template <class T>
ARDIFF_HD Four<float> widened(const Four<T>& x) {
  return {widen(x.v[0]), widen(x.v[1]), widen(x.v[2]), widen(x.v[3])};
}

template <class T>
ARDIFF_HD Four<T> narrowed(const Four<float>& x) {
  return {narrow<T>(x.v[0]), narrow<T>(x.v[1]), narrow<T>(x.v[2]), narrow<T>(x.v[3])};
}

/// The address of a sample's normals, all but the quad.
struct SampleAddress {
  uint32_t c1, c2, c3, k0, k1;
};

ARDIFF_HD SampleAddress sample_address(const int64_t* key, int64_t stream, uint32_t counter) {
  return {counter, low_word(stream), high_word(stream), low_word(*key), high_word(*key)};
}

/// Both pairs of a quad: (w0, w1)'s, then (w2, w3)'s.
ARDIFF_HD Four<float> quad_normals(const SampleAddress& a, uint32_t quad) {
  uint32_t w0 = quad, w1 = a.c1, w2 = a.c2, w3 = a.c3;
  philox(w0, w1, w2, w3, a.k0, a.k1);
  Four<float> n;
  normal_pair(w0, w1, n.v[0], n.v[1]);
  normal_pair(w2, w3, n.v[2], n.v[3]);
  return n;
}

/// Number of elements of a unit that lie in a row of d.
template <bool kVector>
ARDIFF_HD int unit_length(int64_t d, int64_t i) {
  return kVector || d - i >= kUnit ? static_cast<int>(kUnit) : static_cast<int>(d - i);
}

}  // namespace ardiff
