// brownian_increment as torch calls it, on every backend: arguments, checks, both forms.
#pragma once

#include "../math/step_args.h"
#include "checks.h"
#include "operands.h"

namespace ardiff {

inline void check_brownian_increment(const Arg& key, const Arg& stream, const Arg& start,
                                     const Arg& end, int64_t d) {
  const char* op = "brownian_increment";
  check_vector(op, key, ScalarType::Long, 1);
  if (stream.dim != 1 || stream.dtype != ScalarType::Long || !stream.contiguous()) {
    fail(op, ": stream must be a contiguous int64 [B], ", got(stream));
  }
  for (const Arg* time : {&start, &end}) {
    check_vector(op, *time, ScalarType::Float, stream.sizes[0], 1);
  }
  if (d < 0 || d > 4 * kQuads) fail(op, ": d must lie in [0, ", 4 * kQuads, "], got ", d);
  check_placement(op, {&key, &stream, &start, &end}, {});
}

inline void check_brownian_increment_(const Arg& out, const Arg& key, const Arg& stream,
                                      const Arg& start, const Arg& end) {
  const char* op = "brownian_increment_";
  if (out.dim != 2) fail(op, ": out must be [B, d], got ", out.dim, " dimensions");
  if (out.dtype != ScalarType::Float) {
    fail(op, ": out must be float32, got ", name_of(out.dtype));
  }
  check_vector(op, key, ScalarType::Long, 1);
  check_vector(op, stream, ScalarType::Long, out.sizes[0]);
  for (const Arg* time : {&start, &end}) {
    check_vector(op, *time, ScalarType::Float, out.sizes[0], 1);
  }
  check_placement(op, {&out, &key, &stream, &start, &end}, {&out});
}

/// kRun fills `out` of checked arguments, on the device of that index.
template <void (*kRun)(const IncrementArgs&, int32_t)>
struct BrownianIncrement {
  static Tensor functional(Tensor key, Tensor stream, Tensor start, Tensor end, int64_t d) {
    const Arg key_arg("key", key), stream_arg("stream", stream);
    const Arg start_arg("start", start), end_arg("end", end);
    check_brownian_increment(key_arg, stream_arg, start_arg, end_arg, d);
    Tensor out = fresh(stream_arg, ScalarType::Float, stream_arg.sizes[0], d);
    run(Arg("out", out), key_arg, stream_arg, start_arg, end_arg);
    return out;
  }

  static void in_place(Tensor out, Tensor key, Tensor stream, Tensor start, Tensor end) {
    const Arg out_arg("out", out), key_arg("key", key), stream_arg("stream", stream);
    const Arg start_arg("start", start), end_arg("end", end);
    check_brownian_increment_(out_arg, key_arg, stream_arg, start_arg, end_arg);
    run(out_arg, key_arg, stream_arg, start_arg, end_arg);
  }

 private:
  static void run(const Arg& out, const Arg& key, const Arg& stream, const Arg& start,
                  const Arg& end) {
    IncrementArgs a{};
    a.B = out.sizes[0];
    a.d = out.sizes[1];
    a.address.key = pointer<int64_t>(key);
    a.address.stream = pointer<int64_t>(stream);
    a.start = per_sample<float>(start);
    a.end = per_sample<float>(end);
    a.out = output(out);
    kRun(a, out.device_index);
  }
};

}  // namespace ardiff
