// Coefficients of the underdamped-Langevin exponential integrator (Cheng et al. 2018), in float64
// and without cancellation.
#pragma once

#include <cmath>

namespace ardiff {

/// x - (1 - e^-x), without cancellation.
inline double drift_integral(double x) {
  if (x >= 1) return x + std::expm1(-x);
  double h = 1;
  for (int k = 20; k >= 3; --k) h = 1 - h * x / k;
  return x * x * h / 2;
}

/// x - 2 tanh(x/2), without cancellation.
inline double tanh_defect(double x) {
  if (x >= 2) return x - 2 * std::tanh(x / 2);
  const double y = x * x / 4;
  double c = 0;
  for (int k = 23; k >= 3; k -= 2) c = y / (k + c);
  return x * c / (1 + c);
}

/// Over a step tau at friction gamma, with the gradient G of -log p frozen:
///   z' = z + z_from_v v + z_from_grad G + z_1 n1 + z_2 n2,   v' = v_from_v v + v_from_grad G + v_1
///   n1
struct UldCoefficients {
  double z_from_v, z_from_grad, v_from_v, v_from_grad;
  double var_z, cov_zv, var_v;
  double z_1, z_2, v_1;
};

/// gamma and tau must be positive and finite.
inline UldCoefficients uld_coefficients(double gamma, double tau) {
  const double x = gamma * tau;
  const double a = -std::expm1(-x), b = drift_integral(x), w = tanh_defect(x);
  const double var_v = -std::expm1(-2 * x), t = std::tanh(x / 2);
  const double v_1 = std::sqrt(var_v);
  return {a / gamma,
          -b / gamma / gamma,
          std::exp(-x),
          -a / gamma,
          (t * t * var_v + 2 * w) / gamma / gamma,
          a * a / gamma,
          var_v,
          t / gamma * v_1,
          std::sqrt(2 * w) / gamma,
          v_1};
}

}  // namespace ardiff
