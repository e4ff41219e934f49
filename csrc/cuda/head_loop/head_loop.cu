// head_loop on CUDA: all steps of a token on a diffusion head in one cooperative launch, head and
// solver. The phases are those of head_step; a row of the solver is part of the next step's first
// phase, where every block makes the new state itself and one writes it down. A block copies its
// share of the weights to shared memory once, matrix after matrix as far as that reaches (MAR-B in
// bfloat16 fits into an H200 whole: 192 KiB of the 227 that a block may have); it reads the others
// anew at each step, from the second-level cache if they fit there.
#include "../../torch/head_loop.h"
#include "../head/launch.cuh"

namespace ardiff {
namespace {

template <class W>
using LoopBody = HeadBody<W, true>;

void run(const char* op, const HeadTensors& t, const HeadLoopTensors& l, const HeadOptions& o,
         const Arg (&from)[kStates], const Arg (&to)[kStates]) {
  HeadArgs a{};
  fill_head(a, op, t, o);
  constexpr int64_t kMost = int64_t{1} << 30;
  if (l.coef.sizes[0] > kMost || t.modulation.sizes[0] > kMost) {
    fail(op, ": the CUDA kernel takes at most ", kMost, " steps and sets");
  }
  if (a.N == 0) return;
  HeadSolver& s = a.solver;
  s.steps = static_cast<int>(l.coef.sizes[0]);
  s.sets = static_cast<int>(t.modulation.sizes[0]);
  s.set = pointer<int32_t>(l.set);
  s.op = pointer<int32_t>(l.op);
  s.coef = pointer<float>(l.coef);
  s.draw = per_sample<int32_t>(l.draw);
  s.key = pointer<int64_t>(l.key);
  s.stream = pointer<int64_t>(l.stream);
  s.guidance = per_sample<float>(l.guidance);
  s.guidance2 = per_sample<float>(l.guidance2);
  s.noise_scale = per_sample<float>(l.noise_scale);
  for (int i = 0; i < kStates; ++i) {
    if (!from[i].given()) continue;
    s.given[i] = {from[i].tensor->const_data_ptr(), from[i].row_stride()};
    s.result[i] = {to[i].tensor->mutable_data_ptr(), to[i].row_stride()};
  }
  const int64_t state = static_cast<int64_t>(kStates) * a.N * a.inputs;
  const int64_t outs = static_cast<int64_t>(a.R) * a.outs;
  const Tensor scratch = head_scratch(a, t.x, outs + 2 * state);
  a.out = a.u + static_cast<int64_t>(a.R) * a.u_stride;
  a.out_stride = a.outs;
  s.kept[0] = a.out + outs;
  s.kept[1] = s.kept[0] + state;
  const int64_t size = a.modulation_columns() * a.modulation_rows;
  a.modulation_vector = a.modulation_vector && (s.sets == 1 || size % 8 == 0);
  launch_head<LoopBody>(a, op, t.weights[2].dtype, t.x.device_index, true);
}

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ARDIFF_CUDA_NAMESPACE, ARDIFF_CUDA_KEY, m) {
  ARDIFF_IMPL(m, "head_loop", &ardiff::HeadLoop<ardiff::run>::functional);
  ARDIFF_IMPL(m, "head_loop_", &ardiff::HeadLoop<ardiff::run>::in_place);
}
