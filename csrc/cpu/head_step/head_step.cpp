// head_step on the CPU: checks, registration and launch; the kernel is kernel.cpp.
#include <torch/csrc/stable/library.h>

#include "../../torch/head_checks.h"
#include "../isa.h"
#include "launch.h"

ARDIFF_DECLARE_KERNEL(head_step_shares, HeadStepArgs)

namespace ardiff {
namespace {

const float* floats_of(const Arg& a) {
  return a.sizes[0] ? static_cast<const float*>(a.tensor->const_data_ptr()) : nullptr;
}

std::vector<HeadMatrix> matrices_of(const HeadTensors& t) {
  std::vector<HeadMatrix> found;
  for (size_t i = 0; i < t.weights.size(); i += 2) {
    const Arg& m = t.weights[i];
    const WeightType type = m.dtype == ScalarType::Float      ? WeightType::float32
                            : m.dtype == ScalarType::BFloat16 ? WeightType::bfloat16
                                                              : WeightType::int8;
    found.push_back({m.tensor->const_data_ptr(), floats_of(t.weights[i + 1]),
                     t.scales.empty() ? nullptr : floats_of(t.scales[i / 2]), m.sizes[0],
                     m.sizes[1], type});
  }
  return found;
}

Tensor head_step(Tensor x, Tensor modulation, int64_t set, std::vector<Tensor> weights,
                 std::vector<Tensor> scales, int64_t family, int64_t depth, double eps,
                 int64_t ways, bool) {
  const HeadTensors t = head_tensors(x, modulation, weights, scales);
  check_head_step("head_step", t, set, {family, depth, eps, ways});
  const std::vector<HeadMatrix> matrices = matrices_of(t);

  const int64_t N = t.x.sizes[0], out = matrices.back().rows;
  const int64_t sizes[] = {ways, N, out}, strides[] = {N * out, out, 1};
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      3, sizes, strides, aoti_torch_dtype_float32(), t.x.device_type, t.x.device_index, &handle));
  Tensor result(handle);
  if (N == 0) return result;

  HeadStepArgs a{};
  a.N = N;
  a.ways = ways;
  a.R = ways * N;
  a.width = matrices[0].rows;
  a.depth = depth;
  a.rms_norm = a.gated = family == kVibeVoice;
  a.eps = static_cast<float>(eps);
  a.matrix = matrices.data();
  a.modulation_bfloat16 = t.modulation.dtype == ScalarType::BFloat16;
  a.modulation_rows = t.modulation.sizes[1];
  a.modulation = static_cast<const char*>(t.modulation.tensor->const_data_ptr()) +
                 set * a.modulation_rows * t.modulation.sizes[2] * (a.modulation_bfloat16 ? 2 : 4);
  a.out = static_cast<float*>(result.mutable_data_ptr());
  a.out_stride = out;
  // Kept from call to call, where it is small: fresh pages cost more than a step of one row.
  constexpr size_t kMostKept = size_t{4} << 20;
  static thread_local std::vector<float> memory;
  fill_activations(a, static_cast<const float*>(x.const_data_ptr()), t.x.row_stride(), memory);
  run_head(head_step_shares(), a, torch::stable::get_num_threads());
  if (memory.capacity() > kMostKept) std::vector<float>().swap(memory);
  return result;
}

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ardiff, CPU, m) { m.impl("head_step", TORCH_BOX(&ardiff::head_step)); }
