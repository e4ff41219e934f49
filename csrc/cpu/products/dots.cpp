// Products with bfloat16 and int8 packed weights by the CPU's own instructions: dot products of
// pairs and quadruples (VDPBF16PS, VPDPBUSD), under ARDIFF_TILES its matrix tiles (AMX), or their
// emulations. Rows of x are rounded first: to bfloat16, or to 16-bit integers with one scale per
// row, whose two digits are multiplied apart; sums of integers are exact.
#if defined(__GNUC__) && !defined(__clang__)
// The sums in flight and what they take leave no register to spare.
#pragma GCC optimize("no-schedule-insns")
#endif

#include "../dots.h"

#include "tiling.h"

#if defined(ARDIFF_TILES)
#include "tiles.h"
#endif

namespace ARDIFF_NS {
namespace {

constexpr float kDigit = 256.0f;        // of the higher digit
constexpr double kLargest = 127 * 256;  // what the largest element of a row becomes

int64_t row_bytes(WeightType, int64_t columns) { return 2 * columns; }

void round_to_bfloat16(const float* x, int64_t columns, char* to) {
  BFloat16* out = reinterpret_cast<BFloat16*>(to);
  for (int64_t k = 0; k < columns; k += kLanes) store(out + k, load(x + k));
}

/// The scale; a row that is not finite becomes zeros with scale NaN.
float round_to_digits(const float* x, int64_t columns, char* to) {
#if defined(ARDIFF_TILES)
  constexpr int32_t kSign = 0;
#else
  constexpr int32_t kSign = 0x80;  // the instruction takes them unsigned, with 128 added
#endif
  uint32_t most = 0;
  for (int64_t k = 0; k < columns; ++k) {
    const uint32_t magnitude = bits(x[k]) & 0x7fffffffu;
    most = magnitude > most ? magnitude : most;
  }
  const bool none = most == 0 || most >= 0x7f800000u;
  const double factor = none ? 0.0 : kLargest / from_bits(most);
  char *high = to, *low = to + columns;
  for (int64_t k = 0; k < columns; ++k) {
    const double y = none ? 0.0 : x[k] * factor;
    const int32_t q = static_cast<int32_t>(y < 0 ? y - 0.5 : y + 0.5), h = (q + 128) >> 8;
    high[k] = static_cast<char>(h ^ kSign);
    low[k] = static_cast<char>((q - 256 * h) ^ kSign);
  }
  if (most >= 0x7f800000u) return from_bits(0x7fc00000u);
  return static_cast<float>(from_bits(most) / kLargest);
}

void pack_row(WeightType type, const float* x, int64_t columns, const PackedRows& rows,
              int64_t index) {
  char* to = rows.data + index * rows.stride;
  if (type == WeightType::bfloat16) {
    round_to_bfloat16(x, columns, to);
  } else {
    rows.scale[index] = round_to_digits(x, columns, to);
  }
}

/// From the sums of both digits to float32.
template <class F, class U>
ARDIFF_INLINE F from_digits(U high, U low, float scale) {
  return fma(float_from_int(high), F(kDigit), float_from_int(low)) * F(scale);
}

#if defined(ARDIFF_TILES)

void multiply(const PackedMatrix& m, int64_t first, int64_t last, const PackedRows& rows,
              int64_t count, float* out, int64_t out_stride) {
  multiply_tiles(m, first, last, rows, count, out, out_stride, from_digits<float, uint32_t>);
}

#else

constexpr int kVectors = static_cast<int>(kPanel) / kLanes;  // of a panel
constexpr int64_t kAhead = 1024;  // words ahead of its use at which the matrix is asked for

/// Where vector v of a tile of panels lies at a word of its columns.
template <int kPanels>
ARDIFF_INLINE const uint32_t* vector_at(const uint32_t* w, int64_t panel, int v) {
  const uint32_t* p = w + v / kVectors * panel + v % kVectors * kLanes;
  if (v % kVectors == 0) __builtin_prefetch(p + kAhead);
  return p;
}

ARDIFF_INLINE uint32_t word_at(const char* row, int64_t word) {
  uint32_t x;
  std::memcpy(&x, row + 4 * word, sizeof x);
  return x;
}

/// kRows rows of bfloat16 with kPanels panels; a sum adds the pairs in ascending order.
template <int kPanels, int kRows>
void multiply_bfloat16(const uint32_t* w, int64_t panel, const PackedRows& rows, int64_t n,
                       float* out, int64_t out_stride) {
  constexpr int kCount = kPanels * kVectors;
  const char* x = rows.data + n * rows.stride;
  VFloat sum[kRows][kCount];
  for (auto& row : sum) {
    for (VFloat& s : row) s = VFloat(0.0f);
  }
  const int64_t words = panel / kPanel;
  for (int64_t k = 0; k < words; ++k, w += kPanel) {
    VWord weight[kCount];
#pragma GCC unroll 64
    for (int v = 0; v < kCount; ++v) weight[v] = load(vector_at<kPanels>(w, panel, v));
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const VWord value(word_at(x + r * rows.stride, k));
#pragma GCC unroll 64
      for (int v = 0; v < kCount; ++v) sum[r][v] = dot_pairs(weight[v], value, sum[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kCount; ++v) store(out + r * out_stride + v * kLanes, sum[r][v]);
  }
}

/// kRows rows of two int8 digits, each with 128 added, with kPanels panels. What the additions
/// bring, the same in all rows, the first group of rows sums up in `offset`.
template <int kPanels, int kRows, bool kFirst>
void multiply_int8(const uint32_t* w, int64_t panel, const PackedRows& rows, int64_t n,
                   VWord (&offset)[kPanels * kVectors], float* out, int64_t out_stride) {
  constexpr int kCount = kPanels * kVectors;
  const int64_t words = panel / kPanel;
  const char *high = rows.data + n * rows.stride, *low = high + 4 * words;
  VWord sum[kRows][2][kCount], added[kCount];
  for (auto& row : sum) {
    for (auto& digit : row) {
      for (VWord& s : digit) s = VWord(0u);
    }
  }
  for (VWord& s : added) s = VWord(0u);
  for (int64_t k = 0; k < words; ++k, w += kPanel) {
    VWord weight[kCount];
#pragma GCC unroll 64
    for (int v = 0; v < kCount; ++v) {
      weight[v] = load(vector_at<kPanels>(w, panel, v));
      if constexpr (kFirst) added[v] = dot_quads(VWord(0x80808080u), weight[v], added[v]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const VWord h(word_at(high + r * rows.stride, k)), l(word_at(low + r * rows.stride, k));
#pragma GCC unroll 64
      for (int v = 0; v < kCount; ++v) {
        sum[r][0][v] = dot_quads(h, weight[v], sum[r][0][v]);
        sum[r][1][v] = dot_quads(l, weight[v], sum[r][1][v]);
      }
    }
  }
  for (int v = 0; v < kCount; ++v) {
    if constexpr (kFirst) offset[v] = added[v];
    for (int r = 0; r < kRows; ++r) {
      store(out + r * out_stride + v * kLanes,
            from_digits<VFloat>(sum[r][0][v] - offset[v], sum[r][1][v] - offset[v],
                                rows.scale[n + r]));
    }
  }
}

/// All rows of int8 digits with kPanels panels, kMost at a time.
template <int kPanels, int kMost>
void multiply_all_int8(const uint32_t* w, int64_t panel, const PackedRows& rows, int64_t count,
                       float* out, int64_t out_stride) {
  VWord offset[kPanels * kVectors];
  for_each_group<kMost>(count, [&](auto width, int64_t n) {
    if (n == 0) {
      multiply_int8<kPanels, width, true>(w, panel, rows, n, offset, out, out_stride);
    } else {
      multiply_int8<kPanels, width, false>(w, panel, rows, n, offset, out + n * out_stride,
                                           out_stride);
    }
  });
}

void multiply(const PackedMatrix& m, int64_t first, int64_t last, const PackedRows& rows,
              int64_t count, float* out, int64_t out_stride) {
  const int64_t panel = m.words_of_panel();
  const bool half = m.type == WeightType::bfloat16;
  for_each_panels<4>(first, last, [&](auto panels, int64_t p) {
    const uint32_t* w = m.data + p * panel;
    float* to = out + (p - first) * kPanel;
    if (half) {
      for_each_group<6>(count, [&](auto width, int64_t n) {
        multiply_bfloat16<panels, width>(w, panel, rows, n, to + n * out_stride, out_stride);
      });
      return;
    }
    // With the weights, sums of 2 rows with 4 panels or of 6 with 2 fill the registers.
    if (count <= 2) return multiply_all_int8<panels, 2>(w, panel, rows, count, to, out_stride);
    constexpr int kTile = panels > 1 ? 2 : 1;
    for (int i = 0; i < panels; i += kTile) {
      multiply_all_int8<kTile, 6>(w + i * panel, panel, rows, count, to + i * kPanel, out_stride);
    }
  });
}

#endif

}  // namespace

extern const Products products;
const Products products{false, row_bytes, pack_row, multiply};

}  // namespace ARDIFF_NS
