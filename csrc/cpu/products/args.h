// Products of rows with a packed matrix, as the kernels take them: plain data. The packed form is
// that of ardiff_kernels/ops/packed_linear/packing.py.
#pragma once

#include <cstdint>

namespace ardiff {

enum class WeightType { float32, bfloat16, int8 };

constexpr int64_t kPanel = 16;  // rows of the matrix that lie side by side

/// Columns to a 32-bit word, and to which a row is padded.
constexpr int64_t columns_of_word(WeightType type) {
  return type == WeightType::float32 ? 1 : type == WeightType::bfloat16 ? 2 : 4;
}
constexpr int64_t padded_columns(WeightType type, int64_t columns) {
  const int64_t step = type == WeightType::float32 ? 8 : 16 * columns_of_word(type);
  return (columns + step - 1) / step * step;
}

struct PackedMatrix {
  const uint32_t* data;
  int64_t columns;  // padded
  WeightType type;

  int64_t words_of_panel() const { return columns / columns_of_word(type) * kPanel; }
};

/// Rows as a way of multiplying reads them: float32; or bfloat16; or two int8 digits of each
/// element, those of lower value `columns` bytes behind the others, and a scale per row.
struct PackedRows {
  char* data;
  int64_t stride;  // bytes
  float* scale;
};

/// One way of multiplying.
struct Products {
  bool floats;  // packed rows are float32 rows as they are
  /// Bytes of a packed row.
  int64_t (*row_bytes)(WeightType, int64_t columns);
  /// Packs a row: `columns` elements, a whole number of steps, to row `index`.
  void (*pack_row)(WeightType, const float* x, int64_t columns, const PackedRows&, int64_t index);
  /// out[n, o - 16 first] = rows[n] . matrix[o] of panels [first, last), without the matrix's
  /// scale. A result's bits depend on its row of each alone.
  void (*multiply)(const PackedMatrix&, int64_t first, int64_t last, const PackedRows&,
                   int64_t rows, float* out, int64_t out_stride);
};

}  // namespace ardiff
