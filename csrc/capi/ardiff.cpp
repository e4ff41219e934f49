// The C interface: checks on plain pointers, threads, and calls of the CPU kernels.
#include "ardiff.h"

#include <cmath>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "../cpu/isa.h"
#include "../cpu/tiling.h"
#include "../math/uld_coefficients.h"
#include "checks.h"

ARDIFF_DECLARE_KERNEL(philox_normal_tiles, Tiled<NormalArgs>)
ARDIFF_DECLARE_KERNEL(brownian_increment_tiles, Tiled<IncrementArgs>)
ARDIFF_DECLARE_KERNEL(uld_step_tiles, Tiled<UldArgs>)
ARDIFF_DECLARE_KERNEL(diffusion_step_tiles, Tiled<DiffusionArgs>)

namespace ardiff {
namespace {

thread_local std::string last_error;

ardiff_status keep(ardiff_status status, const char* message) noexcept {
  try {
    last_error = message;
  } catch (const std::bad_alloc&) {
    last_error.clear();
  }
  return status;
}

/// Runs `function` and turns what it throws into a status and a message.
template <class Function>
ardiff_status guarded(Function function) noexcept {
  try {
    function();
    return ARDIFF_OK;
  } catch (const Failure& failure) {
    return keep(failure.status, failure.what());
  } catch (const std::bad_alloc&) {
    return keep(ARDIFF_FAILED, "out of memory");
  } catch (const std::exception& error) {
    return keep(ARDIFF_FAILED, error.what());
  }
}

/// Runs a kernel, `choose()`, over the tiles of its arguments on up to `available` threads.
template <class Choose, class Args>
void run_tiles(Choose choose, const Args& args, int64_t available) {
  decltype(choose()) kernel;
  try {
    kernel = choose();
  } catch (const std::runtime_error& error) {
    throw Failure(ARDIFF_UNSUPPORTED, error.what());
  }
  share_tiles(kernel, tiled(args), available, [](int64_t threads, auto work) {
    std::vector<std::thread> others;
    others.reserve(threads - 1);
    try {
      while (static_cast<int64_t>(others.size()) < threads - 1) others.emplace_back(work);
    } catch (const std::system_error&) {
      // Those that did start, and this thread, share the work.
    }
    work();
    for (std::thread& other : others) other.join();
  });
}

void uld_step(const ardiff_output& z, const ardiff_output& v, const ardiff_output& anchor,
              const ardiff_step_args* args) {
  const char* op = "uld_step";
  const ardiff_step_args t = read_args(op, args);
  const Call call{op, t.rows, t.columns};
  UldArgs a = step_args<UldArgs>(call, t, false);
  check_together(op, "noise", t.noise.data, "noise2", t.noise2.data);
  call.require("z.data", z.data);
  call.require("v.data", v.data);
  call.require("anchor.data", anchor.data);
  a.z_new = call.output("z", z, kFloat32, a.d);
  a.v_new = call.output("v", v, kFloat32, a.d);
  a.anchor_new = call.output("anchor", anchor, kFloat32, a.d);
  check_apart(op,
              {{"z", z.data}, {"v", v.data}, {"anchor", anchor.data}, {"z_model", t.z_model.data}});
  a.z = {a.z_new.data, a.z_new.stride, a.z_new.type};
  a.v = {a.v_new.data, a.v_new.stride, a.v_new.type};
  a.anchor = {a.anchor_new.data, a.anchor_new.stride, a.anchor_new.type};
  run_tiles(uld_step_tiles, a, t.threads);
}

void diffusion_step(const ardiff_output& x, const ardiff_output& memory, int64_t memory_columns,
                    const ardiff_output& x0, const ardiff_step_args* args) {
  const char* op = "diffusion_step";
  const ardiff_step_args t = read_args(op, args);
  const Call call{op, t.rows, t.columns};
  DiffusionArgs a = step_args<DiffusionArgs>(call, t, true);
  if (memory_columns != a.d && memory_columns != 2 * a.d && memory_columns != 3 * a.d) {
    reject(op, ": memory_columns must be ", a.d, ", or two or three times as many with more ",
           "memories, got ", memory_columns);
  }
  if (t.noise2.data) reject(op, ": takes one normal per element: noise2 must be absent");
  if (!(t.x0_clamp >= 0))
    reject(op, ": x0_clamp must be positive, or 0 for none, got ", t.x0_clamp);
  call.require("x.data", x.data);
  call.require("memory.data", memory.data);
  a.learned_range = t.model_columns == 2 * a.d;
  a.memories = static_cast<int>(memory_columns / a.d);
  a.x0_limit = t.x0_clamp > 0 ? t.x0_clamp : INFINITY;
  a.x_new = call.output("x", x, kFloat32 | kBFloat16, a.d);
  const unsigned same = 1u << x.dtype;
  a.memory_new = call.output("memory", memory, same, memory_columns);
  a.x0 = call.output("x0", x0, same, a.d);
  check_apart(
      op, {{"x", x.data}, {"memory", memory.data}, {"x0", x0.data}, {"z_model", t.z_model.data}});
  a.x = {a.x_new.data, a.x_new.stride, a.x_new.type};
  a.memory = {a.memory_new.data, a.memory_new.stride, a.memory_new.type};
  run_tiles(diffusion_step_tiles, a, t.threads);
}

void philox_normal(const ardiff_output& out, int64_t rows, int64_t columns, int64_t key,
                   int64_t counter, const int64_t* stream) {
  const Call call{"philox_normal", rows, columns};
  call.check_shape(NormalArgs::kElementsPerQuad);
  if (counter < 0 || counter >= kQuads) {
    reject(call.op, ": counter must lie in [0, ", kQuads - 1, "], got ", counter);
  }
  call.require("out.data", out.data);
  call.require("stream", stream);
  NormalArgs a{};
  a.B = rows;
  a.d = columns;
  a.address = {&key, stream, {}, static_cast<uint32_t>(counter)};
  a.out = call.output("out", out, kFloat32, columns);
  run_tiles(philox_normal_tiles, a, 1);
}

void brownian_increment(const ardiff_output& out, int64_t rows, int64_t columns, int64_t key,
                        const int64_t* stream, const ardiff_floats& start,
                        const ardiff_floats& end) {
  const Call call{"brownian_increment", rows, columns};
  call.check_shape(IncrementArgs::kElementsPerQuad);
  call.require("out.data", out.data);
  call.require("stream", stream);
  call.require("start.data", start.data);
  call.require("end.data", end.data);
  IncrementArgs a{};
  a.B = rows;
  a.d = columns;
  a.address = {&key, stream, {}, 0};
  a.start = call.each("start", start);
  a.end = call.each("end", end);
  for (const auto* times : {&start, &end}) {
    for (int64_t i = 0; times->data && i < times->count; ++i) {
      if (!(times->data[i] >= 0 && times->data[i] < 4294967296.0f)) {
        reject(call.op, ": times must lie in [0, 2^32), got ", times->data[i]);
      }
    }
  }
  a.out = call.output("out", out, kFloat32, columns);
  run_tiles(brownian_increment_tiles, a, 1);
}

}  // namespace
}  // namespace ardiff

extern "C" {

ardiff_status ardiff_uld_step(ardiff_output z, ardiff_output v, ardiff_output anchor,
                              const ardiff_step_args* args) {
  return ardiff::guarded([&] { ardiff::uld_step(z, v, anchor, args); });
}

ardiff_status ardiff_diffusion_step(ardiff_output x, ardiff_output memory, int64_t memory_columns,
                                    ardiff_output x0, const ardiff_step_args* args) {
  return ardiff::guarded([&] { ardiff::diffusion_step(x, memory, memory_columns, x0, args); });
}

ardiff_status ardiff_philox_normal(ardiff_output out, int64_t rows, int64_t columns, int64_t key,
                                   int64_t counter, const int64_t* stream) {
  return ardiff::guarded([&] { ardiff::philox_normal(out, rows, columns, key, counter, stream); });
}

ardiff_status ardiff_brownian_increment(ardiff_output out, int64_t rows, int64_t columns,
                                        int64_t key, const int64_t* stream, ardiff_floats start,
                                        ardiff_floats end) {
  return ardiff::guarded(
      [&] { ardiff::brownian_increment(out, rows, columns, key, stream, start, end); });
}

ardiff_status ardiff_uld_coefficients(double gamma, double tau, ardiff_uld_coefs* out) {
  return ardiff::guarded([&] {
    if (!out) ardiff::reject("uld_coefficients: out must not be NULL");
    if (!(gamma > 0) || !(tau > 0) || !std::isfinite(gamma) || !std::isfinite(tau)) {
      ardiff::reject("uld_coefficients: gamma and tau must be positive and finite, got gamma ",
                     gamma, " and tau ", tau);
    }
    const ardiff::UldCoefficients c = ardiff::uld_coefficients(gamma, tau);
    *out = {c.z_from_v, c.z_from_grad, c.v_from_v, c.v_from_grad, c.var_z,
            c.cov_zv,   c.var_v,       c.z_1,      c.z_2,         c.v_1};
  });
}

void ardiff_split(double value, float* high, float* low) {
  *high = static_cast<float>(value);
  *low = static_cast<float>(value - *high);
}

const char* ardiff_version(void) { return ARDIFF_VERSION; }
int ardiff_abi_version(void) { return ARDIFF_ABI_VERSION; }
const char* ardiff_last_error(void) { return ardiff::last_error.c_str(); }
}
