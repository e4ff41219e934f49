// Argument checks of the ops, shared by the CPU and CUDA libraries. They repeat
// ardiff_kernels/_checks.py in order and wording, so that a mistake reads the same on every
// backend; all throw std::runtime_error, which Python sees as RuntimeError.
#pragma once

#include <cstdlib>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <string>

#include "arg.h"

namespace ardiff {

inline bool has_shape(const Arg& a, int64_t rows, int64_t columns) {
  return a.dim == 2 && a.sizes[0] == rows && a.sizes[1] == columns;
}

/// A contiguous 1-D tensor of `rows` elements, or of `other` where that is allowed (>= 0).
inline void check_vector(const char* op, const Arg& a, ScalarType dtype, int64_t rows,
                         int64_t other = -1) {
  if (!a.given()) return;
  if (a.dim == 1 && a.dtype == dtype && (a.sizes[0] == rows || a.sizes[0] == other) &&
      a.contiguous()) {
    return;
  }
  std::string lengths = "[" + std::to_string(rows) + "]";
  if (other >= 0 && other != rows) lengths += " or [" + std::to_string(other) + "]";
  fail(op, ": ", a.name, " must be a contiguous ", name_of(dtype), " ", lengths, ", ", got(a));
}

inline void check_matrix(const char* op, const Arg& a, ScalarType dtype, int64_t rows,
                         int64_t columns) {
  if (!a.given() || (a.dtype == dtype && has_shape(a, rows, columns))) return;
  fail(op, ": ", a.name, " must be ", name_of(dtype), " ", shape_of(rows, columns), ", ", got(a));
}

/// Whether `a` has the shape [B, n, ...] of `lead`, or [B, times n, ...].
inline bool has_shape_of(const Arg& a, const Arg& lead, int64_t times = 1) {
  if (a.dim != lead.dim) return false;
  for (int64_t i = 0; i < a.dim; ++i) {
    if (a.sizes[i] != (i == 1 ? times : 1) * lead.sizes[i]) return false;
  }
  return true;
}

/// How that shape is printed.
inline std::string shape_of(const Arg& lead, int64_t times) {
  std::string s = "[";
  for (int64_t i = 0; i < lead.dim; ++i) {
    s += (i ? ", " : "") + std::to_string((i == 1 ? times : 1) * lead.sizes[i]);
  }
  return s + "]";
}

/// A tensor that has the shape of `lead`.
inline void check_rows(const char* op, const Arg& a, ScalarType dtype, const Arg& lead) {
  if (!a.given() || (a.dtype == dtype && has_shape_of(a, lead))) return;
  fail(op, ": ", a.name, " must be ", name_of(dtype), " ", shape_of(lead), ", ", got(a));
}

inline void check_dimensions(const char* op, const Arg& lead) {
  if (lead.dim >= 2) return;
  fail(op, ": ", lead.name, " must be [B, d] or [B, ...], got ", lead.dim, " dimensions");
}

inline void check_table(const char* op, const Arg& coef) {
  if (coef.dtype != ScalarType::Float || coef.dim != 2 || coef.sizes[1] != 16 ||
      coef.sizes[0] < 1 || !coef.contiguous()) {
    fail(op, ": coef must be a contiguous float32 [T, 16] table with T >= 1, ", got(coef));
  }
}

/// One device, unit stride inside a row, and no overlapping rows where the op writes; of tensors
/// [B, ...] too where the op is `rowwise`.
inline void check_placement(const char* op, std::initializer_list<const Arg*> args,
                            std::initializer_list<const Arg*> written, bool rowwise = false) {
  const Arg& first = **args.begin();
  for (const Arg* a : args) {
    if (!a->given()) continue;
    if (a->device_type != first.device_type || a->device_index != first.device_index) {
      fail(op, ": all tensors must be on one device, but ", first.name, " is on ", device_of(first),
           " and ", a->name, " on ", device_of(*a));
    }
  }
  for (const Arg* a : args) {
    if (!a->given() || (rowwise ? a->dim < 2 : a->dim != 2)) continue;
    const int64_t rows = a->sizes[0], d = a->width();
    if (rows > 0 && !a->contiguous_rows()) {
      const char* rule =
          a->dim == 2 ? "have unit stride in its last dimension" : "be contiguous inside a row";
      fail(op, ": ", a->name, " must ", rule, ", got strides ", list_of(a->strides, a->dim),
           "; call .contiguous() first");
    }
    for (const Arg* w : written) {
      if (w == a && rows > 1 && a->strides[0] < d) {
        fail(op, ": ", a->name, " is written in place but its rows overlap (row stride ",
             a->strides[0], ", ", d, " elements a row); clone it first");
      }
    }
  }
  for (const Arg* const* w = written.begin(); w != written.end(); ++w) {
    for (const Arg* const* o = w + 1; o != written.end(); ++o) {
      if ((*w)->address() && (*w)->address() == (*o)->address()) {
        fail(op, ": ", (*w)->name, " and ", (*o)->name,
             " are written in place but share their memory; clone one");
      }
    }
  }
}

constexpr int64_t kQuads = int64_t{1} << 32;  // quads that one stream can address

inline void check_counter(const char* op, int64_t counter) {
  if (counter < 0 || counter >= kQuads) {
    fail(op, ": counter must lie in [0, 4294967295], got ", counter);
  }
}

inline void check_philox_normal(const Arg& key, int64_t counter, const Arg& stream, int64_t n) {
  const char* op = "philox_normal";
  check_vector(op, key, ScalarType::Long, 1);
  if (stream.dim != 1 || stream.dtype != ScalarType::Long || !stream.contiguous()) {
    fail(op, ": stream must be a contiguous int64 [B], ", got(stream));
  }
  check_counter(op, counter);
  if (n < 0 || n > 4 * kQuads) fail(op, ": n must lie in [0, ", 4 * kQuads, "], got ", n);
  check_placement(op, {&key, &stream}, {});
}

inline void check_philox_normal_(const Arg& out, const Arg& key, int64_t counter,
                                 const Arg& stream) {
  const char* op = "philox_normal_";
  if (out.dim != 2) fail(op, ": out must be [B, n], got ", out.dim, " dimensions");
  if (out.dtype != ScalarType::Float) {
    fail(op, ": out must be float32, got ", name_of(out.dtype));
  }
  check_vector(op, key, ScalarType::Long, 1);
  check_vector(op, stream, ScalarType::Long, out.sizes[0]);
  check_counter(op, counter);
  check_placement(op, {&out, &key, &stream}, {&out});
}

/// The arguments that diffusion_step and uld_step have in common.
struct StepTensors {
  Arg model_out, coef, row, draw, key, stream;
  Arg uncond_out, uncond_out2, guidance, guidance2, noise_scale, noise, noise2, x0, z_model;
};

/// What tells the step ops apart.
struct StepRules {
  const char* op;
  bool bfloat16_state;      // allowed beside float32
  int64_t elements_a_quad;  // 4: one normal an element; 2: two
  bool learned_range;       // model_out may be [B, 2d], or twice as long in dimension 1
  bool two_noises;
  bool in_place;
  bool second_memory = false;  // the state after the leading one may be [B, 2d]
};

inline void check_options(const StepRules& rules, const Arg& lead, const StepTensors& t) {
  const char* op = rules.op;
  const int64_t rows = lead.sizes[0];
  if (t.uncond_out.given() != t.guidance.given()) {
    fail(op, ": uncond_out and guidance go together: pass both or neither");
  }
  if (t.uncond_out2.given() != t.guidance2.given() ||
      (t.uncond_out2.given() && !t.uncond_out.given())) {
    fail(op, ": uncond_out2 and guidance2 go together, and only beside uncond_out and guidance");
  }
  if (rules.two_noises && t.noise.given() != t.noise2.given()) {
    fail(op, ": noise and noise2 go together: pass both or neither");
  }
  check_rows(op, t.uncond_out, t.model_out.dtype, t.model_out);
  check_rows(op, t.uncond_out2, t.model_out.dtype, t.model_out);
  check_vector(op, t.guidance, ScalarType::Float, rows, 1);
  check_vector(op, t.guidance2, ScalarType::Float, rows, 1);
  check_vector(op, t.noise_scale, ScalarType::Float, rows, 1);
  check_rows(op, t.noise, ScalarType::Float, lead);
  check_rows(op, t.noise2, ScalarType::Float, lead);
  check_rows(op, t.x0, lead.dtype, lead);
  check_rows(op, t.z_model, ScalarType::BFloat16, lead);
}

/// `lead` is z or x, `a` and `b` the further state in schema order (b absent in diffusion_step).
inline void check_step(const StepRules& rules, const Arg& lead, const Arg& a, const Arg& b,
                       const StepTensors& t) {
  const char* op = rules.op;
  check_dimensions(op, lead);
  if (lead.dtype != ScalarType::Float &&
      !(rules.bfloat16_state && lead.dtype == ScalarType::BFloat16)) {
    fail(op, ": ", lead.name, " must be ", rules.bfloat16_state ? "float32 or bfloat16" : "float32",
         ", got ", name_of(lead.dtype));
  }
  const int64_t rows = lead.sizes[0], d = lead.width();
  const int64_t limit = rules.elements_a_quad * kQuads;
  if (d < 1 || d > limit) {
    fail(op, ": ", lead.name, " must have between 1 and ", limit, " elements a row, got ", d);
  }
  for (const Arg* s : {&a, &b}) {
    if (!s->given()) continue;
    const bool wide = rules.second_memory && s == &a;
    if (!has_shape_of(*s, lead) && !(wide && has_shape_of(*s, lead, 2))) {
      fail(op, ": ", s->name, " must have the shape of ", lead.name, " ", shape_of(lead),
           wide ? " (or " + shape_of(lead, 2) + " with a second memory)" : std::string(), ", got ",
           shape_of(*s));
    }
    if (s->dtype != lead.dtype) {
      fail(op, ": ", s->name, " must have the dtype of ", lead.name, " (", name_of(lead.dtype),
           "), got ", name_of(s->dtype));
    }
  }
  const Arg& out = t.model_out;
  if (out.dtype != ScalarType::Float && out.dtype != ScalarType::Half &&
      out.dtype != ScalarType::BFloat16) {
    fail(op, ": model_out must be float32, float16 or bfloat16, got ", name_of(out.dtype));
  }
  if (!has_shape_of(out, lead) && !(rules.learned_range && has_shape_of(out, lead, 2))) {
    const std::string wide =
        rules.learned_range ? " (or " + shape_of(lead, 2) + " with learned-range variance)" : "";
    fail(op, ": model_out must have the shape of ", lead.name, " ", shape_of(lead), wide, ", got ",
         shape_of(out));
  }
  check_table(op, t.coef);
  check_vector(op, t.row, ScalarType::Int, rows, 1);
  check_vector(op, t.draw, ScalarType::Int, rows, 1);
  check_vector(op, t.key, ScalarType::Long, 1);
  check_vector(op, t.stream, ScalarType::Long, rows);
  check_options(rules, lead, t);
  const std::initializer_list<const Arg*> all = {
      &lead,          &a,          &b,           &t.model_out,   &t.coef,
      &t.row,         &t.draw,     &t.key,       &t.stream,      &t.uncond_out,
      &t.uncond_out2, &t.guidance, &t.guidance2, &t.noise_scale, &t.noise,
      &t.noise2,      &t.x0,       &t.z_model};
  if (rules.in_place) {
    check_placement(op, all, {&lead, &a, &b, &t.x0, &t.z_model}, true);
  } else {
    check_placement(op, all, {}, true);
  }
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

inline void check_x0_clamp(const char* op, const std::optional<double>& x0_clamp) {
  if (x0_clamp && !(*x0_clamp > 0))
    fail(op, ": x0_clamp must be positive, got ", python_float(*x0_clamp));
}

}  // namespace ardiff
