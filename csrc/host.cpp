// Host numerics in float64, free of torch: coefficients of the underdamped-Langevin exponential
// integrator, Philox words, CPU features, build information.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>

#include "math/philox.h"
#include "math/uld_coefficients.h"

namespace py = pybind11;

namespace {

std::map<std::string, double> uld_coefficients(double gamma, double tau) {
  if (!(gamma > 0) || !(tau > 0) || !std::isfinite(gamma) || !std::isfinite(tau)) {
    throw py::value_error(
        "uld_coefficients: gamma and tau must be positive and finite, got gamma " +
        py::repr(py::float_(gamma)).cast<std::string>() + " and tau " +
        py::repr(py::float_(tau)).cast<std::string>());
  }
  const ardiff::UldCoefficients c = ardiff::uld_coefficients(gamma, tau);
  return {{"z_from_v", c.z_from_v}, {"z_from_grad", c.z_from_grad},
          {"v_from_v", c.v_from_v}, {"v_from_grad", c.v_from_grad},
          {"var_z", c.var_z},       {"cov_zv", c.cov_zv},
          {"var_v", c.var_v},       {"z_1", c.z_1},
          {"z_2", c.z_2},           {"v_1", c.v_1}};
}

uint32_t word(const py::handle& value) {
  const py::int_ number = py::reinterpret_steal<py::int_>(PyNumber_Index(value.ptr()));
  if (!number) throw py::error_already_set();
  const unsigned long long w = PyLong_AsUnsignedLongLong(number.ptr());
  if (PyErr_Occurred() || w > 0xffffffffull) {
    PyErr_Clear();
    throw py::value_error("philox: words must lie in [0, 4294967295], got " +
                          py::repr(value).cast<std::string>());
  }
  return static_cast<uint32_t>(w);
}

std::array<uint32_t, 4> philox(const py::sequence& counter4, const py::sequence& key2) {
  if (py::len(counter4) != 4 || py::len(key2) != 2) {
    throw py::value_error("philox: expected 4 counter words and 2 key words, got " +
                          std::to_string(py::len(counter4)) + " and " +
                          std::to_string(py::len(key2)));
  }
  std::array<uint32_t, 4> c;
  for (int i = 0; i < 4; ++i) c[i] = word(py::object(counter4[i]));
  const uint32_t k0 = word(py::object(key2[0])), k1 = word(py::object(key2[1]));
  ardiff::philox(c[0], c[1], c[2], c[3], k0, k1);
  return c;
}

std::map<std::string, bool> cpu_features() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#define ARDIFF_FEATURE(name)                              \
  {                                                       \
    name, static_cast<bool>(__builtin_cpu_supports(name)) \
  }
  return {ARDIFF_FEATURE("avx2"),     ARDIFF_FEATURE("fma"),      ARDIFF_FEATURE("avx512f"),
          ARDIFF_FEATURE("avx512dq"), ARDIFF_FEATURE("avx512bw"), ARDIFF_FEATURE("avx512vl")};
#undef ARDIFF_FEATURE
#else
  return {};
#endif
}

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  info["torch"] = ARDIFF_TORCH_VERSION;
  info["cuda"] = ARDIFF_CUDA_VERSION;
  return info;
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Host numerics; see ardiff_kernels.host.";
  m.def("uld_coefficients", &uld_coefficients, py::arg("gamma"), py::arg("tau"));
  m.def("philox", &philox, py::arg("counter4"), py::arg("key2"));
  m.def("cpu_features", &cpu_features);
  m.def("build_info", &build_info);
}
