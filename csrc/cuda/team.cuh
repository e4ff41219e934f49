// The threads of a block as a kernel of several phases uses them: all of them, or warp by warp,
// with sums over the lanes of a warp. Compiled without nvcc the same phases run one thread after
// another on the host, forwards or backwards, which is how the tests walk them: what a phase
// writes, the threads of the same phase must not read.
#pragma once

#include "../math/lane.h"

#ifdef __CUDACC__
#define ARDIFF_DEVICE __device__ __forceinline__
#else
#define ARDIFF_DEVICE inline __attribute__((always_inline))
#endif

namespace ardiff {

constexpr int kTeamThreads = 256;
constexpr int kLanes = 32;
constexpr int kWarps = kTeamThreads / kLanes;
constexpr int kSums = 16;

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

#ifdef __CUDACC__

struct Warp {
  int index;

  /// f(lane) in every lane; what it writes is seen by all lanes behind it.
  template <class F>
  ARDIFF_DEVICE void lanes(F f) const {
    f(static_cast<int>(threadIdx.x) % kLanes);
    __syncwarp();
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
};

struct Team {
  int block, blocks;

  template <class F>
  ARDIFF_DEVICE void threads(F f) const {
    f(static_cast<int>(threadIdx.x));
    __syncthreads();
  }
  template <class F>
  ARDIFF_DEVICE void warps(F f) const {
    f(Warp{static_cast<int>(threadIdx.x) / kLanes});
    __syncthreads();
  }
};

#else

struct Warp {
  int index;
  bool backwards;

  template <class F>
  void lanes(F f) const {
    for (int i = 0; i < kLanes; ++i) f(backwards ? kLanes - 1 - i : i);
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
};

struct Team {
  int block, blocks;
  bool backwards;

  template <class F>
  void threads(F f) const {
    for (int i = 0; i < kTeamThreads; ++i) f(backwards ? kTeamThreads - 1 - i : i);
  }
  template <class F>
  void warps(F f) const {
    for (int i = 0; i < kWarps; ++i) f(Warp{backwards ? kWarps - 1 - i : i, backwards});
  }
};

#endif

}  // namespace ardiff
