// Checks of the C interface's arguments, and their translation to the kernels' own.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

#include "../math/columns.h"
#include "../math/step_args.h"
#include "ardiff.h"

namespace ardiff {

struct Failure : std::runtime_error {
  Failure(ardiff_status status, const std::string& message)
      : std::runtime_error(message), status(status) {}
  ardiff_status status;
};

template <class... Parts>
[[noreturn]] void reject(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Failure(ARDIFF_INVALID_ARGUMENT, message.str());
}

constexpr int64_t kQuads = int64_t{1} << 32;  // quads that one stream can address

inline const char* name_of(int32_t dtype) {
  return dtype == ARDIFF_FLOAT32 ? "float32" : dtype == ARDIFF_FLOAT16 ? "float16" : "bfloat16";
}

/// An op's name and the shape that its tensors share.
struct Call {
  const char* op;
  int64_t rows, columns;

  void check_shape(int64_t elements_a_quad) const {
    if (rows < 0) reject(op, ": rows must not be negative, got ", rows);
    const int64_t limit = elements_a_quad * kQuads;
    if (columns < 1 || columns > limit) {
      reject(op, ": columns must lie in [1, ", limit, "], got ", columns);
    }
  }

  /// One of the dtypes whose bits are set in `dtypes`, and aligned.
  void check_elements(const char* name, const void* data, int32_t dtype, unsigned dtypes) const {
    if (dtype < ARDIFF_FLOAT32 || dtype > ARDIFF_BFLOAT16 || !(dtypes >> dtype & 1)) {
      std::string allowed;
      for (int32_t k = ARDIFF_FLOAT32; k <= ARDIFF_BFLOAT16; ++k) {
        if (dtypes >> k & 1) allowed += (allowed.empty() ? "" : " or ") + std::string(name_of(k));
      }
      reject(op, ": ", name, " must be ", allowed, ", got dtype ", dtype);
    }
    const uintptr_t size = dtype == ARDIFF_FLOAT32 ? 4 : 2;
    if (reinterpret_cast<uintptr_t>(data) % size) {
      reject(op, ": ", name, " must be aligned to its elements of ", size, " bytes");
    }
  }

  In input(const char* name, const ardiff_input& t, unsigned dtypes) const {
    if (!t.data) return {};
    check_elements(name, t.data, t.dtype, dtypes);
    return {t.data, rows > 1 ? t.row_stride : 0, static_cast<Type>(t.dtype)};
  }

  /// `width`: its columns.
  Out output(const char* name, const ardiff_output& t, unsigned dtypes, int64_t width) const {
    if (!t.data) return {};
    check_elements(name, t.data, t.dtype, dtypes);
    if (rows > 1 && t.row_stride < width) {
      reject(op, ": ", name, " is written but its rows overlap: row_stride must be at least ",
             width, ", got ", t.row_stride);
    }
    return {t.data, rows > 1 ? t.row_stride : 0, static_cast<Type>(t.dtype)};
  }

  void require(const char* name, const void* data) const {
    if (!data && rows > 0) reject(op, ": ", name, " must not be NULL");
  }

  template <class Given>
  auto each(const char* name, const Given& values) const {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(values.data)>>;
    if (!values.data) return PerSample<T>{};
    if (values.count != 1 && values.count != rows) {
      reject(op, ": ", name, " must have count 1 or ", rows, ", got ", values.count);
    }
    return PerSample<T>{values.data, values.count == 1 ? 0 : 1};
  }
};

constexpr unsigned kFloat32 = 1u << ARDIFF_FLOAT32;
constexpr unsigned kBFloat16 = 1u << ARDIFF_BFLOAT16;
constexpr unsigned kAnyFloat = kFloat32 | kBFloat16 | 1u << ARDIFF_FLOAT16;

/// The arguments, fields that the program's header did not have yet being zero.
inline ardiff_step_args read_args(const char* op, const ardiff_step_args* given) {
  constexpr uint64_t kFirstSize = sizeof(ardiff_step_args);  // in ABI version 2
  if (!given) reject(op, ": args must not be NULL");
  const uint64_t size = given->struct_size;
  if (size < kFirstSize || size > sizeof(ardiff_step_args)) {
    reject(op, ": args.struct_size is ", size, ", this library's is ", sizeof(ardiff_step_args),
           "; begin with ARDIFF_STEP_ARGS_INIT and use a library no older than the header");
  }
  return *given;
}

inline void check_together(const char* op, const char* a, bool has_a, const char* b, bool has_b) {
  if (has_a != has_b) reject(op, ": ", a, " and ", b, " go together: pass both or neither");
}

/// How a C program gives the tensors of a step.
struct StepReader {
  const Call& call;
  const ardiff_input& model_out;

  /// The unconditional outputs are of the model output's dtype, which is read first.
  In output(const char* name, const ardiff_input& t) const {
    return call.input(name, t, &t == &model_out ? kAnyFloat : 1u << model_out.dtype);
  }
  In normals(const char* name, const ardiff_input& t) const {
    return call.input(name, t, kFloat32);
  }
  Out copy(const char* name, const ardiff_output& t) const {
    return call.output(name, t, kBFloat16, call.columns);
  }
  template <class Given, class T>
  void each(const char* name, const Given& t, PerSample<T>& values) const {
    values = call.each(name, t);
  }
};

/// What the steps have in common, checked; the state is left to the op. `t` must outlive the
/// result.
template <class Args>
Args step_args(const Call& call, const ardiff_step_args& t, bool learned_range) {
  const char* op = call.op;
  call.check_shape(Args::kElementsPerQuad);
  if (!t.coef || t.coef_rows < 1) {
    reject(op, ": coef must be a table [coef_rows, ", kColumns, "] with coef_rows >= 1, got ",
           t.coef_rows, t.coef ? " rows" : " rows at NULL");
  }
  call.require("row.data", t.row.data);
  call.require("draw.data", t.draw.data);
  call.require("stream", t.stream);
  call.require("model_out.data", t.model_out.data);
  const int64_t model = t.model_columns ? t.model_columns : call.columns;
  if (model != call.columns && !(learned_range && model == 2 * call.columns)) {
    reject(op, ": model_columns must be ", call.columns,
           learned_range ? " or twice as many with learned-range variance" : "", ", got ", model);
  }
  if (t.threads < 0) reject(op, ": threads must not be negative, got ", t.threads);
  check_together(op, "uncond_out", t.uncond_out.data, "guidance", t.guidance.data);
  check_together(op, "uncond_out2", t.uncond_out2.data, "guidance2", t.guidance2.data);
  if (t.uncond_out2.data && !t.uncond_out.data) {
    reject(op, ": uncond_out2 and guidance2 go only beside uncond_out and guidance");
  }
  Args a{};
  a.B = call.rows;
  a.d = call.columns;
  a.T = t.coef_rows;
  a.coef = t.coef;
  a.address.key = &t.key;
  a.address.stream = t.stream;
  fill_step(a, StepReader{call, t.model_out}, t);
  return a;
}

/// Tensors that are written must not share their first element.
inline void check_apart(const char* op, std::initializer_list<std::pair<const char*, void*>> all) {
  for (auto a = all.begin(); a != all.end(); ++a) {
    for (auto b = a + 1; b != all.end(); ++b) {
      if (a->second && a->second == b->second) {
        reject(op, ": ", a->first, " and ", b->first,
               " are both written: give each its own memory");
      }
    }
  }
}

}  // namespace ardiff
