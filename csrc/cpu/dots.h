// Dot products of two bfloat16 and of four int8 in a 32-bit word, as the instructions VDPBF16PS and
// VPDPBUSD compute them; ARDIFF_EMULATED builds them from plain C++ that rounds alike.
#pragma once

#include "vec.h"

namespace ARDIFF_NS {

#if defined(ARDIFF_EMULATED)

/// Subnormal numbers become zero, as the instruction reads and writes them.
ARDIFF_INLINE float flushed(float x) {
  const uint32_t word = bits(x);
  return word & 0x7f800000u ? x : from_bits(word & 0x80000000u);
}

/// c plus the products of the odd elements (the upper halves), then of the even ones, each addition
/// rounded to float32.
ARDIFF_INLINE float dot_pairs(uint32_t a, uint32_t b, float c) {
  const float high =
      fma(flushed(from_bits(a & 0xffff0000u)), flushed(from_bits(b & 0xffff0000u)), flushed(c));
  return flushed(fma(flushed(from_bits(a << 16)), flushed(from_bits(b << 16)), flushed(high)));
}

/// c plus the four products of unsigned a and signed b, modulo 2^32.
ARDIFF_INLINE uint32_t dot_quads(uint32_t a, uint32_t b, uint32_t c) {
  for (int shift = 0; shift < 32; shift += 8) {
    const int32_t one = static_cast<uint8_t>(a >> shift), other = static_cast<int8_t>(b >> shift);
    c += static_cast<uint32_t>(one * other);
  }
  return c;
}

#else

ARDIFF_INLINE VFloat dot_pairs(VWord a, VWord b, VFloat c) {
  return (FloatVector)_mm512_dpbf16_ps((__m512)c.v, (__m512bh)a.v, (__m512bh)b.v);
}
ARDIFF_INLINE VWord dot_quads(VWord a, VWord b, VWord c) {
  return (WordVector)_mm512_dpbusd_epi32((__m512i)c.v, (__m512i)a.v, (__m512i)b.v);
}

#endif

}  // namespace ARDIFF_NS
