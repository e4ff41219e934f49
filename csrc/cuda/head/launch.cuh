// From checked tensors to the one launch of a head's kernel: as many blocks as can run at once,
// which wait for one another between phases (csrc/cuda/head/phase.cuh). One launch, one allocation
// of scratch memory, no synchronisation with the host, so that a CUDA graph can hold it.
#pragma once

#include <algorithm>

#include "../../torch/head.h"
#include "../launch_phases.cuh"
#include "phase.cuh"

namespace ardiff {

inline HeadLayer head_layer(const HeadTensors& t, size_t i) {
  const auto floats = [](const Arg& a) { return static_cast<const float*>(a.address()); };
  const Arg& m = t.weights[2 * i];
  HeadLayer l{};
  l.data = m.tensor->const_data_ptr();
  l.bias = floats(t.weights[2 * i + 1]);
  l.scale = t.scales.empty() ? nullptr : floats(t.scales[i]);
  l.rows = static_cast<int>(m.sizes[0]);
  l.columns = static_cast<int>(m.sizes[1]);
  l.slice = m.dtype == ScalarType::Float      ? kSlice<float>
            : m.dtype == ScalarType::BFloat16 ? kSlice<BFloat16>
                                              : kSlice<Int8>;
  l.vector =
      l.columns % (l.slice / kLanes) == 0 && reinterpret_cast<uintptr_t>(l.data) % kLaneBytes == 0;
  return l;
}

/// Fills what a call has, without scratch memory, set and output.
inline void fill_head(HeadArgs& a, const char* op, const HeadTensors& t, const HeadOptions& o) {
  if (2 * o.depth + 2 > kMostLayers) {
    fail(op, ": the CUDA kernel takes a depth of at most ", kMostLayers / 2 - 1, ", got ", o.depth,
         "; use ardiff_kernels.backend(\"triton\")");
  }
  constexpr int64_t kMost = int64_t{1} << 30;
  for (size_t i = 0; i < t.weights.size(); i += 2) {
    if (t.weights[i].sizes[0] > kMost || t.weights[i].sizes[1] > kMost) {
      fail(op, ": the CUDA kernel takes matrices of at most ", kMost, " rows and columns, ",
           t.weights[i].name, " is ", shape_of(t.weights[i]));
    }
    a.layer[i / 2] = head_layer(t, i / 2);
  }
  if (o.ways * t.x.sizes[0] > kMost) {
    fail(op, ": the CUDA kernel takes at most ", kMost, " rows of all ways; split x");
  }
  a.N = static_cast<int>(t.x.sizes[0]);
  a.ways = static_cast<int>(o.ways);
  a.R = a.N * a.ways;
  a.width = a.layer[0].rows;
  a.inputs = a.layer[0].columns;
  a.depth = static_cast<int>(o.depth);
  a.outs = a.layer[2 * o.depth + 1].rows;
  a.rms_norm = o.rms_norm();
  a.gated = o.gated();
  a.eps = static_cast<float>(o.eps);
  const Arg& m = t.modulation;
  a.modulation = m.tensor->const_data_ptr();
  a.modulation_bfloat16 = m.dtype == ScalarType::BFloat16;
  a.modulation_rows = static_cast<int>(m.sizes[1]);
  a.modulation_vector =
      a.width % 4 == 0 && reinterpret_cast<uintptr_t>(a.modulation) % kLaneBytes == 0;
  a.x = {t.x.address(), t.x.row_stride()};
}

/// Scratch memory: the activations of all rows, with `more` floats behind them.
inline Tensor head_scratch(HeadArgs& a, const Arg& like, int64_t more) {
  int inner = 1;
  for (int i = 2; i < a.layers() - 1; i += 2) inner = std::max(inner, a.layer[i].columns);
  a.h_stride = quotient_up(a.width, 4) * 4;
  a.u_stride = quotient_up(inner, 4) * 4;
  const int64_t rows = a.R, floats = rows * (a.h_stride + a.u_stride) + more;
  Tensor scratch = fresh_tensor(like, ScalarType::Float, 1, &floats);
  a.h = static_cast<float*>(scratch.mutable_data_ptr());
  a.u = a.h + rows * a.h_stride;
#ifndef __CUDACC__
  std::fill(a.h, a.h + floats, NAN);
#endif
  return scratch;
}

/// Launches a head's kernel, of which a block keeps its weights in shared memory with `keep`.
template <class Body, class Args>
void launch_head_as(Args& a, const char* op, int32_t device, bool keep) {
  const Grid most = grid_of<Body, Args>(device);
  const int blocks = blocks_of(a, most.blocks);
  const int bytes = static_cast<int>(divide_memory(a, most.bytes, blocks, keep));
  if (bytes == 0) {
    fail(op, ": a row of ", a.tile_stride, " activations does not fit into the ", most.bytes,
         " bytes of shared memory that a block has; use ardiff_kernels.backend(\"triton\")");
  }
  launch_grid<Body>(a, {blocks, bytes}, device);
}

template <template <class> class Body, class Args>
void launch_head(Args& a, const char* op, ScalarType weights, int32_t device, bool keep) {
#ifdef __CUDACC__
  const torch::stable::accelerator::DeviceGuard guard(device);
#endif
  if (weights == ScalarType::Float) return launch_head_as<Body<float>>(a, op, device, keep);
  if (weights == ScalarType::BFloat16) return launch_head_as<Body<BFloat16>>(a, op, device, keep);
  launch_head_as<Body<Int8>>(a, op, device, keep);
}

}  // namespace ardiff
