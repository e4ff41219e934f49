// packed_linear on CUDA: one launch up to 1,024 columns (float32: 512), two and a workspace with
// more; nothing waits for the device, so it can be captured.
//
// Made for few rows, where the time is that of reading the weights: up to 8 rows, or as many as a
// block keeps (bfloat16: 32, int8: 16), they are read once. 16 warps of two blocks then have 64 KiB
// of bfloat16 weights on their way to a multiprocessor. More rows pass in tiles of that size, whose
// blocks run side by side, so that the second-level cache serves all but one of them.
#include <algorithm>

#include "../../torch/operands.h"
#include "../../torch/packed_linear.h"
#include "../launch_phases.cuh"
#include "kernel.cuh"

namespace ardiff {
namespace {

constexpr int64_t kWorkspace = int64_t{1} << 24;  // float32; larger batches go part by part

/// Multiplies all rows of a launch.
template <class W, int kTiles>
void multiply(LinearArgs& a, int32_t device) {
  using Body = LinearBody<W, kTiles>;
  a.tiles = (a.rows + Body::kRows - 1) / Body::kRows;
  const int64_t enough = int64_t{2} * multiprocessors_of(device);
  const int64_t most = Body::kSlots / a.halves, each = a.tasks * a.ranges * a.tiles / enough;
  a.tasks_of_block = static_cast<int>(std::clamp<int64_t>(each, 1, most));
  const int64_t groups = (a.tasks + a.tasks_of_block - 1) / a.tasks_of_block;
  launch_blocks<Body>(a, groups * a.ranges * a.tiles, device);
}

template <class W>
void launch(LinearArgs& a, const Arg& x) {
  const int64_t rows = x.sizes[0], panels = a.width / kPanelWidth;
  const int32_t device = x.device_index;
  const bool gated = a.activation == LinearActivation::swiglu;
  const int64_t ranges = (a.columns + kRangeColumns<W> - 1) / kRangeColumns<W>;
  a.ranges = static_cast<int>(ranges);
  const bool alone = a.ranges == 1 && (!gated || a.outs % kPanelWidth == 0);
  a.halves = alone && gated ? 2 : 1;
  a.tasks = panels / a.halves;
  Tensor workspace;
  int64_t part = rows;
  if (!alone) {
    part = std::clamp<int64_t>(kWorkspace / (ranges * a.width), 1, rows);
    const int64_t size = part * ranges * a.width;
    workspace = fresh_tensor(x, ScalarType::Float, 1, &size);
    a.partial = static_cast<float*>(workspace.mutable_data_ptr());
#ifndef __CUDACC__
    std::fill(a.partial, a.partial + size, NAN);
#endif
  }
  for (a.first_row = 0; a.first_row < rows; a.first_row += part) {
    a.rows = std::min(part, rows - a.first_row);
    if constexpr (std::is_same_v<W, float>) {
      multiply<W, 1>(a, device);
    } else if (a.rows <= kTileRows) {
      multiply<W, 1>(a, device);
    } else {
      multiply<W, std::is_same_v<W, Int8> ? 2 : 4>(a, device);
    }
    if (!alone) launch_blocks<FinishBody>(a, a.rows * FinishBody::blocks_of_row(a), device);
  }
}

void run(const PackedLinearTensors& t, const PackedLinearOptions& o, void* out) {
  constexpr int64_t kMostColumns = int64_t{1} << 30;
  if (t.x.sizes[1] > kMostColumns) {
    fail("packed_linear: the CUDA kernel takes at most ", kMostColumns, " columns, got ",
         t.x.sizes[1]);
  }
  if (reinterpret_cast<uintptr_t>(t.weight.address()) % 16) {
    fail(
        "packed_linear: the CUDA kernel takes a weight that begins at a multiple of 16 bytes; "
        "call weight.clone() first");
  }
  LinearArgs a{};
  a.weight = static_cast<const char*>(t.weight.address());
  a.words = t.weight.sizes[1];
  a.width = t.weight.sizes[0] * kPanelWidth;
  a.columns = t.x.sizes[1];
  a.x = input(t.x);
  const int64_t bytes = kUnit * size_of(a.x.type);
  a.x_vector = a.columns % kUnit == 0 && a.x.stride % kUnit == 0 &&
               reinterpret_cast<uintptr_t>(a.x.data) % bytes == 0;
  a.norm = pointer<float>(t.norm);
  a.scale = pointer<float>(t.scale);
  a.bias = pointer<float>(t.bias);
  a.eps = static_cast<float>(o.eps);
  a.gate = pointer<float>(t.gate);
  a.gate_stride = t.gate.given() ? t.gate.row_stride() : 0;
  a.residual = input(t.residual);
  a.out = out;
  a.activation = o.swiglu()               ? LinearActivation::swiglu
                 : o.activation == "silu" ? LinearActivation::silu
                                          : LinearActivation::none;
  a.outs = o.outputs();
  if (t.weight.dtype == ScalarType::Float) return launch<float>(a, t.x);
  if (t.weight.dtype == ScalarType::BFloat16) return launch<BFloat16>(a, t.x);
  launch<Int8>(a, t.x);
}

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ARDIFF_CUDA_NAMESPACE, ARDIFF_CUDA_KEY, m) {
  ARDIFF_IMPL(m, "packed_linear", &ardiff::PackedLinear<ardiff::run>::functional);
}
