// The arguments of the step ops' kernels, for every backend: plain data. How a backend divides the
// rows is its own affair (csrc/cpu/args.h, csrc/cuda/layout.cuh).
#pragma once

#include <initializer_list>

#include "args.h"
#include "noise_address.h"
#include "step_options.h"

namespace ardiff {

struct NormalArgs {
  static constexpr int64_t kElementsPerQuad = 4;
  int64_t B, d;
  NoiseAddress address;
  Out out;
};

struct IncrementArgs : NormalArgs {
  PerSample<float> start, end;
};

#define ARDIFF_ROWS(name) In name;
#define ARDIFF_VALUE(name) PerSample<float> name;
/// What uld_step and diffusion_step have in common; of the table, B rows and T.
struct StepArgs {
  int64_t B, d, T;
  const float* coef;
  PerSample<int32_t> row;
  NoiseAddress address;
  In model_out;
  ARDIFF_STEP_OPTIONS(ARDIFF_ROWS, ARDIFF_VALUE, ARDIFF_ROWS)
  In noise2;
  Out z_model;
};
#undef ARDIFF_ROWS
#undef ARDIFF_VALUE

struct UldArgs : StepArgs {
  static constexpr int64_t kElementsPerQuad = 2;
  In z, v, anchor;
  Out z_new, v_new, anchor_new;
};

struct DiffusionArgs : StepArgs {
  static constexpr int64_t kElementsPerQuad = 4;
  bool learned_range;  // model_out is [B, 2d]
  int memories;        // 1 to 3: memory is [B, memories d]
  float x0_limit;      // infinite: no clamp
  In x, memory;
  Out x_new, memory_new, x0;
};

/// Gradients of the model outputs; absent where not wanted. `ways` of guidance: 0, 1 or 2
/// unconditional outputs.
struct OutputGradients {
  int ways;
  Type type;
  Out cond, uncond, uncond2;
};

/// Gradients of uld_step's results (absent: zero) and of its inputs (absent: not wanted). Of the
/// step's own tensors only the row and the per-sample options are there.
struct UldBackwardArgs : StepArgs {
  static constexpr int64_t kElementsPerQuad = 1;  // no noise: a sample takes no whole quads
  In grad_z, grad_v, grad_anchor;
  OutputGradients outputs;
  Out z, v, anchor, n1, n2;
};

/// The same for diffusion_step, whose own tensors are there.
struct DiffusionBackwardArgs : StepArgs {
  static constexpr int64_t kElementsPerQuad = 4;
  bool learned_range, clamped;
  int memories;  // 1 to 3: those of the memory are [B, memories d]
  float x0_clamp;
  In x, grad_x, grad_memory, grad_x0;
  OutputGradients outputs;
  Out new_x, memory, n;
};

struct AcceptArgs {
  int64_t B, d, T;
  const float* coef;
  PerSample<int32_t> row;
  NoiseAddress address;
  In x, y, out_x, out_y, anchor, v_x, v_y, out_mid;
  const float *energy_x, *energy_y;
  PerSample<float> ball_radius;
  Out x_new, out_new, v_new;
  float* energy_new;
  bool* accepted;
  float* log_alpha;
};

}  // namespace ardiff

namespace ARDIFF_NS {

// visit_rows(args, visit) calls visit with every tensor of rows, absent ones too.

template <class Visit>
void visit_rows(const NormalArgs& a, Visit visit) {
  visit(a.out);
}

#define ARDIFF_VISIT(name) visit(a.name);
template <class Visit>
void visit_rows(const StepArgs& a, Visit visit) {
  visit(a.model_out);
  ARDIFF_STEP_OPTIONS(ARDIFF_VISIT, ARDIFF_NO_OPTION, ARDIFF_VISIT)
  visit(a.noise2);
  visit(a.z_model);
}
#undef ARDIFF_VISIT

template <class Visit>
void visit_rows(const UldArgs& a, Visit visit) {
  visit_rows(static_cast<const StepArgs&>(a), visit);
  for (const In* in : {&a.z, &a.v, &a.anchor}) visit(*in);
  for (const Out* out : {&a.z_new, &a.v_new, &a.anchor_new}) visit(*out);
}

template <class Visit>
void visit_rows(const DiffusionArgs& a, Visit visit) {
  visit_rows(static_cast<const StepArgs&>(a), visit);
  for (const In* in : {&a.x, &a.memory}) visit(*in);
  for (const Out* out : {&a.x_new, &a.memory_new, &a.x0}) visit(*out);
}

template <class Visit>
void visit_rows(const OutputGradients& a, Visit visit) {
  for (const Out* out : {&a.cond, &a.uncond, &a.uncond2}) visit(*out);
}

template <class Visit>
void visit_rows(const UldBackwardArgs& a, Visit visit) {
  visit_rows(static_cast<const StepArgs&>(a), visit);
  visit_rows(a.outputs, visit);
  for (const In* in : {&a.grad_z, &a.grad_v, &a.grad_anchor}) visit(*in);
  for (const Out* out : {&a.z, &a.v, &a.anchor, &a.n1, &a.n2}) visit(*out);
}

template <class Visit>
void visit_rows(const DiffusionBackwardArgs& a, Visit visit) {
  visit_rows(static_cast<const StepArgs&>(a), visit);
  visit_rows(a.outputs, visit);
  for (const In* in : {&a.x, &a.grad_x, &a.grad_memory, &a.grad_x0}) visit(*in);
  for (const Out* out : {&a.new_x, &a.memory, &a.n}) visit(*out);
}

template <class Visit>
void visit_rows(const AcceptArgs& a, Visit visit) {
  for (const In* in : {&a.x, &a.y, &a.out_x, &a.out_y, &a.anchor, &a.v_x, &a.v_y, &a.out_mid}) {
    visit(*in);
  }
  for (const Out* out : {&a.x_new, &a.out_new, &a.v_new}) visit(*out);
}

#define ARDIFF_READ_OUTPUT(name) a.name = read.output(#name, t.name);
#define ARDIFF_READ_VALUE(name) read.each(#name, t.name, a.name);
#define ARDIFF_READ_NORMALS(name) a.name = read.normals(#name, t.name);
/// Fills a step's arguments from a call's tensors `t`; `read` knows how they are given.
template <class Read, class Tensors>
void fill_step(StepArgs& a, const Read& read, const Tensors& t) {
  read.each("row", t.row, a.row);
  read.each("draw", t.draw, a.address.draw);
  ARDIFF_READ_OUTPUT(model_out)
  ARDIFF_STEP_OPTIONS(ARDIFF_READ_OUTPUT, ARDIFF_READ_VALUE, ARDIFF_READ_NORMALS)
  ARDIFF_READ_NORMALS(noise2)
  a.z_model = read.copy("z_model", t.z_model);
}
#undef ARDIFF_READ_OUTPUT
#undef ARDIFF_READ_VALUE
#undef ARDIFF_READ_NORMALS

}  // namespace ARDIFF_NS
