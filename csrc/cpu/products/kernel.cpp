// Products with packed weights from values widened to float32. Each sum has eight parts, of the
// columns that are alike modulo 8, in ascending order, whatever the number of rows or the
// instruction set, as in head_step/product.h: both give the same bits. A lane is a row of the
// matrix, so that no sum crosses the lanes.
#include "tiling.h"

namespace ARDIFF_NS {
namespace {

constexpr int kParts = 8;                                   // of a sum
constexpr int kVectors = static_cast<int>(kPanel) / kLanes;  // of a panel
constexpr int kFewRows = 3;  // whose eight parts fit into the registers at once, or nearly
constexpr int64_t kAhead = 1024;  // words ahead of its use at which the matrix is asked for

template <class T>
constexpr int kColumns = 4 / static_cast<int>(sizeof(T));  // of a word

ARDIFF_INLINE VFloat column(VWord word, int, float) { return from_bits(word); }
ARDIFF_INLINE VFloat column(VWord word, int i, BFloat16) {
  return from_bits(i == 0 ? word << 16 : word & VWord(0xffff0000u));
}
ARDIFF_INLINE VFloat column(VWord word, int i, Int8) {
  return float_from_int(shift_signed(word << (24 - 8 * i), 24));
}

/// Sums of kRows rows with kCount vectors of rows of the matrix.
template <int kCount, int kRows, int kOf>
struct Sums {
  VFloat v[kOf][kRows][kCount];
};

/// Adds the columns whose number modulo 8 lies in [part, part + kOf). Vector v of the matrix
/// begins at w + (v / kVectors) panel + (v % kVectors) kLanes.
template <class T, int kCount, int kRows, int kOf>
ARDIFF_INLINE void add_parts(const uint32_t* w, int64_t panel, const float* x, int64_t x_stride,
                             int64_t columns, int part, Sums<kCount, kRows, kOf>& sums) {
  constexpr int kWords = kParts / kColumns<T>;
  const uint32_t* at = w + part / kColumns<T> * kPanel;
  for (int64_t k = part; k < columns; k += kParts, at += kWords * kPanel) {
#pragma GCC unroll 8
    for (int j = 0; j < kOf / kColumns<T>; ++j) {
      VWord words[kCount];
#pragma GCC unroll 16
      for (int v = 0; v < kCount; ++v) {
        const uint32_t* p = at + v / kVectors * panel + v % kVectors * kLanes + j * kPanel;
        if (v % kVectors == 0) __builtin_prefetch(p + kAhead);
        words[v] = load(p);
      }
#pragma GCC unroll 4
      for (int i = 0; i < kColumns<T>; ++i) {
        VFloat weight[kCount];
#pragma GCC unroll 16
        for (int v = 0; v < kCount; ++v) weight[v] = column(words[v], i, T());
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
          const VFloat value(x[r * x_stride + k + j * kColumns<T> + i]);
#pragma GCC unroll 16
          for (int v = 0; v < kCount; ++v) {
            VFloat& sum = sums.v[j * kColumns<T> + i][r][v];
            sum = fma(weight[v], value, sum);
          }
        }
      }
    }
  }
}

/// All columns of kRows rows with kCount vectors, kOf parts of the sums at a time.
template <class T, int kCount, int kRows, int kOf>
inline void multiply_tile(const uint32_t* w, int64_t panel, const float* x, int64_t x_stride,
                          int64_t columns, float* out, int64_t out_stride) {
  Sums<kCount, kRows, kOf> all[kParts / kOf];
  for (int i = 0; i < kParts / kOf; ++i) {
    Sums<kCount, kRows, kOf> sums;
    for (auto& part : sums.v) {
      for (auto& row : part) {
        for (VFloat& sum : row) sum = VFloat(0.0f);
      }
    }
    add_parts<T>(w, panel, x, x_stride, columns, i * kOf, sums);
    all[i] = sums;
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kCount; ++v) {
      const auto part = [&](int i) { return all[i / kOf].v[i % kOf][r][v]; };
      store(out + r * out_stride + v * kLanes, ((part(0) + part(1)) + (part(2) + part(3))) +
                                                   ((part(4) + part(5)) + (part(6) + part(7))));
    }
  }
}

/// How many panels a tile has, and how many parts of its sums are added up at a time, for as many
/// sums as there are registers: 24 of 32, or 12 of 16.
struct Shape {
  int panels, parts;
};
template <class T>
constexpr Shape shape_of(int rows) {
  if (kLanes == 16) {
    if (rows == 1) return {2, 8};
    if (rows <= kFewRows) return {1, 8};
    return {kColumns<T> == 1 ? 4 : kColumns<T> == 2 ? 2 : 1, kColumns<T>};
  }
  if (rows == 1) return {1, 4};
  return {1, kColumns<T>};
}
template <class T>
constexpr int most_rows() {
  return kLanes == 1 ? 1 : kLanes == 16 || kColumns<T> == 1 ? 6 : 3;
}

template <class T, int kMost>
void multiply_rows(const PackedMatrix& m, int64_t first, int64_t last, const float* x,
                   int64_t x_stride, int64_t rows, float* out, int64_t out_stride) {
  const int64_t panel = m.words_of_panel();
  // Panels outside: a tile's panels come from memory for the first group of rows alone.
  for_each_panels<4>(first, last, [&](auto panels, int64_t p) {
    for_each_group<kMost>(rows, [&](auto width, int64_t n) {
      constexpr int kRows = decltype(width)();
      constexpr Shape kShape = shape_of<T>(kRows);
      constexpr int kTile = kShape.panels < panels ? kShape.panels : panels;
      for (int i = 0; i < panels; i += kTile) {
        multiply_tile<T, kTile * kVectors, kRows, kShape.parts>(
            m.data + (p + i) * panel, panel, x + n * x_stride, x_stride, m.columns,
            out + n * out_stride + (p + i - first) * kPanel, out_stride);
      }
    });
  });
}

template <class T>
void multiply_of(const PackedMatrix& m, int64_t first, int64_t last, const PackedRows& rows,
                 int64_t count, float* out, int64_t out_stride) {
  const float* x = reinterpret_cast<const float*>(rows.data);
  const int64_t stride = rows.stride / static_cast<int64_t>(sizeof(float));
  const auto run = kLanes == 16 && count <= kFewRows ? multiply_rows<T, kLanes == 1 ? 1 : kFewRows>
                                                     : multiply_rows<T, most_rows<T>()>;
  run(m, first, last, x, stride, count, out, out_stride);
}

void multiply(const PackedMatrix& m, int64_t first, int64_t last, const PackedRows& rows,
              int64_t count, float* out, int64_t out_stride) {
  auto run = m.type == WeightType::float32    ? multiply_of<float>
             : m.type == WeightType::bfloat16 ? multiply_of<BFloat16>
                                              : multiply_of<Int8>;
  run(m, first, last, rows, count, out, out_stride);
}

int64_t row_bytes(WeightType, int64_t columns) { return 4 * columns; }

void pack_row(WeightType, const float* x, int64_t columns, const PackedRows& rows, int64_t index) {
  std::memcpy(rows.data + index * rows.stride, x, sizeof(float) * columns);
}

}  // namespace

extern const Products products;
const Products products{row_bytes, pack_row, multiply};

}  // namespace ARDIFF_NS
