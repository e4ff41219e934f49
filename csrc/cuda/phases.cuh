// Kernels whose threads share memory. The flow of a block is written once, as
// Body::flow(args, shared, block, run): run(phase) calls phase(thread, state) for every thread of
// the block, which then wait for one another; `state` is what a thread keeps between phases.
//
// Compiled by a plain C++ compiler the same flow runs on the host, a phase over all threads before
// the next, forwards or (ARDIFF_WALK_BACKWARDS) backwards: a phase in which a thread needs what
// another does in the same phase gives other results then.
#pragma once

#include "launch.cuh"

#ifdef __CUDACC__
#define ARDIFF_DEVICE __device__ __forceinline__
#else
#include <deque>
#include <memory>
#include <vector>
#define ARDIFF_DEVICE inline
#endif

namespace ardiff {

/// A thread's copies from global to shared memory that are on their way, in groups. On the host a
/// copy is done when it is waited for, and no sooner.
class Copies {
 public:
  /// Copies kBytes (8 or 16, both pointers aligned to them); zeros where nothing is `there`.
  template <int kBytes>
  ARDIFF_DEVICE void start(void* to, const void* from, bool there) {
#ifdef __CUDACC__
    const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(to));
    if constexpr (kBytes == 16) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(from),
                   "r"(there ? 16 : 0)
                   : "memory");
    } else {
      asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(target), "l"(from),
                   "r"(there ? 8 : 0)
                   : "memory");
    }
#else
    open_.push_back({to, there ? from : nullptr, kBytes});
#endif
  }

  /// Ends a group.
  ARDIFF_DEVICE void commit() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    groups_.push_back(std::move(open_));
    open_.clear();
#endif
  }

  /// Waits until no more than the last kLeft groups are on their way.
  template <int kLeft>
  ARDIFF_DEVICE void wait() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#else
    for (; groups_.size() > kLeft; groups_.pop_front()) {
      for (const Copy& c : groups_.front()) {
        if (c.from) std::memcpy(c.to, c.from, c.bytes);
        if (!c.from) std::memset(c.to, 0, c.bytes);
      }
    }
#endif
  }

 private:
#ifndef __CUDACC__
  struct Copy {
    void* to;
    const void* from;
    int bytes;
  };
  std::vector<Copy> open_;
  std::deque<std::vector<Copy>> groups_;
#endif
};

#ifdef __CUDACC__
template <class Body, class Args>
__global__ void __launch_bounds__(Body::kThreads, Body::kBlocks)
    phases(const __grid_constant__ Args a) {
  __shared__ typename Body::Shared shared;
  typename Body::State state;
  Body::flow(a, shared, blockIdx.x, [&](auto phase) {
    phase(static_cast<int>(threadIdx.x), state);
    __syncthreads();
  });
}

template <class Body, class Args>
void launch_blocks(const Args& a, int64_t blocks, int32_t device) {
  if (blocks == 0) return;
  if (blocks > 0x7fffffff) fail("ardiff: more than 2^31 blocks in one call; split it");
  start_kernel(device, [&](cudaStream_t stream) {
    phases<Body, Args><<<static_cast<unsigned>(blocks), Body::kThreads, 0, stream>>>(a);
  });
}
#else
template <class Body, class Args>
void launch_blocks(const Args& a, int64_t blocks, int32_t) {
  const auto shared = std::make_unique<typename Body::Shared>();
  for (int64_t block = 0; block < blocks; ++block) {
    std::memset(static_cast<void*>(shared.get()), 0xff, sizeof(typename Body::Shared));
    std::vector<typename Body::State> states(Body::kThreads);
    Body::flow(a, *shared, block, [&](auto phase) {
      for (int i = 0; i < Body::kThreads; ++i) {
#ifdef ARDIFF_WALK_BACKWARDS
        const int thread = Body::kThreads - 1 - i;
#else
        const int thread = i;
#endif
        phase(thread, states[thread]);
      }
    });
  }
}
#endif

}  // namespace ardiff
