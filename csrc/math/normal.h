// Normals from random words (Box and Muller 1958). Two words give r cos and r sin with
// u = (w0 + 1/2) 2^-32, r = sqrt(-2 ln u), angle 2 pi int32(w1) 2^-32.
// Polynomials: Cephes logf, sinf, cosf. Error of a normal: below 2e-6 in absolute value.
#pragma once

#include "lane.h"

namespace ARDIFF_NS {

/// -2 ln((w + 1/2) 2^-32).
template <class F>
ARDIFF_HD F neg_two_log(typename Lane<F>::U w) {
  using U = typename Lane<F>::U;
  // g = min(u, 1 - u): in a plain float 1 - u loses its digits near u = 1, in g it keeps them.
  const F g = fma(float_from_int(flip_if_negative(w)), F(2.3283064365386963e-10f),
                  F(1.1641532182693481e-10f));
  const U i = bits(select_bit<31>(w, F(1.0f) - g, g));
  const U exponent = shift_signed(i - U(0x3f3504f3u), 23);  // mantissa in [sqrt(1/2), sqrt(2))
  const F m = from_bits(i - (exponent << 23));
  // A zero exponent means u >= sqrt(1/2), where ln u = ln(1 - g).
  const F f = select_zero(exponent, F(0.0f) - g, m - F(1.0f));
  const F e = float_from_int(exponent);
  const F z = f * f;
  // Estrin's scheme: half the latency of Horner's.
  const F z2 = z * z;
  const F p01 = fma(F(2.0f * 2.4999993993e-1f), f, F(-2.0f * 3.3333331174e-1f));
  const F p23 = fma(F(2.0f * 1.6668057665e-1f), f, F(-2.0f * 2.0000714765e-1f));
  const F p45 = fma(F(2.0f * 1.2420140846e-1f), f, F(-2.0f * 1.4249322787e-1f));
  const F p67 = fma(F(2.0f * 1.1514610310e-1f), f, F(-2.0f * 1.1676998740e-1f));
  const F high = fma(F(-2.0f * 7.0376836292e-2f), z2, fma(p67, z, p45));
  const F p = fma(high, z2, fma(p23, z, p01));
  F y = fma(f * z, p, z);
  y = fma(e, F(2.0f * 2.12194440e-4f), y);
  y = fma(F(-2.0f), f, y);
  return fma(e, F(-2.0f * 0.693359375f), y);
}

/// Sine and cosine of 2 pi int32(w << 2) 2^-34, an angle in [-pi/4, pi/4).
template <class F>
ARDIFF_HD void sincos_in_quadrant(typename Lane<F>::U w, F& s, F& c) {
  const F x = float_from_int(w << 2) * F(3.6572951981679149e-10f);  // 2 pi 2^-34, in [-pi/4, pi/4)
  const F z = x * x;
  s = fma(F(-1.9515295891e-4f), z, F(8.3321608736e-3f));
  s = fma(s, z, F(-1.6666654611e-1f));
  s = fma(s, z * x, x);
  c = fma(F(2.443315711809948e-5f), z, F(-1.388731625493765e-3f));
  c = fma(c, z, F(4.166664568298827e-2f));
  c = fma(c, z, F(-0.5f));
  c = fma(c, z, F(1.0f));
}

/// Two independent normals from two words: first r cos, second r sin. The angle's quadrant is
/// exact, in integers: from one to the next, cosine becomes sine and sine minus cosine.
template <class F>
ARDIFF_HD void normal_pair(typename Lane<F>::U w0, typename Lane<F>::U w1, F& first, F& second) {
  using U = typename Lane<F>::U;
  const U sign(0x80000000u);
  const F r = sqrt(neg_two_log<F>(w0));
  F s, c;
  sincos_in_quadrant<F>(w1, s, c);
  const U quadrant = w1 + U(0x20000000u);  // in its top two bits
  const F cosine = select_bit<30>(quadrant, from_bits(bits(s) ^ sign), c);
  const F sine = select_bit<30>(quadrant, c, s);
  const F signed_r = from_bits(bits(r) ^ (quadrant & sign));
  first = signed_r * cosine;
  second = signed_r * sine;
}

}  // namespace ARDIFF_NS
