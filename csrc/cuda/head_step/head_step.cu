// head_step on CUDA: one evaluation of a diffusion head, all layers in one cooperative launch. A
// block of threads owns a fixed share of the rows of every matrix and reads it once in 128-bit
// loads; activations pass from layer to layer through the second-level cache, and all blocks wait
// for one another between layers, 2 depth + 1 times. Each block makes the norms of all rows itself,
// which costs less than waiting once more. Made for few rows: more than 16 pass in tiles, for each
// of which the weights are read again. Sums are those of head/args.cuh whatever the number of rows.
#include "../../torch/head_step.h"
#include "../head/launch.cuh"

namespace ardiff {
namespace {

template <class W>
using StepBody = HeadBody<W, false>;

void run(const HeadTensors& t, const HeadOptions& options, int64_t set, float* out) {
  HeadArgs a{};
  fill_head(a, "head_step", t, options);
  const int64_t size = a.modulation_columns() * a.modulation_rows;
  a.modulation =
      static_cast<const char*>(a.modulation) + set * size * (a.modulation_bfloat16 ? 2 : 4);
  a.modulation_vector = a.modulation_vector && (set == 0 || size % 8 == 0);
  a.out = out;
  a.out_stride = a.outs;
  const Tensor scratch = head_scratch(a, t.x, 0);
  launch_head<StepBody>(a, "head_step", t.weights[2].dtype, t.x.device_index, false);
}

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ARDIFF_CUDA_NAMESPACE, ARDIFF_CUDA_KEY, m) {
  ARDIFF_IMPL(m, "head_step", &ardiff::HeadStep<ardiff::run>::functional);
}
