// head_step on the CPU: registration and launch; the kernel is kernel.cpp.
#include "../../torch/head_step.h"

#include "../../torch/choice.h"
#include "../isa.h"
#include "../products/products.h"
#include "launch.h"

ARDIFF_DECLARE_KERNEL(head_step_shares, HeadStepArgs)

namespace ardiff {
namespace {

const float* floats_of(const Arg& a) { return static_cast<const float*>(a.address()); }

std::vector<HeadMatrix> matrices_of(const HeadTensors& t) {
  std::vector<HeadMatrix> found;
  for (size_t i = 0; i < t.weights.size(); i += 2) {
    const Arg& m = t.weights[i];
    const WeightType type = m.dtype == ScalarType::Float      ? WeightType::float32
                            : m.dtype == ScalarType::BFloat16 ? WeightType::bfloat16
                                                              : WeightType::int8;
    const int64_t columns = matrix_columns(m);
    found.push_back({m.tensor->const_data_ptr(), floats_of(t.weights[i + 1]),
                     t.scales.empty() ? nullptr : floats_of(t.scales[i / 2]), matrix_rows(m),
                     columns, type, m.dim == 4 ? &products_of(type, columns) : nullptr});
  }
  return found;
}

void run(const HeadTensors& t, const HeadOptions& options, int64_t set, float* out) {
  const std::vector<HeadMatrix> matrices = matrices_of(t);
  HeadStepArgs a{};
  a.N = t.x.sizes[0];
  a.ways = options.ways;
  a.R = a.ways * a.N;
  a.width = matrices[0].rows;
  a.depth = options.depth;
  a.rms_norm = options.rms_norm();
  a.gated = options.gated();
  a.eps = static_cast<float>(options.eps);
  a.matrix = matrices.data();
  a.modulation_bfloat16 = t.modulation.dtype == ScalarType::BFloat16;
  a.modulation_rows = t.modulation.sizes[1];
  a.modulation = static_cast<const char*>(t.modulation.tensor->const_data_ptr()) +
                 set * a.modulation_rows * t.modulation.sizes[2] * (a.modulation_bfloat16 ? 2 : 4);
  a.out = out;
  a.out_stride = t.outs();
  // Kept from call to call, where it is small: fresh pages cost more than a step of one row.
  constexpr size_t kMostKept = size_t{4} << 20;
  static thread_local std::vector<float> memory;
  fill_activations(a, static_cast<const float*>(t.x.address()), t.x.row_stride(), memory);
  run_head(head_step_shares(), a, torch::stable::get_num_threads());
  if (memory.capacity() > kMostKept) std::vector<float>().swap(memory);
}

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ardiff, CPU, m) {
  ARDIFF_IMPL(m, "head_step", &ardiff::HeadStep<ardiff::run>::functional);
}
