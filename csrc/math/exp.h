// exp for the learned-range variance; polynomial of Cephes expf.
#pragma once

#include "lane.h"

namespace ARDIFF_NS {

/// e^x within 2 ulp on [-87, 88]; x is limited to that range. NaN stays NaN.
template <class F>
ARDIFF_HD F exp_limited(F x) {
  using U = typename Lane<F>::U;
  x = clamp(x, F(-87.0f), F(88.0f));
  const F shifted = fma(x, F(1.44269504088896341f), F(12582912.0f));  // + 1.5 * 2^23 rounds
  const F n = shifted - F(12582912.0f);
  F r = fma(n, F(-0.693359375f), x);
  r = fma(n, F(2.12194440e-4f), r);
  F p = fma(F(1.9875691500e-4f), r, F(1.3981999507e-3f));
  p = fma(p, r, F(8.3334519073e-3f));
  p = fma(p, r, F(4.1665795894e-2f));
  p = fma(p, r, F(1.6666665459e-1f));
  p = fma(p, r, F(5.0000001201e-1f));
  p = fma(p, r * r, r) + F(1.0f);
  return p * from_bits((bits(shifted) << 23) + U(0x3f800000u));
}

}  // namespace ARDIFF_NS
