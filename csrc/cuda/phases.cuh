// Kernels of several phases, between which the threads of a block wait for one another. A phase is
// a function of a thread (Team::threads) or of a warp (Team::warps, whose Warp sums over lanes).
// What a phase writes, the threads of the same phase must not read.
//
// There are two kinds of kernels. Blocks that know nothing of one another run as
// Body::flow(args, shared, team). Blocks that wait for one another as well, all of which must run
// at once, run as Body::phase(args, team, memory, i) for each i of Body::phases(args), behind
// Body::begin(args, team, memory), until Body::ended(args, i) says before phase i, in all blocks
// alike, that no more is to be done.
//
// Compiled by a plain C++ compiler the same code is walked on the host, one thread after the other,
// forwards or backwards: a phase in which a thread needs what another does in the same phase gives
// other results then. So the tests run kernels where there is no GPU. Free of torch; the launches
// are in launch_phases.cuh.
#pragma once

#include <type_traits>

#include "../math/lane.h"

#ifdef __CUDACC__
#include <cooperative_groups.h>
#define ARDIFF_DEVICE __device__ __forceinline__
#else
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <utility>
#include <vector>
#define ARDIFF_DEVICE inline __attribute__((always_inline))
#endif

namespace ardiff {

constexpr int kLanes = 32;
constexpr int kSums = 16;

#ifndef __CUDACC__
/// How the host walks kernels: in which order threads and blocks go, and, for blocks that wait for
/// one another, which device it plays and whether they do wait.
struct Walk {
  int blocks = 3;        // multiprocessors of the device
  int bytes = 24 << 10;  // shared memory of a block
  bool backwards = false;
  bool waits = true;

  /// The i-th of n threads, lanes, warps or blocks.
  int turn(int i, int n) const { return backwards ? n - 1 - i : i; }
};
inline Walk walk;

/// For the tests, which load a library and say how it walks.
extern "C" inline __attribute__((used)) void ardiff_walk(int blocks, int bytes, bool backwards,
                                                         bool waits) {
  walk = {blocks, bytes, backwards, waits};
}
#endif

/// A value that each lane of a warp has of its own.
template <class T>
struct PerLane {
#ifdef __CUDACC__
  T value;
  ARDIFF_DEVICE T& operator[](int) { return value; }
#else
  T values[kLanes];
  T& operator[](int lane) { return values[lane]; }
#endif
};

struct Warp {
  int index;

#ifdef __CUDACC__

  /// f(lane) in every lane; what it writes is seen by all lanes behind it.
  template <class F>
  ARDIFF_DEVICE void lanes(F f) const {
    each(f);
    __syncwarp();
  }

  /// The same where no lane needs what another writes.
  template <class F>
  ARDIFF_DEVICE void each(F f) const {
    f(static_cast<int>(threadIdx.x) % kLanes);
  }

  /// The sum of f(lane), in every lane: a tree over lanes 16, 8, 4, 2 and 1 apart.
  template <class F>
  ARDIFF_DEVICE float sum(F f) const {
    float x = f(static_cast<int>(threadIdx.x) % kLanes);
    for (int apart = kLanes / 2; apart; apart /= 2) x += __shfl_xor_sync(~0u, x, apart);
    return x;
  }

  /// Sixteen such sums: f(lane, terms) sets each lane's, use(i, sum) is called once for each.
  template <class F, class Use>
  ARDIFF_DEVICE void sums(F f, Use use) const {
    const int lane = static_cast<int>(threadIdx.x) % kLanes;
    float x[kSums];
    f(lane, x);
    halve<kSums / 2>(x, lane);
    const float total = x[0] + __shfl_xor_sync(~0u, x[0], 1);
    if (lane % 2 == 0) use(lane / 2, total);
  }

 private:
  /// Leaves a lane with half of 2 * kHalf sums, until one is left; the loops unroll, so that no
  /// register is chosen at run time.
  template <int kHalf>
  ARDIFF_DEVICE static void halve(float (&x)[kSums], int lane) {
    const bool upper = lane & (2 * kHalf);
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float kept = upper ? x[i + kHalf] : x[i], given = upper ? x[i] : x[i + kHalf];
      x[i] = kept + __shfl_xor_sync(~0u, given, 2 * kHalf);
    }
    if constexpr (kHalf > 1) halve<kHalf / 2>(x, lane);
  }

#else

  template <class F>
  void lanes(F f) const {
    for (int i = 0; i < kLanes; ++i) f(walk.turn(i, kLanes));
  }

  template <class F>
  void each(F f) const {
    lanes(f);
  }

  template <class F>
  float sum(F f) const {
    float x[kLanes];
    lanes([&](int lane) { x[lane] = f(lane); });
    for (int apart = kLanes / 2; apart; apart /= 2) {
      for (int lane = 0; lane < apart; ++lane) x[lane] += x[lane + apart];
    }
    return x[0];
  }

  template <class F, class Use>
  void sums(F f, Use use) const {
    float x[kLanes][kSums];
    lanes([&](int lane) { f(lane, x[lane]); });
    for (int i = 0; i < kSums; ++i) use(i, sum([&](int lane) { return x[lane][i]; }));
  }

#endif
};

/// What a thread keeps between phases where a kernel keeps nothing.
struct Nothing {};

/// The threads of a block. `states` is what they keep between phases: on the device this thread's,
/// on the host one for each.
template <int kThreads, class State = Nothing>
struct Team {
  static constexpr int kSize = kThreads, kWarps = kThreads / kLanes;

  int block, blocks;
  State* states = nullptr;

  /// The block's number to divide: with the sign of an int that takes more instructions.
  ARDIFF_DEVICE int64_t number() const { return static_cast<uint32_t>(block); }

  /// A phase: f(thread), or f(thread, state), for every thread of the block.
  template <class F>
  ARDIFF_DEVICE void threads(F f) const {
    each(f);
    wait();
  }

  /// The same, behind which no thread waits before it comes to one of the waits.
  template <class F>
  ARDIFF_DEVICE void each(F f) const {
#ifdef __CUDACC__
    call(f, static_cast<int>(threadIdx.x), 0);
#else
    for (int i = 0; i < kThreads; ++i) call(f, walk.turn(i, kThreads), walk.turn(i, kThreads));
#endif
  }

  /// The threads of the block wait for one another, or those of each warp do.
  ARDIFF_DEVICE void wait() const {
#ifdef __CUDACC__
    __syncthreads();
#endif
  }
  ARDIFF_DEVICE void wait_in_warps() const {
#ifdef __CUDACC__
    __syncwarp();
#endif
  }

  /// A phase: f(warp) for every warp of the block.
  template <class F>
  ARDIFF_DEVICE void warps(F f) const {
#ifdef __CUDACC__
    f(Warp{static_cast<int>(threadIdx.x) / kLanes});
    __syncthreads();
#else
    for (int i = 0; i < kWarps; ++i) f(Warp{walk.turn(i, kWarps)});
#endif
  }

 private:
  template <class F>
  ARDIFF_DEVICE void call(F& f, int thread, int state) const {
    if constexpr (std::is_invocable_v<F&, int, State&>) {
      f(thread, states[state]);
    } else {
      f(thread);
    }
  }
};

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
__global__ void __launch_bounds__(Body::Team::kSize, Body::kBlocks)
    phases(const __grid_constant__ Args a) {
  __shared__ typename Body::Shared shared;
  typename Body::State state;
  Body::flow(
      a, shared,
      typename Body::Team{static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x), &state});
}

template <class Body, class Args>
__global__ void __launch_bounds__(Body::Team::kSize, 1)
    grid_phases(const __grid_constant__ Args a) {
  extern __shared__ float4 shared[];
  const typename Body::Team team{static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x)};
  float* memory = reinterpret_cast<float*>(shared);
  Body::begin(a, team, memory);
  const int64_t phases = Body::phases(a);
#pragma unroll 1
  for (int64_t phase = 0; phase < phases; ++phase) {
    if (phase) cooperative_groups::this_grid().sync();
    if (Body::ended(a, phase)) break;
    Body::phase(a, team, memory, phase);
  }
}

#else

/// Shared memory begins as bytes of ones, which are NaN as floats.
template <class Body, class Args>
void walk_blocks(const Args& a, int blocks) {
  using Shared = typename Body::Shared;
  const auto shared = std::make_unique<Shared>();
  for (int i = 0; i < blocks; ++i) {
    std::memset(static_cast<void*>(shared.get()), 0xff, sizeof(Shared));
    std::vector<typename Body::State> states(Body::Team::kSize);
    Body::flow(a, *shared, typename Body::Team{walk.turn(i, blocks), blocks, states.data()});
  }
}

/// Shared memory begins as NaN. Without `walk.waits` a block runs all its phases before the next
/// block begins.
template <class Body, class Args>
void walk_grid(const Args& a, int blocks, int64_t bytes) {
  constexpr size_t kLine = 4;  // floats of 16 bytes
  const size_t size = bytes / sizeof(float);
  std::vector<std::vector<float>> memory(blocks, std::vector<float>(size + kLine, NAN));
  const auto shared = [&](int block) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory[block].data());
    return memory[block].data() + (16 - address % 16) % 16 / sizeof(float);
  };
  const auto team = [&](int i) { return typename Body::Team{walk.turn(i, blocks), blocks}; };
  for (int i = 0; i < blocks; ++i) Body::begin(a, team(i), shared(team(i).block));
  const int64_t phases = Body::phases(a);
  const auto run = [&](int i, int64_t phase) {
    Body::phase(a, team(i), shared(team(i).block), phase);
  };
  if (walk.waits) {
    for (int64_t phase = 0; phase < phases && !Body::ended(a, phase); ++phase) {
      for (int i = 0; i < blocks; ++i) run(i, phase);
    }
    return;
  }
  for (int i = 0; i < blocks; ++i) {
    for (int64_t phase = 0; phase < phases && !Body::ended(a, phase); ++phase) run(i, phase);
  }
}

#endif

}  // namespace ardiff
