// philox_normal on the CPU: checks, threads and registration;
// the kernel is kernel.cpp.
#include <torch/csrc/stable/library.h>

#include "../isa.h"
#include "../launch.h"

ARDIFF_DECLARE_KERNEL(philox_normal_tiles, NormalArgs)
ARDIFF_DECLARE_KERNEL(philox_words, WordsArgs)

namespace ardiff {
namespace {

void fill(const Arg& out, const Arg& key, int64_t counter, const Arg& stream) {
  NormalArgs a;
  a.B = out.sizes[0];
  a.d = out.sizes[1];
  a.tiling = tiling_of(a.B, a.d, 4);
  a.address.key = *static_cast<const uint64_t*>(key.tensor->const_data_ptr());
  a.address.stream = static_cast<const int64_t*>(stream.tensor->const_data_ptr());
  a.address.draw = {};
  a.address.counter = static_cast<uint32_t>(counter);
  a.out = output(out);
  run_tiles(philox_normal_tiles(), a);
}

Tensor philox_normal(Tensor key, int64_t counter, Tensor stream, int64_t n) {
  const Arg key_arg("key", key), stream_arg("stream", stream);
  check_philox_normal(key_arg, counter, stream_arg, n);
  Tensor out = empty_like(stream_arg, ScalarType::Float, stream_arg.sizes[0], n);
  fill(Arg("out", out), key_arg, counter, stream_arg);
  return out;
}

void philox_normal_(Tensor out, Tensor key, int64_t counter, Tensor stream) {
  const Arg out_arg("out", out), key_arg("key", key), stream_arg("stream", stream);
  check_philox_normal_(out_arg, key_arg, counter, stream_arg);
  fill(out_arg, key_arg, counter, stream_arg);
}

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ardiff, CPU, m) {
  m.impl("philox_normal", TORCH_BOX(&ardiff::philox_normal));
  m.impl("philox_normal_", TORCH_BOX(&ardiff::philox_normal_));
}

/// The words of quads [0, count) at an address, four a quad, by the instruction set in use.
extern "C" __attribute__((visibility("default"))) void ardiff_philox_words(
    int64_t key, uint32_t counter, int64_t stream, int64_t count, uint32_t* out) {
  ardiff::philox_words()({key, stream, counter, out}, 0, count);
}
