// mala_accept on CUDA: the Metropolis test of csrc/math/mala_accept.h in one launch, for any d. The
// order of the sums is the CPU library's, so both give the same bits. Bound by memory: five tensors
// are read once for the sums, and the selected rows a second time, mostly from the caches.
#include "../../torch/accept_checks.h"
#include "../launch.cuh"
#include "kernel.cuh"

namespace ardiff {
namespace {

using Optional = std::optional<Tensor>;

#ifdef __CUDACC__
template <class Body>
__global__ void __launch_bounds__(kThreads, 3) phases(const __grid_constant__ AcceptArgs a) {
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
void launch_phases(const AcceptArgs& a, int32_t device) {
  if (a.blocks == 0) return;
  if (a.blocks > 0x7fffffff) fail("ardiff: more than 2^31 blocks in one call; split it");
  const unsigned grid = static_cast<unsigned>(a.blocks);
  start_kernel(device,
               [&](cudaStream_t stream) { phases<Body><<<grid, kThreads, 0, stream>>>(a); });
}
#else
/// On the host every phase walks all threads before the next begins.
template <class Body>
void launch_phases(const AcceptArgs& a, int32_t) {
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
void launch_as(const AcceptArgs& a, bool vector, int32_t device) {
  vector ? launch_phases<AcceptBody<Model, true>>(a, device)
         : launch_phases<AcceptBody<Model, false>>(a, device);
}

template <class T>
T* target(const Arg& a) {
  return static_cast<T*>(a.tensor->mutable_data_ptr());
}

/// `x_new` to `energy_new` are y and what belongs to it in the in-place form.
void run(const AcceptTensors& t, const Arg& x_new, const Arg& out_new, const Arg& v_new,
         const Arg& energy_new, const Arg& accepted, const Arg& log_alpha, bool in_place) {
  AcceptArgs a{};
  Operands operands(t.x.width());
  a.B = t.x.sizes[0];
  a.d = t.x.width();
  a.T = t.coef.sizes[0];
  lay_out(a);
  a.coef = pointer<float>(t.coef);
  a.row = per_sample<int32_t>(t.row);
  a.draw = per_sample<int32_t>(t.draw);
  a.key = pointer<int64_t>(t.key);
  a.stream = pointer<int64_t>(t.stream);
  a.x = operands.in(t.x);
  a.y = operands.in(t.y);
  a.out_x = operands.in(t.out_x);
  a.out_y = operands.in(t.out_y);
  a.anchor = operands.in(t.anchor);
  a.v_x = operands.in(t.v_x);
  a.v_y = operands.in(t.v_y);
  a.out_mid = operands.in(t.out_mid);
  a.energy_x = pointer<float>(t.energy_x);
  a.energy_y = pointer<float>(t.energy_y);
  a.ball_radius = per_sample<float>(t.ball_radius);
  a.x_new = operands.out(x_new);
  a.out_new = operands.out(out_new);
  if (t.v_y.given()) a.v_new = operands.out(v_new);
  if (t.energy_y.given()) a.energy_new = target<float>(energy_new);
  a.accepted = target<bool>(accepted);
  a.log_alpha = target<float>(log_alpha);
  a.in_place = in_place;
  const int32_t device = t.x.device_index;
  if (t.out_x.dtype == ScalarType::BFloat16) {
    launch_as<BFloat16>(a, operands.vector(), device);
  } else if (t.out_x.dtype == ScalarType::Half) {
    launch_as<Float16>(a, operands.vector(), device);
  } else {
    launch_as<float>(a, operands.vector(), device);
  }
}

AcceptResults mala_accept(Tensor x, Tensor y, Tensor out_x, Tensor out_y, Tensor anchor,
                          Tensor coef, Tensor row, Tensor draw, Tensor key, Tensor stream,
                          Optional v_x, Optional v_y, Optional out_mid, Optional energy_x,
                          Optional energy_y, Optional ball_radius) {
  const AcceptTensors t{{"x", x},
                        {"y", y},
                        {"out_x", out_x},
                        {"out_y", out_y},
                        {"anchor", anchor},
                        {"coef", coef},
                        {"row", row},
                        {"draw", draw},
                        {"key", key},
                        {"stream", stream},
                        {"v_x", v_x},
                        {"v_y", v_y},
                        {"out_mid", out_mid},
                        {"energy_x", energy_x},
                        {"energy_y", energy_y},
                        {"ball_radius", ball_radius},
                        {},
                        {}};
  check_accept("mala_accept", t, false);
  AcceptResults results = fresh_results(t);
  const auto& [x_new, out_new, v_new, energy_new, accepted, log_alpha] = results;
  run(t, Arg("x", x_new), Arg("out", out_new), Arg("v", v_new), Arg("energy", energy_new),
      Arg("accepted", accepted), Arg("log_alpha", log_alpha), false);
  return results;
}

void mala_accept_(Tensor x, Tensor y, Tensor out_x, Tensor out_y, Tensor anchor, Tensor coef,
                  Tensor row, Tensor draw, Tensor key, Tensor stream, Optional v_x, Optional v_y,
                  Optional out_mid, Optional energy_x, Optional energy_y, Optional ball_radius,
                  Tensor accepted, Tensor log_alpha) {
  const AcceptTensors t{{"x", x},
                        {"y", y},
                        {"out_x", out_x},
                        {"out_y", out_y},
                        {"anchor", anchor},
                        {"coef", coef},
                        {"row", row},
                        {"draw", draw},
                        {"key", key},
                        {"stream", stream},
                        {"v_x", v_x},
                        {"v_y", v_y},
                        {"out_mid", out_mid},
                        {"energy_x", energy_x},
                        {"energy_y", energy_y},
                        {"ball_radius", ball_radius},
                        {"accepted", accepted},
                        {"log_alpha", log_alpha}};
  check_accept("mala_accept_", t, true);
  run(t, t.y, t.out_y, t.v_y, t.energy_y, t.accepted, t.log_alpha, true);
}

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ARDIFF_CUDA_NAMESPACE, ARDIFF_CUDA_KEY, m) {
  m.impl("mala_accept", TORCH_BOX(&ardiff::mala_accept));
  m.impl("mala_accept_", TORCH_BOX(&ardiff::mala_accept_));
}
