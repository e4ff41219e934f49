// A tensor argument of an op and how messages print it; used by checks.h.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

namespace ardiff {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

/// A mistake in an argument, found where the name of the op is not known: its caller adds it.
struct ArgumentError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A tensor argument with its metadata read once.
struct Arg {
  const char* name = "";
  const Tensor* tensor = nullptr;  // null: not given
  int64_t dim = 0;
  const int64_t* sizes = nullptr;
  const int64_t* strides = nullptr;
  ScalarType dtype = ScalarType::Undefined;
  int32_t device_type = 0;
  int32_t device_index = 0;

  Arg() = default;
  Arg(const char* name, const Tensor& t) : name(name), tensor(&t) {
    if (!t.defined()) throw ArgumentError(std::string(name) + " must be a tensor, got None");
    dim = t.dim();
    sizes = t.sizes().data();
    strides = t.strides().data();
    dtype = t.scalar_type();
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &device_type));
    device_index = t.get_device_index();
  }
  Arg(const char* name, const std::optional<Tensor>& t) : name(name) {
    if (t) *this = Arg(name, *t);
  }

  bool given() const { return tensor != nullptr; }
  /// Of the first element; null where there is none.
  const void* address() const {
    return given() && tensor->numel() > 0 ? tensor->const_data_ptr() : nullptr;
  }
  int64_t row_stride() const { return sizes[0] <= 1 ? 0 : strides[0]; }
  /// Elements of a row [...] of a tensor [B, ...].
  int64_t width() const {
    int64_t n = 1;
    for (int64_t i = 1; i < dim; ++i) n *= sizes[i];
    return n;
  }
  bool contiguous() const { return contiguous_from(0); }
  /// Whether the rows of a tensor [B, ...] are contiguous; their strides may be any.
  bool contiguous_rows() const { return contiguous_from(1); }

 private:
  bool contiguous_from(int64_t first) const {
    int64_t expected = 1;
    for (int64_t i = dim - 1; i >= first; --i) {
      if (sizes[i] == 0) return true;
      if (sizes[i] != 1 && strides[i] != expected) return false;
      expected *= sizes[i];
    }
    return true;
  }
};

template <class... Parts>
[[noreturn]] inline void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

/// A double as Python prints it.
inline std::string python_float(double x) {
  std::string text;
  for (int digits = 1; digits <= 17; ++digits) {
    std::ostringstream s;
    s.precision(digits);
    s << x;
    text = s.str();
    if (std::strtod(text.c_str(), nullptr) == x) break;
  }
  return text.find_first_not_of("-0123456789") == std::string::npos ? text + ".0" : text;
}

inline const char* name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::Float8_e4m3fn:
      return "float8_e4m3fn";
    case ScalarType::Float8_e5m2:
      return "float8_e5m2";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    default:
      return "another dtype";
  }
}

inline std::string list_of(const int64_t* values, int64_t n) {
  std::ostringstream s;
  s << "[";
  for (int64_t i = 0; i < n; ++i) s << (i ? ", " : "") << values[i];
  s << "]";
  return s.str();
}

inline std::string shape_of(const Arg& a) { return list_of(a.sizes, a.dim); }

inline std::string shape_of(int64_t rows, int64_t columns) {
  const int64_t sizes[] = {rows, columns};
  return list_of(sizes, 2);
}

inline std::string got(const Arg& a) {
  return std::string("got ") + name_of(a.dtype) + " " + shape_of(a);
}

inline std::string device_of(const Arg& a) {
  if (a.device_type == aoti_torch_device_type_cpu()) return "cpu";
  if (a.device_type == aoti_torch_device_type_cuda()) {
    return "cuda:" + std::to_string(a.device_index);
  }
  return "another device";
}

constexpr int64_t kMaxDim = 64;  // as in PyTorch

[[noreturn]] inline void no_memory(const Arg& like, ScalarType dtype, int64_t dim,
                                   const int64_t* sizes) {
  throw ArgumentError("out of memory on " + device_of(like) + " for a result, " + name_of(dtype) +
                      " " + list_of(sizes, dim));
}

/// A fresh contiguous tensor of `dim` sizes beside `like`: float32, float16, bfloat16 or bool.
inline Tensor fresh_tensor(const Arg& like, ScalarType dtype, int64_t dim, const int64_t* sizes) {
  if (dim > kMaxDim) throw std::runtime_error("ardiff: a tensor of more than 64 dimensions");
  int64_t strides[kMaxDim];
  for (int64_t i = dim - 1, n = 1; i >= 0; --i) {
    strides[i] = n;
    n *= std::max<int64_t>(sizes[i], 1);
  }
  const int32_t code = dtype == ScalarType::BFloat16 ? aoti_torch_dtype_bfloat16()
                       : dtype == ScalarType::Half   ? aoti_torch_dtype_float16()
                       : dtype == ScalarType::Int    ? aoti_torch_dtype_int32()
                       : dtype == ScalarType::Bool   ? aoti_torch_dtype_bool()
                                                     : aoti_torch_dtype_float32();
  AtenTensorHandle handle = nullptr;
  if (aoti_torch_empty_strided(dim, sizes, strides, code, like.device_type, like.device_index,
                               &handle) != AOTI_TORCH_SUCCESS) {
    no_memory(like, dtype, dim, sizes);
  }
  return Tensor(handle);
}

/// An empty [0] tensor: a result that is not wanted.
inline Tensor no_result(const Arg& like, ScalarType dtype) {
  const int64_t size = 0;
  return fresh_tensor(like, dtype, 1, &size);
}

/// A result as an argument of a kernel; absent where it is no_result.
inline Arg result(const char* name, const Tensor& t) { return t.dim() == 2 ? Arg(name, t) : Arg(); }

}  // namespace ardiff
