// Host numerics in float64 and what the libraries were built with. Plain C functions, free of torch
// and of Python: one binary serves every Python, and so does the wheel. ardiff_kernels/host.py
// checks the arguments and calls them.
#include <cstdint>

#include "math/philox.h"
#include "math/uld_coefficients.h"

#define ARDIFF_HOST extern "C" __attribute__((visibility("default")))

/// Writes the members of UldCoefficients in their order.
ARDIFF_HOST void ardiff_host_uld_coefficients(double gamma, double tau, double out[10]) {
  const ardiff::UldCoefficients c = ardiff::uld_coefficients(gamma, tau);
  const double members[] = {c.z_from_v, c.z_from_grad, c.v_from_v, c.v_from_grad, c.var_z,
                            c.cov_zv,   c.var_v,       c.z_1,      c.z_2,         c.v_1};
  for (int i = 0; i < 10; ++i) out[i] = members[i];
}

/// Puts the random words of a counter in its place.
ARDIFF_HOST void ardiff_host_philox(uint32_t counter[4], const uint32_t key[2]) {
  ardiff::philox(counter[0], counter[1], counter[2], counter[3], key[0], key[1]);
}

/// Compiler, torch, CUDA: one line each, empty where there is none.
ARDIFF_HOST const char* ardiff_host_build_info() {
#if defined(__clang__)
  return "clang " __clang_version__ "\n" ARDIFF_TORCH_VERSION "\n" ARDIFF_CUDA_VERSION;
#else
  return "gcc " __VERSION__ "\n" ARDIFF_TORCH_VERSION "\n" ARDIFF_CUDA_VERSION;
#endif
}
