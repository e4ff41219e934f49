// packed_linear on the CPU: registration and the division of work; the kernel is kernel.cpp.
#include "../../torch/packed_linear.h"

#include <memory>

#include "../../torch/choice.h"
#include "../launch.h"
#include "../products/products.h"
#include "../shares.h"
#include "args.h"

ARDIFF_DECLARE_KERNEL(packed_linear_rows, PackedLinearArgs)
ARDIFF_DECLARE_KERNEL(packed_linear_tiles, PackedLinearArgs)

namespace ardiff {
namespace {

constexpr int64_t kLine = 64;  // bytes

const float* floats_of(const Arg& a) { return static_cast<const float*>(a.address()); }

PackedLinearArgs args_of(const PackedLinearTensors& t, const PackedLinearOptions& o, void* out) {
  PackedLinearArgs a{};
  a.N = t.x.sizes[0];
  a.columns = t.x.sizes[1];
  a.rows = o.rows;
  a.outs = o.outputs();
  a.bfloat16 = t.x.dtype == ScalarType::BFloat16;
  a.x = t.x.address();
  a.x_stride = t.x.row_stride();
  a.scale = floats_of(t.scale);
  a.bias = floats_of(t.bias);
  a.norm = floats_of(t.norm);
  a.eps = static_cast<float>(o.eps);
  a.activation = o.swiglu()               ? Activation::swiglu
                 : o.activation == "silu" ? Activation::silu
                                          : Activation::none;
  a.gate = floats_of(t.gate);
  a.gate_stride = t.gate.given() ? t.gate.row_stride() : 0;
  a.residual = t.residual.address();
  a.residual_stride = t.residual.given() ? t.residual.row_stride() : 0;
  a.out = out;
  const WeightType type = t.weight.dtype == ScalarType::Float      ? WeightType::float32
                          : t.weight.dtype == ScalarType::BFloat16 ? WeightType::bfloat16
                                                                   : WeightType::int8;
  a.matrix = {static_cast<const uint32_t*>(t.weight.address()), padded_columns(type, a.columns),
              type};
  a.products = &products_of(type, a.matrix.columns);
  return a;
}

/// Rows of whole cache lines, and one line more, so that rows do not meet in the same sets of a
/// cache; then the scales.
void make_room(PackedLinearArgs& a, std::unique_ptr<char[]>& memory) {
  const int64_t bytes = a.products->row_bytes(a.matrix.type, a.matrix.columns);
  const int64_t stride = (bytes + kLine - 1) / kLine * kLine + kLine;
  memory.reset(new char[a.N * (stride + static_cast<int64_t>(sizeof(float))) + kLine]);
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory.get());
  a.packed.data = memory.get() + (kLine - address % kLine) % kLine;
  a.packed.stride = stride;
  a.packed.scale = reinterpret_cast<float*>(a.packed.data + a.N * stride);
}

void run(const PackedLinearTensors& t, const PackedLinearOptions& o, void* out) {
  constexpr int64_t kWorkOfThread = 1 << 16;  // products
  constexpr int64_t kElementsOfThread = 1 << 15;
  PackedLinearArgs a = args_of(t, o, out);
  std::unique_ptr<char[]> memory;
  make_room(a, memory);
  const int64_t available = torch::stable::get_num_threads();
  const auto rows = packed_linear_rows();
  const int64_t packers = std::min({available, a.N, a.N * a.columns / kElementsOfThread});
  if (packers <= 1) {
    rows(a, 0, a.N);
  } else {
    torch::stable::parallel_for(0, packers, 1, [&](int64_t first, int64_t last) {
      rows(a, a.N * first / packers, a.N * last / packers);
    });
  }
  const auto tiles = packed_linear_tiles();
  const int64_t count = (a.outs + kTileOuts - 1) / kTileOuts;
  const int64_t work = a.N * a.rows * a.columns;
  const int64_t threads = std::min({available, count, work / kWorkOfThread});
  if (threads <= 1) return tiles(a, 0, count);
  Shares shares(count, threads);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t thread = first; thread < last; ++thread) {
      shares.run(thread, [&](int64_t from, int64_t to) { tiles(a, from, to); });
    }
  });
}

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ardiff, CPU, m) {
  ARDIFF_IMPL(m, "packed_linear", &ardiff::PackedLinear<ardiff::run>::functional);
}
