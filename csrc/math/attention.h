// Numerics of kv_append and kv_attention that the CPU and CUDA share: a head's RMS norm, rotary
// pairs, the codes of int8 and float8 caches, and the merge of splits.
#pragma once

#include "convert.h"
#include "exp.h"

namespace ARDIFF_NS {

constexpr int kSplit = 256;     // keys are cut at multiples of it
constexpr int kSumOfLanes = 8;  // partial sums of squares; lane l takes dimensions l, l + 8, ...

/// The sum of partial sums, in halves.
template <int kCount>
ARDIFF_HD float sum_of_lanes(float (&lanes)[kCount]) {
  for (int half = kCount / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

/// What RMS norm multiplies D elements by, beside their weights.
ARDIFF_HD float inverse_rms(float sum_of_squares, int64_t D, float eps) {
  return 1.0f / sqrt(sum_of_squares / static_cast<float>(D) + eps);
}

/// Rotates dimensions i and i + R / 2.
ARDIFF_HD void rotate_pair(float& a, float& b, float cos, float sin) {
  const float first = fma(a, cos, -(b * sin));
  b = fma(b, cos, a * sin);
  a = first;
}

/// The scale of a vector whose largest |x| has these bits, for codes up to `largest`; NaN where an
/// element is not finite.
ARDIFF_HD float quantization_scale(uint32_t largest_bits, float largest) {
  return largest_bits >= 0x7f800000u ? from_bits(0x7fc00000u) : from_bits(largest_bits) / largest;
}

/// x / scale within the codes' range, 0 where the scale is 0 or NaN.
ARDIFF_HD float unrounded_code(float x, float scale, float largest) {
  return scale > 0.0f ? clamp(x / scale, -largest, largest) : 0.0f;
}

/// float8_e4m3fn: 4 bits of exponent with bias 7, 3 of mantissa, no infinity.
struct Float8 {
  static constexpr float kLargest = 448.0f;
  uint8_t bits;
};

/// Rounded to nearest, ties to even; |x| <= 127.
ARDIFF_HD void to_code(float x, Int8& code) {
  code.bits = static_cast<int8_t>(bits(x + 12582912.0f) & 0xffu);  // + 1.5 * 2^23
}
/// Rounded to nearest, ties to even; |x| <= 448.
ARDIFF_HD void to_code(float x, Float8& code) {
  const uint32_t u = bits(x), sign = (u >> 24) & 0x80u, magnitude = u & 0x7fffffffu;
  const uint32_t normal = ((magnitude + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20) - 960u;
  // The last place of 2^14 is that of a subnormal.
  const uint32_t subnormal = bits(from_bits(magnitude) + 16384.0f) - 0x46800000u;
  code.bits = static_cast<uint8_t>(sign | (magnitude >= 0x3c800000u ? normal : subnormal));
}

/// Exact, and NaN codes give NaN.
ARDIFF_HD float to_float(Float8 x) {
  const uint32_t magnitude = x.bits & 0x7fu;
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x80u) << 24;
  const float value = from_bits(magnitude << 20) * 0x1p120f;
  return from_bits(sign | (magnitude == 0x7fu ? 0x7fc00000u : bits(value)));
}

/// Factors of what was summed so far and of a new split, when their maxima are `high` and `fresh`.
struct MergeFactors {
  float old_part, new_part, high;
};
ARDIFF_HD MergeFactors merge_factors(float high, float fresh) {
  const float top = high > fresh ? high : fresh;
  return {exp_limited(high - top), exp_limited(fresh - top), top};
}

/// old_part * old_value + new_part * new_value.
ARDIFF_HD float merged(const MergeFactors& f, float old_value, float new_value) {
  return fma(f.old_part, old_value, f.new_part * new_value);
}

}  // namespace ARDIFF_NS
