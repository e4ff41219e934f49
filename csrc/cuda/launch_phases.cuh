// Launches of the kernels of phases.cuh: one launch each, no synchronisation with the host, so that
// a CUDA graph can hold it.
#pragma once

#include <atomic>

#include "launch.cuh"
#include "phases.cuh"

namespace ardiff {

/// Starts `blocks` blocks that know nothing of one another.
template <class Body, class Args>
void launch_blocks(const Args& a, int64_t blocks, int32_t device) {
  if (blocks == 0) return;
  if (blocks > 0x7fffffff) fail("ardiff: more than 2^31 blocks in one call; split it");
#ifdef __CUDACC__
  start_kernel(device, [&](cudaStream_t stream) {
    phases<Body, Args><<<static_cast<unsigned>(blocks), Body::Team::kSize, 0, stream>>>(a);
  });
#else
  walk_blocks<Body>(a, static_cast<int>(blocks));
#endif
}

/// Blocks that can run at once, one per multiprocessor, and the shared memory that each may have.
struct Grid {
  int blocks, bytes;
};

#ifdef __CUDACC__

inline void require(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  fail("ardiff: a CUDA kernel did not start: ", cudaGetErrorString(error));
}

/// Read once for each device.
inline int multiprocessors_of(int32_t device) {
  constexpr int kKnown = 64;
  static std::atomic<int> known[kKnown];
  const bool kept = device >= 0 && device < kKnown;
  int found = kept ? known[device].load() : 0;
  if (found) return found;
  require(cudaDeviceGetAttribute(&found, cudaDevAttrMultiProcessorCount, device));
  if (kept) known[device].store(found);
  return found;
}

/// Read once for each device; the kernel is allowed its shared memory then.
template <class Body, class Args>
Grid grid_of(int32_t device) {
  constexpr int kKnown = 64;
  static std::atomic<int64_t> known[kKnown];  // both numbers in one word
  const bool kept = device >= 0 && device < kKnown;
  const int64_t found = kept ? known[device].load() : 0;
  if (found) return {static_cast<int>(found >> 32), static_cast<int>(found & 0xffffffff)};
  int blocks = 0, bytes = 0, cooperative = 0, fitting = 0;
  require(cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device));
  if (!cooperative) {
    fail("ardiff: device cuda:", device, " has no cooperative launch, which this CUDA kernel ",
         "needs; use ardiff_kernels.backend(\"triton\")");
  }
  require(cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, device));
  require(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  const auto kernel = grid_phases<Body, Args>;
  constexpr int kThreads = Body::Team::kSize;
  cudaFuncAttributes attributes;
  require(cudaFuncGetAttributes(&attributes, kernel));
  bytes -= static_cast<int>(attributes.sharedSizeBytes);
  require(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  require(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&fitting, kernel, kThreads, bytes));
  if (fitting < 1) fail("ardiff: a block of this kernel does not fit on cuda:", device);
  if (kept) known[device].store(static_cast<int64_t>(blocks) << 32 | bytes);
  return {blocks, bytes};
}

/// Starts `blocks` blocks, at most those of the grid, that wait for one another.
template <class Body, class Args>
void launch_grid(Args& a, const Grid& grid, int32_t device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  void* parameters[] = {&a};
  require(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(grid_phases<Body, Args>),
                                      dim3(grid.blocks), dim3(Body::Team::kSize), parameters,
                                      grid.bytes, static_cast<cudaStream_t>(stream)));
}

#else

inline int multiprocessors_of(int32_t) { return walk.blocks; }

template <class Body, class Args>
Grid grid_of(int32_t) {
  return {walk.blocks, walk.bytes};
}

template <class Body, class Args>
void launch_grid(const Args& a, const Grid& grid, int32_t) {
  walk_grid<Body>(a, grid.blocks, grid.bytes);
}

#endif

}  // namespace ardiff
