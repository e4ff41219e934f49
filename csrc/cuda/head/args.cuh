// What the head's kernels are given, and how its work and memory are laid out; free of torch.
//
// Four neighbouring rows of a matrix are a group, the least that a block of threads owns: block b
// has groups b, b + blocks, ... of every matrix. The columns are cut into slices of 512 bytes, 16 a
// lane. A warp makes the partial sums of one group over one slice for four rows of activations at a
// time; then a thread adds an element's slices in ascending order. So the order of a sum is that of
// its columns alone: no number of rows, blocks or threads changes a bit.
#pragma once

#include <type_traits>

#include "../../math/head.h"
#include "../phases.cuh"
#include "../unit.cuh"

namespace ardiff {

using HeadTeam = Team<256>;

constexpr int kGroupRows = 4;
constexpr int kRowsAtOnce = 4;  // of activations, in registers
static_assert(kGroupRows * kRowsAtOnce == kSums && kGroupRows == kUnit);
constexpr int kLaneBytes = 16;
constexpr int kMostLayers = 64;
constexpr int kMostTile = 16;       // rows of activations in shared memory
constexpr int kPartialSums = 4096;  // floats, unless one group needs more

/// The columns of a slice.
template <class W>
constexpr int kSlice = kLanes * kLaneBytes / static_cast<int>(sizeof(W));  // 128, 256 or 512

struct HeadLayer {
  const void* data;
  const float *bias, *scale;  // null: none
  int rows, columns;
  int slice;     // columns of one; 128 where the matrix is float32
  bool vector;   // rows begin on 16 bytes
  int resident;  // where the block keeps its rows in shared memory, in bytes; -1: nowhere
};

struct HeadSolver {
  int steps, sets;
  const int32_t *set, *op;  // [steps]; op null: all diffusion
  const float* coef;        // [steps, 20]
  PerSample<int32_t> draw;
  const int64_t *key, *stream;
  PerSample<float> guidance, guidance2, noise_scale;
  In given[kStates];
  Out result[kStates];  // absent: no velocity
  float* kept[2];       // [kStates, N, d] each, written in turn
};

struct HeadArgs {
  int N, ways, R;  // R = ways N rows, way-major
  int width, depth, inputs, outs;
  bool rms_norm, gated;
  float eps;
  HeadLayer layer[kMostLayers];
  const void* modulation;  // the set's, or the first of all sets
  bool modulation_bfloat16, modulation_vector;
  int modulation_rows;
  In x;
  float *h, *u, *out;  // [R, stride]
  int h_stride, u_stride, out_stride;
  int tile;  // rows of activations in shared memory, `tile_stride` floats each
  int tile_stride;
  int partial_sums;  // floats of shared memory behind them
  int64_t resident_bytes;
  HeadSolver solver;

  ARDIFF_HD int layers() const { return 2 * depth + 2; }
  ARDIFF_HD int64_t modulation_columns() const {
    return static_cast<int64_t>(3 * depth + 2) * width;
  }
};

ARDIFF_HD HeadPart part_of(const HeadArgs& a, int layer) {
  if (layer == 0) return HeadPart::input;
  if (layer == a.layers() - 1) return HeadPart::last;
  return layer % 2 ? HeadPart::inner : HeadPart::outer;
}

/// Matrix rows that lie apart and are used together: gate and up.
ARDIFF_HD int halves_of(const HeadArgs& a, int layer) {
  return a.gated && part_of(a, layer) == HeadPart::inner ? 2 : 1;
}

ARDIFF_HD int quotient_up(int a, int b) { return (a + b - 1) / b; }

ARDIFF_HD int groups_of(const HeadArgs& a, int layer) {
  return quotient_up(a.layer[layer].rows / halves_of(a, layer), kGroupRows);
}

/// How many of `groups` a block owns.
ARDIFF_HD int groups_of_block(int groups, int block, int blocks) {
  return block < groups ? quotient_up(groups - block, blocks) : 0;
}

ARDIFF_HD int slices_of(const HeadLayer& l) { return quotient_up(l.columns, l.slice); }

/// Bytes of a layer's rows that a block keeps; the same for all blocks.
inline int64_t bytes_of_block(const HeadArgs& a, int layer, int blocks) {
  const HeadLayer& l = a.layer[layer];
  const int64_t rows = static_cast<int64_t>(groups_of_block(groups_of(a, layer), 0, blocks)) *
                       halves_of(a, layer) * kGroupRows;
  return rows * l.columns * (kLaneBytes * kLanes / l.slice);
}

/// Blocks that have work in some layer, of at most `most`.
inline int blocks_of(const HeadArgs& a, int most) {
  int groups = 1;
  for (int i = 0; i < a.layers(); ++i) {
    const int here = groups_of(a, i);
    groups = here > groups ? here : groups;
  }
  return groups < most ? groups : most;
}

/// Divides `bytes` of shared memory: rows of activations, partial sums and, with `keep_weights`,
/// the block's rows of as many matrices as fit. Returns the bytes used; 0 where a row does not fit.
inline int64_t divide_memory(HeadArgs& a, int64_t bytes, int blocks, bool keep_weights) {
  const int64_t size = sizeof(float);
  int longest = 0, partial = 0;
  for (int i = 0; i < a.layers(); ++i) {
    HeadLayer& l = a.layer[i];
    l.resident = -1;
    const int padded = slices_of(l) * l.slice;
    longest = padded > longest ? padded : longest;
    const int group = slices_of(l) * halves_of(a, i) * kGroupRows;
    partial = group > partial ? group : partial;
  }
  a.tile_stride = longest;
  const auto partials = [&](int tile) {
    const int64_t least = static_cast<int64_t>(partial) * tile;
    const int64_t most = keep_weights ? kPartialSums / 8 : kPartialSums;
    return least > most ? least : most;
  };
  const auto need = [&](int tile) { return size * (tile * int64_t{longest} + partials(tile)); };
  const int limit = keep_weights ? kMostTile / 2 : kMostTile;
  a.tile = a.R < limit ? a.R : limit;
  while (a.tile > 1 && need(a.tile) > bytes) --a.tile;
  if (need(a.tile) > bytes) return 0;
  a.partial_sums = static_cast<int>(partials(a.tile));
  a.resident_bytes = 0;
  for (int i = 1; keep_weights && i < a.layers(); ++i) {
    const int64_t kept = bytes_of_block(a, i, blocks);
    if (!a.layer[i].vector || need(a.tile) + a.resident_bytes + kept > bytes) continue;
    a.layer[i].resident = static_cast<int>(a.resident_bytes);
    a.resident_bytes += kept;
  }
  return need(a.tile) + a.resident_bytes;
}

}  // namespace ardiff
