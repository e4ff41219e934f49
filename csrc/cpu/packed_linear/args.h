// What the torch side hands to the kernels of packed_linear: plain data.
#pragma once

#include "../products/args.h"

namespace ardiff {

enum class Activation { none, silu, swiglu };

constexpr int64_t kTileOuts = 64;  // columns of the result in a tile

/// A tile is kTileOuts columns of the result, of all rows.
struct PackedLinearArgs {
  int64_t N, columns, rows;  // rows of x, columns and rows of the matrix
  int64_t outs;              // columns of the result
  bool bfloat16;             // x, residual and out, else float32
  const void* x;
  int64_t x_stride;
  const float *scale, *bias, *norm;  // null: not given, as gate and residual
  float eps;
  Activation activation;
  const float* gate;
  int64_t gate_stride;  // 0: shared
  const void* residual;
  int64_t residual_stride;
  void* out;
  PackedMatrix matrix;
  const Products* products;
  PackedRows packed;  // room for the rows of x
};

}  // namespace ardiff
