// A row of the solver on four elements of a patch, from the outputs of all ways: the arithmetic of
// diffusion_step and uld_step (csrc/math/step.h), to the bit.
#pragma once

#include "../../math/step.h"
#include "args.cuh"

namespace ardiff {

/// A float that another block may have written in an earlier phase.
ARDIFF_DEVICE float read_fresh(const float* p) {
#ifdef __CUDA_ARCH__
  return __ldcg(p);
#else
  return *p;
#endif
}

ARDIFF_DEVICE Four<float> read_fresh_four(const float* p) {
#ifdef __CUDA_ARCH__
  const float4 x = __ldcg(reinterpret_cast<const float4*>(p));
  return {x.x, x.y, x.z, x.w};
#else
  return {p[0], p[1], p[2], p[3]};
#endif
}

/// Elements [i, i + n) of a row; zeros behind them.
ARDIFF_DEVICE Four<float> read_some(const float* p, int n) {
  Four<float> x{};
#pragma unroll
  for (int k = 0; k < kUnit; ++k) {
    if (k < n) x.v[k] = read_fresh(p + k);
  }
  return x;
}

ARDIFF_DEVICE void write_some(float* p, int n, const Four<float>& x) {
#pragma unroll
  for (int k = 0; k < kUnit; ++k) {
    if (k < n) p[k] = x.v[k];
  }
}

/// Whether step `step` evaluates the head: its set is one that there is.
ARDIFF_HD bool step_has_set(const HeadSolver& s, int64_t step) {
  return s.set[step] >= 0 && s.set[step] < s.sets;
}

/// Where state `which` of patch n lies before a step: as given, then as the steps keep it.
ARDIFF_DEVICE const float* state_before(const HeadArgs& a, int which, int64_t step, int64_t n) {
  const HeadSolver& s = a.solver;
  if (step == 0) return static_cast<const float*>(s.given[which].data) + n * s.given[which].stride;
  return s.kept[step % 2] + (static_cast<int64_t>(which) * a.N + n) * a.inputs;
}

/// Where the step puts it: at the end the result.
ARDIFF_DEVICE float* state_after(const HeadArgs& a, int which, int64_t step, int64_t n) {
  const HeadSolver& s = a.solver;
  if (step + 1 == s.steps) {
    return static_cast<float*>(s.result[which].data) + n * s.result[which].stride;
  }
  return s.kept[(step + 1) % 2] + (static_cast<int64_t>(which) * a.N + n) * a.inputs;
}

ARDIFF_DEVICE Four<float> guided_output(const HeadArgs& a, int64_t n, int i, int count) {
  const HeadSolver& s = a.solver;
  const float* p = a.out + n * a.out_stride + i;
  const int64_t way = static_cast<int64_t>(a.N) * a.out_stride;
  Four<float> out = read_some(p, count);
  if (a.ways == 1) return out;
  const float w = at(s.guidance, n);
  const Four<float> uncond = read_some(p + way, count);
  Four<float> uncond2{};
  if (a.ways == 3) uncond2 = read_some(p + 2 * way, count);
#pragma unroll
  for (int k = 0; k < kUnit; ++k) {
    out.v[k] = a.ways == 3 ? guide(out.v[k], uncond.v[k], uncond2.v[k], w, at(s.guidance2, n))
                           : guide(out.v[k], uncond.v[k], w);
  }
  return out;
}

/// Elements [4 quad, 4 quad + 4) of patch n after `step`, written by the one caller with `write`.
ARDIFF_DEVICE Four<float> solve(const HeadArgs& a, int64_t step, int64_t n, int quad, bool write) {
  const HeadSolver& s = a.solver;
  const int i = kUnit * quad;
  const int count = a.inputs - i < kUnit ? a.inputs - i : static_cast<int>(kUnit);
  Four<float> x = read_some(state_before(a, 0, step, n) + i, count);
  Four<float> memory = read_some(state_before(a, 1, step, n) + i, count);
  Four<float> v{};
  const bool kinetic = s.result[2].data != nullptr;
  if (kinetic) v = read_some(state_before(a, 2, step, n) + i, count);
  if (step_has_set(s, step)) {
    const float* c = s.coef + step * kColumns;
    const float scale = s.noise_scale.data ? at(s.noise_scale, n) : 1.0f;
    const uint32_t counter = counter_word(
        static_cast<int32_t>(static_cast<uint32_t>(at(s.draw, n)) + static_cast<uint32_t>(step)),
        kStepNoise);
    const SampleAddress address = sample_address(s.key, s.stream[n], counter);
    const Four<float> out = guided_output(a, n, i, count);
    const bool uld = kinetic && s.op[step] != 0;
    // A quad holds the normals of four elements, or two of each of two (csrc/cuda/uld_step).
    const bool noisy =
        uld ? c[UldColumn::z_1] != 0.0f || c[UldColumn::z_2] != 0.0f || c[UldColumn::v_1] != 0.0f
            : c[DiffusionColumn::x_n] != 0.0f;
    Four<float> p{}, q{};
    if (noisy && scale != 0.0f) {
      p = quad_normals(address, static_cast<uint32_t>(uld ? 2 * quad : quad));
      if (uld) q = quad_normals(address, static_cast<uint32_t>(2 * quad + 1));
    }
    if (uld) {
      const UldRow<float> row = uld_row<float>(c, scale);
      const bool start = uld_starts_stage(c);
      const Four<float> n1{p.v[0], p.v[2], q.v[0], q.v[2]}, n2{p.v[1], p.v[3], q.v[1], q.v[3]};
#pragma unroll
      for (int k = 0; k < kUnit; ++k) {
        const UldState<float> next =
            uld_update(row, start, x.v[k], v.v[k], out.v[k], memory.v[k], n1.v[k], n2.v[k]);
        x.v[k] = next.z;
        v.v[k] = next.v;
        memory.v[k] = next.anchor;
      }
    } else {
      const DiffusionRow<float> row = diffusion_row<float>(c);
      const bool keep = diffusion_keeps_memory(c);
#pragma unroll
      for (int k = 0; k < kUnit; ++k) {
        const float x0 = data_prediction(row, x.v[k], out.v[k]);
        const DiffusionState<float> next = diffusion_update(row, keep, x.v[k], x0, memory.v[k],
                                                            memory.v[k], row.x_n * scale, p.v[k]);
        x.v[k] = next.x;
        memory.v[k] = next.memory;
      }
    }
  }
  if (write) {
    write_some(state_after(a, 0, step, n) + i, count, x);
    write_some(state_after(a, 1, step, n) + i, count, memory);
    if (kinetic) write_some(state_after(a, 2, step, n) + i, count, v);
  }
  return x;
}

}  // namespace ardiff
