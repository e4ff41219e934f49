// packed_linear for one instruction set, but for its products; free of torch, built once for each.
#include <memory>

#include "../silu.h"
#include "../sums.h"
#include "args.h"

namespace ARDIFF_NS {
namespace {

constexpr int64_t kRowBlock = 96;  // rows of x whose sums stay in the second-level cache
constexpr int64_t kSumStride = kTileOuts + kPanel;

/// The sums of a tile: of all columns or, with SwiGLU, of the gate, and of those that it gates.
struct alignas(64) Sums {
  float first[kRowBlock * kSumStride], second[kRowBlock * kSumStride];
};

/// The sum of the squares of a row, in an order that only its length sets.
float sum_of_squares(const float* x, int64_t columns) {
  double all = 0.0;
  for (int64_t k = 0; k < columns; k += kChunk) {
    double chunk[1];
    sum_chunk<1>(
        smaller(kChunk, columns - k), [](auto) { return 0; },
        [&](int64_t i, auto lane, int, auto& acc) {
          const auto value = load_as<decltype(lane)>(x + k + i);
          acc[0] = fma(value, value, acc[0]);
        },
        chunk);
    all += chunk[0];
  }
  return static_cast<float>(all);
}

/// Row n of x as float32 in `row`, whose elements behind the last column are zero; normed.
template <class T>
void read_row(const PackedLinearArgs& a, int64_t n, float* row) {
  const T* x = static_cast<const T*>(a.x) + n * a.x_stride;
  for_each_lane(a.columns,
                [&](int64_t i, auto lane) { store_as(row + i, load_as<decltype(lane)>(x + i)); });
  if (!a.norm) return;
  const float mean = sum_of_squares(row, a.columns) / static_cast<float>(a.columns);
  const float factor = 1.0f / sqrt(mean + a.eps);
  for_each_lane(a.columns, [&](int64_t i, auto lane) {
    using F = decltype(lane);
    store_as(row + i, load_as<F>(row + i) * F(factor) * load_as<F>(a.norm + i));
  });
}

/// The sums at columns [begin, end) of the matrix's rows, times scale, plus bias.
template <class F>
ARDIFF_INLINE F with_bias(const PackedLinearArgs& a, const float* sum, int64_t row) {
  F x = load_as<F>(sum);
  if (a.scale) x = x * load_as<F>(a.scale + row);
  return a.bias ? x + load_as<F>(a.bias + row) : x;
}

/// Columns [begin, begin + count) of row n of the result, from its sums.
template <class T>
void write_row(const PackedLinearArgs& a, int64_t n, int64_t begin, int64_t count,
               const float* first, const float* second) {
  const float* gate = a.gate ? a.gate + n * a.gate_stride + begin : nullptr;
  const T* residual =
      a.residual ? static_cast<const T*>(a.residual) + n * a.residual_stride + begin : nullptr;
  T* out = static_cast<T*>(a.out) + n * a.outs + begin;
  for_each_lane(count, [&](int64_t i, auto lane) {
    using F = decltype(lane);
    F y = with_bias<F>(a, first + i, begin + i);
    if (a.activation != Activation::none) y = silu(y);
    if (a.activation == Activation::swiglu) y = y * with_bias<F>(a, second + i, a.outs + begin + i);
    if (gate) y = y * load_as<F>(gate + i);
    if (residual) y = y + load_as<F>(residual + i);
    store_as(out + i, y);
  });
}

/// Sums of the matrix's rows [begin, begin + count) with rows [n, n + rows) of x; returns where
/// those of the first row lie, since a panel may begin before.
const float* multiply(const PackedLinearArgs& a, int64_t begin, int64_t count, int64_t n,
                      int64_t rows, float* sums) {
  const int64_t first = begin / kPanel, last = (begin + count + kPanel - 1) / kPanel;
  PackedRows packed = a.packed;
  packed.data += n * packed.stride;
  if (packed.scale) packed.scale += n;
  a.products->multiply(a.matrix, first, last, packed, rows, sums, kSumStride);
  return sums + begin % kPanel;
}

}  // namespace

/// Norms and packs rows [first, last) of x.
void packed_linear_rows(const PackedLinearArgs& a, int64_t first, int64_t last) {
  constexpr int64_t kFew = 4096;  // columns of a row on the stack
  alignas(64) float few[kFew];
  std::unique_ptr<float[]> many;
  float* row = few;
  if (a.matrix.columns > kFew) {
    many.reset(new float[a.matrix.columns]);
    row = many.get();
  }
  std::memset(row + a.columns, 0, sizeof(float) * (a.matrix.columns - a.columns));
  for (int64_t n = first; n < last; ++n) {
    if (a.bfloat16) {
      read_row<BFloat16>(a, n, row);
    } else {
      read_row<float>(a, n, row);
    }
    a.products->pack_row(a.matrix.type, row, a.matrix.columns, a.packed, n);
  }
}

/// Tiles [first, last) of the result.
void packed_linear_tiles(const PackedLinearArgs& a, int64_t first, int64_t last) {
  Sums sums;
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t begin = tile * kTileOuts, count = smaller(kTileOuts, a.outs - begin);
    for (int64_t n = 0; n < a.N; n += kRowBlock) {
      const int64_t rows = smaller(kRowBlock, a.N - n);
      const float* one = multiply(a, begin, count, n, rows, sums.first);
      const float* other = sums.second;
      if (a.activation == Activation::swiglu) {
        other = multiply(a, a.outs + begin, count, n, rows, sums.second);
      }
      for (int64_t r = 0; r < rows; ++r) {
        const float *x = one + r * kSumStride, *y = other + r * kSumStride;
        if (a.bfloat16) {
          write_row<BFloat16>(a, n + r, begin, count, x, y);
        } else {
          write_row<float>(a, n + r, begin, count, x, y);
        }
      }
    }
  }
}

}  // namespace ARDIFF_NS
