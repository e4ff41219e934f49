// philox_normal on CUDA: fills a [B, n] tensor with addressed normals. A thread makes the four
// normals of one Philox quad and writes them in one 128-bit store; see layout.cuh for which quad.
// The arithmetic is csrc/math's, so the values are those of the CPU library to the bit.
#include "../launch.cuh"

namespace ardiff {
namespace {

struct NormalArgs {
  Layout layout;
  int64_t d;
  const int64_t* key;
  const int64_t* stream;
  uint32_t counter;
  Out out;
};

template <bool kVector>
struct NormalBody {
  ARDIFF_HD static void run(const NormalArgs& a, int64_t block, int thread) {
    const Place place = place_of(a.layout, block, thread);
    if (!place.inside) return;
    const NoiseAddress address = noise_address(a.key, a.stream[place.sample], a.counter);
    const Four<float> n = quad_normals(address, static_cast<uint32_t>(place.unit));
    const int64_t i = kUnit * place.unit;
    store<float, kVector>(a.out, place.sample, i, unit_length<kVector>(a.d, i), n);
  }
};

void fill(const Arg& out, const Arg& key, int64_t counter, const Arg& stream) {
  NormalArgs a;
  Operands operands(out.sizes[1]);
  a.layout = layout_of(out.sizes[0], out.sizes[1]);
  a.d = out.sizes[1];
  a.key = pointer<int64_t>(key);
  a.stream = pointer<int64_t>(stream);
  a.counter = static_cast<uint32_t>(counter);
  a.out = operands.out(out);
  if (operands.vector()) {
    launch<NormalBody<true>>(a, out.device_index);
  } else {
    launch<NormalBody<false>>(a, out.device_index);
  }
}

Tensor philox_normal(Tensor key, int64_t counter, Tensor stream, int64_t n) {
  const Arg key_arg("key", key), stream_arg("stream", stream);
  check_philox_normal(key_arg, counter, stream_arg, n);
  Tensor out = fresh(stream_arg, ScalarType::Float, stream_arg.sizes[0], n);
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

STABLE_TORCH_LIBRARY_IMPL(ARDIFF_CUDA_NAMESPACE, ARDIFF_CUDA_KEY, m) {
  m.impl("philox_normal", TORCH_BOX(&ardiff::philox_normal));
  m.impl("philox_normal_", TORCH_BOX(&ardiff::philox_normal_));
}
