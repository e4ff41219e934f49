// From checked tensors to the one launch of a head's kernel: as many blocks as can run at once,
// which wait for one another between phases (csrc/cuda/head/phase.cuh). One launch, one allocation
// of scratch memory, no synchronisation with the host, so that a CUDA graph can hold it.
#pragma once

#include <algorithm>
#include <atomic>

#include "../../torch/head_checks.h"
#include "../launch.cuh"
#include "phase.cuh"

#ifdef __CUDACC__
#include <cooperative_groups.h>
#endif

namespace ardiff {

#ifdef __CUDACC__

template <class W, bool kLoop>
__global__ void __launch_bounds__(kTeamThreads, 1) head_kernel(const __grid_constant__ HeadArgs a) {
  extern __shared__ float4 shared[];
  const Team team{static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x)};
  float* memory = reinterpret_cast<float*>(shared);
  if constexpr (kLoop) keep_weights(a, memory_of(a, memory).resident, team);
  const int64_t phases = phases_of<kLoop>(a);
#pragma unroll 1
  for (int64_t phase = 0; phase < phases; ++phase) {
    if (phase) cooperative_groups::this_grid().sync();
    run_phase<W, kLoop>(a, team, memory, phase);
  }
}

inline void require(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  fail("ardiff: a CUDA kernel did not start: ", cudaGetErrorString(error));
}

/// Multiprocessors of a device and the shared memory that a block may have.
struct HeadDevice {
  int blocks, bytes;
};

/// Read once for each device; a kernel is allowed its shared memory then.
template <class W, bool kLoop>
HeadDevice head_device(int32_t device) {
  constexpr int kKnown = 64;
  static std::atomic<int64_t> known[kKnown];  // both numbers in one word
  const bool kept = device >= 0 && device < kKnown;
  const int64_t found = kept ? known[device].load() : 0;
  if (found) return {static_cast<int>(found >> 32), static_cast<int>(found & 0xffffffff)};
  int blocks = 0, bytes = 0, cooperative = 0, fitting = 0;
  require(cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device));
  if (!cooperative) {
    fail("ardiff: device cuda:", device, " has no cooperative launch, which the CUDA kernels of a ",
         "head need; use ardiff_kernels.backend(\"triton\")");
  }
  require(cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, device));
  require(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  const auto kernel = head_kernel<W, kLoop>;
  cudaFuncAttributes attributes;
  require(cudaFuncGetAttributes(&attributes, kernel));
  bytes -= static_cast<int>(attributes.sharedSizeBytes);
  require(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  require(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&fitting, kernel, kTeamThreads, bytes));
  if (fitting < 1) fail("ardiff: a block of the head's kernel does not fit on cuda:", device);
  if (kept) known[device].store(static_cast<int64_t>(blocks) << 32 | bytes);
  return {blocks, bytes};
}

template <class W, bool kLoop>
void launch_kernel(HeadArgs& a, int blocks, int64_t bytes, int32_t device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  void* parameters[] = {&a};
  require(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(head_kernel<W, kLoop>),
                                      dim3(blocks), dim3(kTeamThreads), parameters, bytes,
                                      static_cast<cudaStream_t>(stream)));
}

#else

/// How the host walks the kernel: which device it plays, in which order blocks and threads go, and
/// whether blocks wait for one another between phases.
struct HeadWalk {
  int blocks = 3, bytes = 24 << 10;
  bool backwards = false, waits = true;
};
inline HeadWalk walk;

struct HeadDevice {
  int blocks, bytes;
};

template <class W, bool kLoop>
HeadDevice head_device(int32_t) {
  return {walk.blocks, walk.bytes};
}

template <class W, bool kLoop>
void launch_kernel(const HeadArgs& a, int blocks, int64_t bytes, int32_t) {
  constexpr size_t kLine = 4;  // floats of 16 bytes
  const size_t size = bytes / sizeof(float);
  std::vector<std::vector<float> > memory(blocks, std::vector<float>(size + kLine, NAN));
  const auto shared = [&](int block) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory[block].data());
    return memory[block].data() + (16 - address % 16) % 16 / sizeof(float);
  };
  const auto team = [&](int i) {
    const int block = walk.backwards ? blocks - 1 - i : i;
    return Team{block, blocks, walk.backwards};
  };
  const int64_t phases = phases_of<kLoop>(a);
  for (int i = 0; kLoop && i < blocks; ++i) {
    keep_weights(a, memory_of(a, shared(team(i).block)).resident, team(i));
  }
  const auto run = [&](int i, int64_t phase) {
    run_phase<W, kLoop>(a, team(i), shared(team(i).block), phase);
  };
  for (int64_t outer = 0; outer < (walk.waits ? phases : blocks); ++outer) {
    for (int64_t inner = 0; inner < (walk.waits ? blocks : phases); ++inner) {
      walk.waits ? run(static_cast<int>(inner), outer) : run(static_cast<int>(outer), inner);
    }
  }
}

#endif

inline HeadLayer head_layer(const HeadTensors& t, size_t i) {
  const auto floats = [](const Arg& a) {
    return a.sizes[0] ? static_cast<const float*>(a.tensor->const_data_ptr()) : nullptr;
  };
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
  a.rms_norm = a.gated = o.family == kVibeVoice;
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

template <class W, bool kLoop>
void launch_head_as(HeadArgs& a, const char* op, int32_t device) {
  const HeadDevice d = head_device<W, kLoop>(device);
  const int blocks = blocks_of(a, d.blocks);
  const int64_t bytes = divide_memory(a, d.bytes, blocks, kLoop);
  if (bytes == 0) {
    fail(op, ": a row of ", a.tile_stride, " activations does not fit into the ", d.bytes,
         " bytes of shared memory that a block has; use ardiff_kernels.backend(\"triton\")");
  }
  launch_kernel<W, kLoop>(a, blocks, bytes, device);
}

template <bool kLoop>
void launch_head(HeadArgs& a, const char* op, ScalarType weights, int32_t device) {
#ifdef __CUDACC__
  const torch::stable::accelerator::DeviceGuard guard(device);
#endif
  if (weights == ScalarType::Float) return launch_head_as<float, kLoop>(a, op, device);
  if (weights == ScalarType::BFloat16) return launch_head_as<BFloat16, kLoop>(a, op, device);
  launch_head_as<Int8, kLoop>(a, op, device);
}

}  // namespace ardiff
