// bfloat16, float16 and int8 as bits, to and from float.
#pragma once

#include "lane.h"

namespace ARDIFF_NS {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};
/// A code, of which a scale makes a number.
struct Int8 {
  static constexpr float kLargest = 127.0f;
  int8_t bits;
};

ARDIFF_HD float to_float(float x) { return x; }
ARDIFF_HD float to_float(BFloat16 x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }
ARDIFF_HD float to_float(Int8 x) { return static_cast<float>(x.bits); }

/// Exact, subnormals and infinities included.
ARDIFF_HD float to_float(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  const uint32_t shifted = magnitude << 13;
  if (magnitude >= 0x7c00u) return from_bits(sign | 0x7f800000u | shifted);
  if (magnitude >= 0x0400u) return from_bits(sign | (shifted + 0x38000000u));
  return from_bits(sign | bits(static_cast<float>(magnitude) * 5.9604644775390625e-8f));
}

/// Rounded to nearest, ties to even; NaN becomes the quiet NaN 0x7fc0, as in PyTorch.
ARDIFF_HD BFloat16 to_bfloat16(float x) {
  const uint32_t u = bits(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return BFloat16{0x7fc0u};
  return BFloat16{static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

/// Rounded to nearest, ties to even; NaN keeps its sign and the top of its payload, as in hardware.
ARDIFF_HD Float16 to_float16(float x) {
  const uint32_t u = bits(x), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
  uint32_t h;
  if (magnitude > 0x7f800000u) {
    h = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {  // 65520 and more
    h = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {
    h = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  } else {  // subnormal: the last place of 1/2 is that of the result
    h = bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
  }
  return Float16{static_cast<uint16_t>(sign | h)};
}

}  // namespace ARDIFF_NS
