// What the torch side hands to the kernel of head_step: plain data.
#pragma once

#include <cstdint>

#include "../../math/head.h"
#include "../products/args.h"

namespace ardiff {

/// A layer: rows x columns, contiguous, or packed where `products` says how it is multiplied.
/// Absent bias and scale are null.
struct HeadMatrix {
  const void* data;
  const float *bias, *scale;
  int64_t rows, columns;
  WeightType type;
  const Products* products;

  PackedMatrix packed() const { return {static_cast<const uint32_t*>(data), columns, type}; }
};

/// A part of the step that threads share: tickets [begin, next phase's begin), each `share` rows of
/// the batch (norm, pack) or of the matrix. All of a phase is done before the next begins.
struct HeadPhase {
  HeadPart part;
  int64_t block;  // norm: of the final layer, depth
  int64_t begin, share;
};

/// Tickets taken and done, on cache lines of their own.
struct HeadTickets {
  alignas(64) int64_t taken;
  alignas(64) int64_t done;
};

struct HeadStepArgs {
  int64_t N, ways, R;  // R = ways N rows, way-major
  int64_t width, depth;
  bool rms_norm;  // else LayerNorm
  bool gated;     // SwiGLU, else SiLU
  float eps;
  const HeadMatrix* matrix;  // [2 depth + 2]
  const void* modulation;    // [modulation_rows, (3 depth + 2) width]
  bool modulation_bfloat16;
  int64_t modulation_rows;
  // Activations, the elements from the last column to the next multiple of 8 zero. y holds a norm's
  // result, then the sums of the layer that leads out of a block. The upper halves of a gated
  // layer's rows lie `half` elements on.
  float *x, *h, *y, *u, *out;
  // The rows of x, y and u rounded for packed matrices that read them so.
  PackedRows x_rows, y_rows, u_rows;
  int64_t x_stride, stride, u_stride, out_stride, half;
  const HeadPhase* phase;  // [phases + 1], the last one only to end the tickets
  int64_t phases;
  HeadTickets* tickets;
};

}  // namespace ardiff
