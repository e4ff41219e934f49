// From checked tensors to a kernel launch: one launch, no allocation, no synchronisation.
//
// A kernel is a Body with a static run(args, block, thread). Compiled by a plain C++ compiler
// instead of nvcc the same source walks all blocks and threads on the host, which is how the tests
// run it where there is no GPU.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "../torch/checks.h"
#include "unit.cuh"

#ifndef ARDIFF_CUDA_NAMESPACE
#define ARDIFF_CUDA_NAMESPACE ardiff
#define ARDIFF_CUDA_KEY CUDA
#endif

#ifdef __CUDACC__
#include <cuda_runtime.h>
// torch without CUDA lacks this symbol. Weak, it does not keep the library from loading there,
// where no tensor can bring a call here.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);
#endif

namespace ardiff {

/// Turns arguments into kernel operands, and sees whether all allow whole units at a time.
class Operands {
 public:
  explicit Operands(int64_t d) : vector_(d % kUnit == 0) {}

  In in(const Arg& a) {
    if (!a.given()) return {};
    const void* data = a.tensor->const_data_ptr();
    judge(a, data);
    return {data, a.row_stride()};
  }
  Out out(const Arg& a) {
    if (!a.given()) return {};
    void* data = a.tensor->mutable_data_ptr();
    judge(a, data);
    return {data, a.row_stride()};
  }
  bool vector() const { return vector_; }

 private:
  void judge(const Arg& a, const void* data) {
    const uintptr_t bytes = a.dtype == ScalarType::Float ? 4 : 2;
    vector_ = vector_ && reinterpret_cast<uintptr_t>(data) % (kUnit * bytes) == 0 &&
              a.row_stride() % kUnit == 0;
  }
  bool vector_;
};

template <class T>
PerSample<T> per_sample(const Arg& a) {
  return {pointer<T>(a), a.given() && a.sizes[0] != 1 ? 1 : 0};
}

/// A fresh contiguous [rows, columns] tensor on the device of `like`.
inline Tensor fresh(const Arg& like, ScalarType dtype, int64_t rows, int64_t columns) {
  const int64_t sizes[] = {rows, columns};
  return fresh_tensor(like, dtype, 2, sizes);
}

/// A fresh contiguous tensor [B, ...] of the shape of `like`.
inline Tensor fresh(const Arg& like, ScalarType dtype) {
  return fresh_tensor(like, dtype, like.dim, like.sizes);
}

#ifdef __CUDACC__
/// Calls start(stream) with the current stream of a device, which starts a kernel.
template <class Start>
void start_kernel(int32_t device, Start start) {
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  start(static_cast<cudaStream_t>(stream));
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    fail("ardiff: a CUDA kernel did not start: ", cudaGetErrorString(error));
}

template <class Body, class Args>
__global__ void __launch_bounds__(kThreads) kernel(const __grid_constant__ Args a) {
  Body::run(a, blockIdx.x, static_cast<int>(threadIdx.x));
}

template <class Body, class Args>
void launch(const Args& a, int32_t device) {
  if (a.layout.blocks == 0) return;
  if (a.layout.blocks > 0x7fffffff) fail("ardiff: more than 2^41 elements in one call; split it");
  const unsigned grid = static_cast<unsigned>(a.layout.blocks);
  start_kernel(device,
               [&](cudaStream_t stream) { kernel<Body, Args><<<grid, kThreads, 0, stream>>>(a); });
}
#else
template <class Body, class Args>
void launch(const Args& a, int32_t) {
  for (int64_t block = 0; block < a.layout.blocks; ++block) {
    for (int thread = 0; thread < kThreads; ++thread) Body::run(a, block, thread);
  }
}
#endif

}  // namespace ardiff
