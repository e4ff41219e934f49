// What the backward ops have in common. Their checks repeat ardiff_kernels/ops/_shared/gradients.py
// in order and wording.
#pragma once

#include "../math/step_args.h"
#include "checks.h"
#include "operands.h"

namespace ardiff {

inline void check_wanted(const char* op, int64_t wanted, int results) {
  const int64_t last = (int64_t{1} << results) - 1;
  if (wanted < 0 || wanted > last) {
    fail(op, ": wanted must lie in [0, ", last, "], got ", wanted);
  }
}

/// The first gradient that is given.
inline const Arg& lead_of(const char* op, const Arg& a, const Arg& b, const Arg& c) {
  if (a.given()) return a;
  if (b.given()) return b;
  if (!c.given()) fail(op, ": pass at least one of ", a.name, ", ", b.name, " and ", c.name);
  return c;
}

/// Fresh [B, columns] tensors for the results whose bits are set in `wanted`.
struct Results {
  const Arg& like;
  int64_t wanted, B;

  Tensor make(int bit, ScalarType dtype, int64_t columns, bool present = true) const {
    return present && (wanted >> bit & 1) ? fresh(like, dtype, B, columns) : no_result(like, dtype);
  }
};

}  // namespace ardiff
