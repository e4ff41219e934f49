// The scalar lane: the primitives on which the numerics of this folder are written, for float.
// csrc/cpu/vec.h gives the same primitives for 8 and 16 lanes. A template over the lane type F thus
// has one source for the host, for CUDA and for every CPU instruction set, and its fused
// multiply-adds are explicit, so that all of them round alike (build with -ffp-contract=off, and
// -fmad=false under nvcc).
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define ARDIFF_HD __host__ __device__ __forceinline__
#else
#define ARDIFF_HD inline __attribute__((always_inline))
#endif

// Each CPU instruction set compiles these headers under a namespace of its own; a shared one would
// let the linker keep the AVX-512 copy of an inline function for every caller.
#ifndef ARDIFF_NS
#define ARDIFF_NS ardiff
#endif

namespace ARDIFF_NS {

template <class F>
struct Lane;  // U: the 32-bit words that go with F.

template <>
struct Lane<float> {
  using U = uint32_t;
};

ARDIFF_HD float fma(float a, float b, float c) {
#ifdef __CUDA_ARCH__
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

ARDIFF_HD float sqrt(float x) {
#ifdef __CUDA_ARCH__
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}

ARDIFF_HD uint32_t bits(float x) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(x);
#else
  uint32_t u;
  std::memcpy(&u, &x, sizeof u);
  return u;
#endif
}

ARDIFF_HD float from_bits(uint32_t u) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(u);
#else
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
#endif
}

/// The float nearest to the word read as a signed integer.
ARDIFF_HD float float_from_int(uint32_t u) { return static_cast<float>(static_cast<int32_t>(u)); }

/// Arithmetic shift to the right.
ARDIFF_HD uint32_t shift_signed(uint32_t u, int n) {
  return static_cast<uint32_t>(static_cast<int32_t>(u) >> n);
}

/// u where its top bit is clear, else its complement.
ARDIFF_HD uint32_t flip_if_negative(uint32_t u) { return u ^ shift_signed(u, 31); }

/// a where bit kBit of s is set, else b.
template <int kBit>
ARDIFF_HD float select_bit(uint32_t s, float a, float b) {
  return (s >> kBit & 1u) != 0 ? a : b;
}

/// a where s is zero, else b.
ARDIFF_HD float select_zero(uint32_t s, float a, float b) { return s == 0 ? a : b; }

/// t where c is not zero, else +0: a zero coefficient drops its term whatever t holds.
ARDIFF_HD float keep_if_nonzero(float c, float t) { return c != 0.0f ? t : 0.0f; }

/// t where c is zero, else +0.
ARDIFF_HD float keep_if_zero(float c, float t) { return c == 0.0f ? t : 0.0f; }

/// x limited to [lo, hi]; NaN stays NaN.
ARDIFF_HD float clamp(float x, float lo, float hi) {
  const float y = x < lo ? lo : x;
  return y > hi ? hi : y;
}

/// High and low words of a * m.
ARDIFF_HD void multiply_wide(uint32_t a, uint32_t m, uint32_t& high, uint32_t& low) {
#ifdef __CUDA_ARCH__
  high = __umulhi(a, m);
  low = a * m;
#else
  const uint64_t p = static_cast<uint64_t>(a) * m;
  high = static_cast<uint32_t>(p >> 32);
  low = static_cast<uint32_t>(p);
#endif
}

}  // namespace ARDIFF_NS
