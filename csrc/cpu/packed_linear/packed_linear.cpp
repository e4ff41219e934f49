// packed_linear on the CPU: registration; the kernel is kernel.cpp.
#include "../../torch/packed_linear.h"

#include "../../torch/choice.h"
#include "../isa.h"
#include "../products/products.h"
#include "launch.h"

ARDIFF_DECLARE_KERNEL(packed_linear_rows, PackedLinearArgs)
ARDIFF_DECLARE_KERNEL(packed_linear_tiles, PackedLinearArgs)

namespace ardiff {
namespace {

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

void run(const PackedLinearTensors& t, const PackedLinearOptions& o, void* out) {
  PackedLinearArgs a = args_of(t, o, out);
  std::unique_ptr<char[]> memory;
  make_room(a, memory);
  run_packed_linear(packed_linear_rows(), packed_linear_tiles(), a);
}

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ardiff, CPU, m) {
  ARDIFF_IMPL(m, "packed_linear", &ardiff::PackedLinear<ardiff::run>::functional);
}
