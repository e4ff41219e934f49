// From checked tensors to a kernel launch: one launch, no allocation, no synchronisation.
//
// A kernel is a Body with a static run(args, place), which a thread calls for its unit. Compiled by
// a plain C++ compiler instead of nvcc the same source walks all blocks and threads on the host,
// which is how the tests run it where there is no GPU.
#pragma once

#define ARDIFF_BACKEND "cuda"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "../math/step_args.h"
#include "../torch/checks.h"
#include "../torch/choice.h"
#include "../torch/operands.h"
#include "layout.cuh"
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

/// Whether d and all rows allow whole units at a time.
template <class Args>
bool takes_units(const Args& a) {
  bool yes = a.d % kUnit == 0;
  visit_rows(a, [&](const auto& rows) {
    const int64_t bytes = kUnit * size_of(rows.type);
    yes = yes && (!rows.data || (reinterpret_cast<uintptr_t>(rows.data) % bytes == 0 &&
                                 rows.stride % kUnit == 0));
  });
  return yes;
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
__global__ void __launch_bounds__(kThreads)
    kernel(const __grid_constant__ Args a, const __grid_constant__ Layout layout) {
  const Place place = place_of(layout, blockIdx.x, static_cast<int>(threadIdx.x));
  if (place.inside) Body::run(a, place);
}

/// Runs Body on all units of args.B rows of args.d elements.
template <class Body, class Args>
void launch(const Args& a, int32_t device) {
  const Layout layout = layout_of(a.B, a.d);
  if (layout.blocks == 0) return;
  if (layout.blocks > 0x7fffffff) fail("ardiff: more than 2^41 elements in one call; split it");
  const unsigned grid = static_cast<unsigned>(layout.blocks);
  start_kernel(device, [&](cudaStream_t stream) {
    kernel<Body, Args><<<grid, kThreads, 0, stream>>>(a, layout);
  });
}
#else
template <class Body, class Args>
void launch(const Args& a, int32_t) {
  const Layout layout = layout_of(a.B, a.d);
  for (int64_t block = 0; block < layout.blocks; ++block) {
    for (int thread = 0; thread < kThreads; ++thread) {
      const Place place = place_of(layout, block, thread);
      if (place.inside) Body::run(a, place);
    }
  }
}
#endif

}  // namespace ardiff
