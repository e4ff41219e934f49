// philox_normal as torch calls it, on every backend: arguments, checks, both forms.
#pragma once

#include "../math/step_args.h"
#include "checks.h"
#include "operands.h"

namespace ardiff {

inline void check_counter(const char* op, int64_t counter) {
  if (counter < 0 || counter >= kQuads) {
    fail(op, ": counter must lie in [0, 4294967295], got ", counter);
  }
}

inline void check_philox_normal(const Arg& key, int64_t counter, const Arg& stream, int64_t n) {
  const char* op = "philox_normal";
  check_vector(op, key, ScalarType::Long, 1);
  if (stream.dim != 1 || stream.dtype != ScalarType::Long || !stream.contiguous()) {
    fail(op, ": stream must be a contiguous int64 [B], ", got(stream));
  }
  check_counter(op, counter);
  if (n < 0 || n > 4 * kQuads) fail(op, ": n must lie in [0, ", 4 * kQuads, "], got ", n);
  check_placement(op, {&key, &stream}, {});
}

inline void check_philox_normal_(const Arg& out, const Arg& key, int64_t counter,
                                 const Arg& stream) {
  const char* op = "philox_normal_";
  if (out.dim != 2) fail(op, ": out must be [B, n], got ", out.dim, " dimensions");
  if (out.dtype != ScalarType::Float) {
    fail(op, ": out must be float32, got ", name_of(out.dtype));
  }
  check_vector(op, key, ScalarType::Long, 1);
  check_vector(op, stream, ScalarType::Long, out.sizes[0]);
  check_counter(op, counter);
  check_placement(op, {&out, &key, &stream}, {&out});
}

/// kRun fills `out` of checked arguments, on the device of that index.
template <void (*kRun)(const NormalArgs&, int32_t)>
struct PhiloxNormal {
  static Tensor functional(Tensor key, int64_t counter, Tensor stream, int64_t n) {
    const Arg key_arg("key", key), stream_arg("stream", stream);
    check_philox_normal(key_arg, counter, stream_arg, n);
    Tensor out = fresh(stream_arg, ScalarType::Float, stream_arg.sizes[0], n);
    run(Arg("out", out), key_arg, counter, stream_arg);
    return out;
  }

  static void in_place(Tensor out, Tensor key, int64_t counter, Tensor stream) {
    const Arg out_arg("out", out), key_arg("key", key), stream_arg("stream", stream);
    check_philox_normal_(out_arg, key_arg, counter, stream_arg);
    run(out_arg, key_arg, counter, stream_arg);
  }

 private:
  static void run(const Arg& out, const Arg& key, int64_t counter, const Arg& stream) {
    NormalArgs a{};
    a.B = out.sizes[0];
    a.d = out.sizes[1];
    a.address.key = pointer<int64_t>(key);
    a.address.stream = pointer<int64_t>(stream);
    a.address.counter = static_cast<uint32_t>(counter);
    a.out = output(out);
    kRun(a, out.device_index);
  }
};

}  // namespace ardiff
