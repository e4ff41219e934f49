// What uld_step and diffusion_step have in common as torch calls them: arguments, checks, and the
// kernels' arguments from checked ones. The checks repeat ardiff_kernels/ops/_shared/steps.py in
// order and wording.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>

#include "../math/step_args.h"
#include "checks.h"
#include "operands.h"

namespace ardiff {

#define ARDIFF_FIELD(name) Arg name;
/// The arguments that diffusion_step and uld_step have in common.
struct StepTensors {
  Arg model_out, coef, row, draw, key, stream;
  ARDIFF_STEP_OPTIONS(ARDIFF_FIELD, ARDIFF_FIELD, ARDIFF_FIELD)
  Arg noise2, x0, z_model;
};
#undef ARDIFF_FIELD

// Of an op's form, from coef to the last option: its parameters, and what StepTensors takes of
// them.
#define ARDIFF_PARAMETER(name) , std::optional<Tensor> name
#define ARDIFF_STEP_PARAMETERS                      \
  Tensor coef, Tensor row, Tensor draw, Tensor key, \
      Tensor stream ARDIFF_STEP_OPTIONS(ARDIFF_PARAMETER, ARDIFF_PARAMETER, ARDIFF_PARAMETER)
#define ARDIFF_ARGUMENT(name) , Arg(#name, name)
#define ARDIFF_STEP_ARGUMENTS                                             \
  Arg("coef", coef), Arg("row", row), Arg("draw", draw), Arg("key", key), \
      Arg("stream", stream) ARDIFF_STEP_OPTIONS(ARDIFF_ARGUMENT, ARDIFF_ARGUMENT, ARDIFF_ARGUMENT)

/// What tells the step ops apart.
struct StepRules {
  const char* op;
  bool bfloat16_state;      // allowed beside float32
  int64_t elements_a_quad;  // 4: one normal per element; 2: two
  bool learned_range;       // model_out may be [B, 2d], or twice as long in dimension 1
  bool two_noises;
  bool in_place;
  int memories = 1;  // the state after the leading one may be as many times as long
};

#define ARDIFF_CHECK_OUTPUT(name) check_rows(op, t.name, t.model_out.dtype, t.model_out);
#define ARDIFF_CHECK_VALUE(name) check_vector(op, t.name, ScalarType::Float, rows, 1);
#define ARDIFF_CHECK_NORMALS(name) check_rows(op, t.name, ScalarType::Float, lead);
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
  ARDIFF_STEP_OPTIONS(ARDIFF_CHECK_OUTPUT, ARDIFF_CHECK_VALUE, ARDIFF_CHECK_NORMALS)
  ARDIFF_CHECK_NORMALS(noise2)
  check_rows(op, t.x0, lead.dtype, lead);
  check_rows(op, t.z_model, ScalarType::BFloat16, lead);
}
#undef ARDIFF_CHECK_OUTPUT
#undef ARDIFF_CHECK_VALUE
#undef ARDIFF_CHECK_NORMALS

#define ARDIFF_ADDRESS(name) &t.name,
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
    fail(op, ": ", lead.name, " must have between 1 and ", limit, " elements per row, got ", d);
  }
  for (const Arg* s : {&a, &b}) {
    if (!s->given()) continue;
    const int most = s == &a ? rules.memories : 1;
    bool fits = has_shape_of(*s, lead);
    std::string wide;
    for (int times = 2; times <= most && !fits; ++times) {
      fits = has_shape_of(*s, lead, times);
      wide += (wide.empty() ? " (or " : " or ") + shape_of(lead, times);
    }
    if (!fits) {
      if (!wide.empty()) wide += " with more memories)";
      fail(op, ": ", s->name, " must have the shape of ", lead.name, " ", shape_of(lead), wide,
           ", got ", shape_of(*s));
    }
    if (s->dtype != lead.dtype) {
      fail(op, ": ", s->name, " must have the dtype of ", lead.name, " (", name_of(lead.dtype),
           "), got ", name_of(s->dtype));
    }
  }
  const Arg& out = t.model_out;
  if (!is_model_dtype(out.dtype)) {
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
      &lead,     &a,
      &b,        &t.model_out,
      &t.coef,   &t.row,
      &t.draw,   &t.key,
      &t.stream, ARDIFF_STEP_OPTIONS(ARDIFF_ADDRESS, ARDIFF_ADDRESS, ARDIFF_ADDRESS) & t.noise2,
      &t.x0,     &t.z_model};
  if (rules.in_place) {
    check_placement(op, all, {&lead, &a, &b, &t.x0, &t.z_model}, true);
  } else {
    check_placement(op, all, {}, true);
  }
}
#undef ARDIFF_ADDRESS

/// How torch gives the tensors of a step; the checks have seen to their names and types.
struct TensorReader {
  In output(const char*, const Arg& a) const { return input(a); }
  In normals(const char*, const Arg& a) const { return input(a); }
  Out copy(const char*, const Arg& a) const { return ardiff::output(a); }
  template <class T>
  void each(const char*, const Arg& a, PerSample<T>& values) const {
    values = per_sample<T>(a);
  }
};

/// What the step ops have in common, of checked tensors; the state is left to the op.
template <class Args>
Args step_args(const Arg& lead, const StepTensors& t) {
  Args a{};
  a.B = lead.sizes[0];
  a.d = lead.width();
  a.T = t.coef.sizes[0];
  a.coef = pointer<float>(t.coef);
  a.address.key = pointer<int64_t>(t.key);
  a.address.stream = pointer<int64_t>(t.stream);
  fill_step(a, TensorReader(), t);
  return a;
}

}  // namespace ardiff
