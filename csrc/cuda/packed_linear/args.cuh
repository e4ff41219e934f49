// What the kernels of packed_linear are given, and how its work is divided; free of torch.
//
// The columns are cut into slices, one for each warp of a block, and eight slices are a range. A
// block takes some panels of the matrix over one range, for some rows of x: of a matrix of one
// range it finishes the result, else it leaves partial sums, which a second kernel adds. A sum is
// one over each slice, then over the slices of a range, then over ranges, always in ascending
// order. So its order is that of its columns alone: no number of rows, blocks or threads changes a
// bit.
#pragma once

#include "../phases.cuh"
#include "../unit.cuh"

namespace ardiff {

constexpr int kPanelWidth = 16;  // rows of the matrix that lie side by side in a panel
constexpr int kWordBytes = kPanelWidth * 4;
constexpr int kSliceWarps = 8;
constexpr int kTileRows = 8;   // rows of x that the matrix units take at once
constexpr int kSteps = 8;      // of a slice
constexpr int kSumPitch = 20;  // floats from row to row of sums: fewer lanes meet in a bank

/// Words of a slice and its columns.
template <class W>
constexpr int kSliceWords = std::is_same_v<W, Int8> ? 32 : 64;
template <class W>
constexpr int kSliceColumns = kSliceWords<W> * 4 / static_cast<int>(sizeof(W));
template <class W>
constexpr int kRangeColumns = kSliceColumns<W> * kSliceWarps;

enum class LinearActivation { none, silu, swiglu };

struct LinearArgs {
  const char* weight;
  int64_t words;  // of a row of the matrix
  int64_t columns;
  In x;
  bool x_vector;  // four elements at a time
  const float *norm, *scale, *bias;
  float eps;
  const float* gate;  // [N, outs]; stride 0: one row for all
  int64_t gate_stride;
  In residual;
  void* out;  // [N, outs] in the type of x
  LinearActivation activation;
  int64_t outs;
  int64_t first_row, rows;  // of x, in this launch
  int64_t tiles;            // blocks that share these rows
  int ranges;
  int halves;     // panels that are finished together: gate and up
  int64_t tasks;  // such groups of panels
  int tasks_of_block;
  float* partial;  // [ranges, rows, width]; null: a block finishes its sums
  int64_t width;   // rows of all panels
};

ARDIFF_HD bool has_norm(const LinearArgs& a) { return a.norm != nullptr; }

/// Elements [i, i + 4) of a row of x; zeros behind its end.
ARDIFF_DEVICE Four<float> x_four(const LinearArgs& a, int64_t row, int64_t i) {
  const int64_t left = a.columns - i;
  if (left <= 0) return {};
  const int n = left < kUnit ? static_cast<int>(left) : static_cast<int>(kUnit);
  if (a.x.type == Type::bfloat16) {
    return widened(a.x_vector ? load<BFloat16, true>(a.x, row, i, n)
                              : load<BFloat16, false>(a.x, row, i, n));
  }
  return a.x_vector ? load<float, true>(a.x, row, i, n) : load<float, false>(a.x, row, i, n);
}

}  // namespace ardiff
