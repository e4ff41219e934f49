// Which elements a CUDA thread works on. Free of CUDA, so that a test walks it on the host.
//
// A unit is four neighbouring elements of one sample: one 128-bit access of a float32 tensor, and
// exactly the normals of one Philox quad (one normal per element) or two (two per element). A
// thread takes one unit; units are numbered sample after sample, so that short samples share blocks
// and no lane idles. Several units per thread would read the coefficients less often (they come
// from the first-level cache, in four loads) but need half as many registers again.
#pragma once

#include "../math/lane.h"

namespace ardiff {

constexpr int kThreads = 256;
constexpr int64_t kUnit = 4;

struct Layout {
  int64_t samples, units;  // units of a sample
  int64_t blocks;
};

struct Place {
  int64_t sample, unit;
  bool inside;
};

inline Layout layout_of(int64_t B, int64_t d) {
  const int64_t units = (d + kUnit - 1) / kUnit;
  return {B, units, (B * units + kThreads - 1) / kThreads};
}

/// Floor of n / m for n >= 0, m > 0; in 32 bits where they suffice (64 cost 70 instructions).
ARDIFF_HD int64_t divide(int64_t n, int64_t m) {
  if (((n | m) >> 32) == 0) return static_cast<uint32_t>(n) / static_cast<uint32_t>(m);
  return n / m;
}

ARDIFF_HD Place place_of(const Layout& layout, int64_t block, int thread) {
  const int64_t t = block * kThreads + thread;
  if (t >= layout.samples * layout.units) return {0, 0, false};
  const int64_t sample = divide(t, layout.units);
  return {sample, t - sample * layout.units, true};
}

}  // namespace ardiff
