// The division of rows and panels into tiles of sums that fit into the registers.
#pragma once

#include "../number.h"
#include "../vec.h"
#include "args.h"

namespace ARDIFF_NS {

/// Calls f(width, n) for groups of at most kMost of the rows [0, rows), as even as can be.
template <int kMost, class Function>
ARDIFF_INLINE void for_each_group(int64_t rows, Function f) {
  const int64_t groups = (rows + kMost - 1) / kMost;
  for (int64_t g = 0, n = 0; g < groups; ++g) {
    const int64_t width = rows / groups + (g < rows % groups ? 1 : 0);
    if constexpr (kMost >= 6) {
      if (width == 6) f(Number<6>(), n);
    }
    if constexpr (kMost >= 5) {
      if (width == 5) f(Number<5>(), n);
    }
    if constexpr (kMost >= 4) {
      if (width == 4) f(Number<4>(), n);
    }
    if constexpr (kMost >= 3) {
      if (width == 3) f(Number<3>(), n);
    }
    if (width == 2) f(Number<2>(), n);
    if (width == 1) f(Number<1>(), n);
    n += width;
  }
}

/// Calls f(width, p) for kMost panels of [first, last) at a time, and for the rest one by one.
template <int kMost, class Function>
ARDIFF_INLINE void for_each_panels(int64_t first, int64_t last, Function f) {
  int64_t p = first;
  for (; p + kMost <= last; p += kMost) f(Number<kMost>(), p);
  for (; p < last; ++p) f(Number<1>(), p);
}

}  // namespace ARDIFF_NS
