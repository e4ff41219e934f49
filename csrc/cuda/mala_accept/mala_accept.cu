// mala_accept on CUDA: the Metropolis test of csrc/math/mala_accept.h in one launch, for any d. The
// order of the sums is the CPU library's, so both give the same bits. Bound by memory: five tensors
// are read once for the sums, and the selected rows a second time, mostly from the caches.
#include "../../torch/mala_accept.h"
#include "../launch.cuh"
#include "kernel.cuh"

namespace ardiff {
namespace {

#ifdef __CUDACC__
template <class Body>
__global__ void __launch_bounds__(kThreads, 3) phases(const __grid_constant__ AcceptWork a) {
  __shared__ AcceptShared shared;
  const int64_t block = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t round = 0; round * a.groups < a.chunks; ++round) {
    if (round > 0) __syncwarp();
    Body::sum(a, shared, block, thread, round);
    __syncwarp();  // a group lies in one warp
    Body::add(a, shared, block, thread, round);
  }
  __syncthreads();
  Body::decide(a, shared, block, thread);
  __syncthreads();
  Body::select(a, shared, block, thread);
}

template <class Body>
void launch_phases(const AcceptWork& a, int32_t device) {
  if (a.blocks == 0) return;
  if (a.blocks > 0x7fffffff) fail("ardiff: more than 2^31 blocks in one call; split it");
  const unsigned grid = static_cast<unsigned>(a.blocks);
  start_kernel(device,
               [&](cudaStream_t stream) { phases<Body><<<grid, kThreads, 0, stream>>>(a); });
}
#else
/// On the host every phase walks all threads before the next begins.
template <class Body>
void launch_phases(const AcceptWork& a, int32_t) {
  const auto all = [](auto phase) {
    for (int thread = 0; thread < kThreads; ++thread) phase(thread);
  };
  for (int64_t block = 0; block < a.blocks; ++block) {
    AcceptShared shared;
    for (int64_t round = 0; round * a.groups < a.chunks; ++round) {
      all([&](int thread) { Body::sum(a, shared, block, thread, round); });
      all([&](int thread) { Body::add(a, shared, block, thread, round); });
    }
    all([&](int thread) { Body::decide(a, shared, block, thread); });
    all([&](int thread) { Body::select(a, shared, block, thread); });
  }
}
#endif

template <class Model>
void launch_as(const AcceptWork& a, bool vector, int32_t device) {
  vector ? launch_phases<AcceptBody<Model, true>>(a, device)
         : launch_phases<AcceptBody<Model, false>>(a, device);
}

void run(const AcceptArgs& args, int32_t device) {
  const AcceptWork a = divided(args);
  const bool vector = takes_units(a);
  switch (a.out_x.type) {
    case Type::float32:
      return launch_as<float>(a, vector, device);
    case Type::float16:
      return launch_as<Float16>(a, vector, device);
    case Type::bfloat16:
      return launch_as<BFloat16>(a, vector, device);
  }
}

using Op = MalaAccept<&run>;

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ARDIFF_CUDA_NAMESPACE, ARDIFF_CUDA_KEY, m) {
  m.impl("mala_accept", TORCH_BOX(&ardiff::Op::functional));
  m.impl("mala_accept_", TORCH_BOX(&ardiff::Op::in_place));
}
