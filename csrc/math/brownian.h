// A Brownian path W with addressed nodes (Levy's construction, 1948; see docs/noise_path.md). Time
// is a float32 in [0, 2^32), cut into 64 octaves: octave 0 is [0, 2^-31), octave q >= 1 is
// [2^(q-32), 2^(q-31)). A time is an octave and a place of 23 bits in it, its mantissa. The
// increment of W over an octave is a normal of its own (heap 0); inside, W is a bridge, halved 23
// times: the middle of an interval deviates from the mean of its ends by half the root of its
// length times the normal of its node.
//
// An increment is thus a sum of normals whose coefficients belong to the sample: each is an exact
// integer (the difference of two hat functions on the grid of places) times a power of the root of
// two, so that short intervals lose no digits. The sum is Kahan's: adjacent increments make up the
// whole to a float's precision.
#pragma once

#include "noise_address.h"

namespace ARDIFF_NS {

constexpr int kPlaceBits = 23;
constexpr uint32_t kPlaces = 1u << kPlaceBits;
/// Terms of one increment: two nodes of each depth, and the octaves.
constexpr int kMostTerms = 2 * kPlaceBits + 64;

struct PathTime {
  uint32_t octave, place;
  float value;  // the time that they stand for
};

/// 2^e for e in [-126, 127].
ARDIFF_HD float power_of_two(int e) { return from_bits(static_cast<uint32_t>(e + 127) << 23); }

/// A time in [0, 2^32): below 2^-31 taken down to a multiple of 2^-54.
ARDIFF_HD PathTime path_time(float t) {
  if (t < power_of_two(-31)) {
    const uint32_t place = static_cast<uint32_t>(t * power_of_two(54));
    return {0, place, static_cast<float>(place) * power_of_two(-54)};
  }
  return {(bits(t) >> 23) - 95u, bits(t) & (kPlaces - 1), t};
}

/// An increment of W: `scale`, 1 / root of its length (negative from a later time to an earlier
/// one) times the sum of `terms` normals (path_term).
struct Increment {
  PathTime low, high;
  float scale;
  int terms;
};

/// A normal of the sum: its counter word and its coefficient, 0 where it does not contribute.
struct PathTerm {
  uint32_t counter;
  float coefficient;
};

/// No normals where start is end; the scale is NaN for a time outside [0, 2^32).
ARDIFF_HD Increment increment_of(float start, float end) {
  const float top = power_of_two(32);
  const bool valid = start >= 0 && start < top && end >= 0 && end < top;
  const PathTime a = path_time(valid ? start : 0.0f), b = path_time(valid ? end : 1.0f);
  Increment x;
  const bool forward = a.value <= b.value;
  x.low = forward ? a : b;
  x.high = forward ? b : a;
  const float length = x.high.value - x.low.value;
  const float scale = length > 0 ? 1.0f / sqrt(length) : 0.0f;
  x.scale = valid ? (forward ? scale : -scale) : from_bits(0x7fc00000u);
  x.terms = 2 * kPlaceBits + static_cast<int>(x.high.octave - x.low.octave) + 1;
  return x;
}

/// How far a place lies from the nearer end of its interval at a depth.
ARDIFF_HD int32_t hat(uint32_t place, int depth) {
  const uint32_t length = kPlaces >> depth, inside = place & (length - 1);
  return static_cast<int32_t>(inside < length - inside ? inside : length - inside);
}

/// Term i: first, for each depth from the deepest, the node of the lower and that of the higher
/// time, one term where they are the same; then the octaves.
ARDIFF_HD PathTerm path_term(const Increment& x, int i) {
  uint32_t octave, heap;
  int32_t difference;
  int depth = kPlaceBits - 1 - (i >> 1);
  if (depth >= 0) {
    const bool second = (i & 1) != 0;
    const uint32_t low = x.low.place >> (kPlaceBits - depth);
    const uint32_t high = x.high.place >> (kPlaceBits - depth);
    const bool shared = x.low.octave == x.high.octave && low == high;
    octave = second ? x.high.octave : x.low.octave;
    heap = (1u << depth) | (second ? high : low);
    const int32_t gained = second ? hat(x.high.place, depth) : 0;
    const int32_t lost = second == shared ? hat(x.low.place, depth) : 0;
    difference = gained - lost;  // both 0 of the first of a shared node
  } else {
    depth = 0;
    octave = x.low.octave + static_cast<uint32_t>(i - 2 * kPlaceBits);
    heap = 0;
    const uint32_t from = octave == x.low.octave ? x.low.place : 0;
    const uint32_t to = octave == x.high.octave ? x.high.place : kPlaces;
    difference = static_cast<int32_t>(to - from);
  }
  // The root of the node's interval, 2^(exponent / 2), and a place, 2^(octave's exponent - 23).
  const int exponent = static_cast<int>(octave == 0 ? 1u : octave) - 32 + depth;
  const float root = (exponent & 1) != 0 ? 1.41421356237309505f : 1.0f;
  const float unit = root * power_of_two((exponent >> 1) - kPlaceBits);
  return {path_node(octave, heap), static_cast<float>(difference) * unit};
}

/// sum + coefficient * normal, with Kahan's carry of what the sum rounds away.
template <class F>
ARDIFF_HD void add_term(F coefficient, F normal, F& sum, F& carry) {
  const F term = fma(coefficient, normal, carry);
  const F next = sum + term;
  carry = (sum - next) + term;
  sum = next;
}

}  // namespace ARDIFF_NS
