// mala_accept on the CPU: checks, threads and registration; the kernel is kernel.cpp.
#include <torch/csrc/stable/library.h>

#include "../../torch/accept_checks.h"
#include "../isa.h"
#include "../launch.h"
#include "args.h"

ARDIFF_DECLARE_KERNEL(mala_accept_tiles, AcceptArgs)

namespace ardiff {
namespace {

using Optional = std::optional<Tensor>;

const float* floats(const Arg& a) {
  return a.given() ? static_cast<const float*>(a.tensor->const_data_ptr()) : nullptr;
}

/// `x_new` to `energy_new` are y and what belongs to it in the in-place form.
void run(const AcceptTensors& t, const Arg& x_new, const Arg& out_new, const Arg& v_new,
         const Arg& energy_new, const Arg& accepted, const Arg& log_alpha) {
  constexpr int64_t kElementsATile = 4096;
  AcceptArgs a;
  a.B = t.x.sizes[0];
  a.d = t.x.width();
  a.T = t.coef.sizes[0];
  const int64_t samples = std::max<int64_t>(1, kElementsATile / a.d);
  a.tiling = {samples, 1, (a.B + samples - 1) / samples};
  a.coef = floats(t.coef);
  a.row = per_sample<int32_t>(t.row);
  a.draw = per_sample<int32_t>(t.draw);
  a.key = *static_cast<const int64_t*>(t.key.tensor->const_data_ptr());
  a.stream = static_cast<const int64_t*>(t.stream.tensor->const_data_ptr());
  a.x = input(t.x);
  a.y = input(t.y);
  a.out_x = input(t.out_x);
  a.out_y = input(t.out_y);
  a.anchor = input(t.anchor);
  a.v_x = input(t.v_x);
  a.v_y = input(t.v_y);
  a.out_mid = input(t.out_mid);
  a.energy_x = floats(t.energy_x);
  a.energy_y = floats(t.energy_y);
  a.ball_radius = per_sample<float>(t.ball_radius);
  a.x_new = output(x_new);
  a.out_new = output(out_new);
  a.v_new = t.v_y.given() ? output(v_new) : Out{};
  a.energy_new =
      t.energy_y.given() ? static_cast<float*>(energy_new.tensor->mutable_data_ptr()) : nullptr;
  a.accepted = static_cast<bool*>(accepted.tensor->mutable_data_ptr());
  a.log_alpha = static_cast<float*>(log_alpha.tensor->mutable_data_ptr());
  run_tiles(mala_accept_tiles(), a);
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
  for (const Tensor* fresh : {&x_new, &out_new, &v_new}) {
    const int64_t bytes = fresh->numel() * (fresh->scalar_type() == ScalarType::Float ? 4 : 2);
    if (bytes >= int64_t{4} << 20) ask_for_huge_pages(fresh->mutable_data_ptr(), bytes);
  }
  run(t, Arg("x", x_new), Arg("out", out_new), Arg("v", v_new), Arg("energy", energy_new),
      Arg("accepted", accepted), Arg("log_alpha", log_alpha));
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
  run(t, t.y, t.out_y, t.v_y, t.energy_y, t.accepted, t.log_alpha);
}

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ardiff, CPU, m) {
  m.impl("mala_accept", TORCH_BOX(&ardiff::mala_accept));
  m.impl("mala_accept_", TORCH_BOX(&ardiff::mala_accept_));
}
