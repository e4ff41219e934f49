// head_step as torch calls it: arguments, checks and the result, for every backend.
#pragma once

#include <torch/csrc/stable/library.h>

#include "head.h"

namespace ardiff {

/// kRun evaluates a head with checked arguments, of one patch at least, into `out`, float32
/// [ways, N, out].
template <void (*kRun)(const HeadTensors&, const HeadOptions&, int64_t set, float* out)>
struct HeadStep {
  static Tensor functional(Tensor x, Tensor modulation, int64_t set, std::vector<Tensor> weights,
                           std::vector<Tensor> scales, std::string norm, std::string mlp,
                           int64_t depth, double eps, int64_t ways, bool) {
    const HeadTensors t = head_tensors(x, modulation, weights, scales);
    const HeadOptions options{norm, mlp, depth, eps, ways};
    check_head_step("head_step", t, set, options);
    const int64_t sizes[] = {ways, t.x.sizes[0], t.outs()};
    Tensor out = fresh_tensor(t.x, ScalarType::Float, 3, sizes);
    if (t.x.sizes[0] > 0) kRun(t, options, set, static_cast<float*>(out.mutable_data_ptr()));
    return out;
  }
};

}  // namespace ardiff
