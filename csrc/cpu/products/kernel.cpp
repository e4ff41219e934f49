// Products with packed weights from values widened to float32. Each sum has eight parts, of the
// columns that are alike modulo 8, in ascending order, whatever the number of rows or the
// instruction set, as in head_step/product.h: both give the same bits. A lane is a row of the
// matrix, so that no sum crosses the lanes.
#if defined(__GNUC__) && !defined(__clang__)
// The sums in flight and what they take leave no register to spare.
#pragma GCC optimize("no-schedule-insns")
#endif

#include "tiling.h"

namespace ARDIFF_NS {
namespace {

constexpr int kParts = 8;                                    // of a sum
constexpr int kVectors = static_cast<int>(kPanel) / kLanes;  // of a panel
constexpr int kFewRows = kLanes == 16 ? 3 : 1;  // all parts of whose sums fit into the registers
constexpr int64_t kAhead = 1024;  // words ahead of its use at which a streamed matrix is asked for
// Up to which the matrix is read as it comes from memory.
constexpr int kStreamedRows = kLanes == 16 ? 8 : kLanes == 8 ? 4 : 0;
constexpr int64_t kStreamed = 128;  // columns of it at a time
constexpr int64_t kBlock = 256;     // columns whose weights are in the cache for all rows
constexpr int64_t kRowBlock = 32;   // rows whose parts are in the cache for all columns
constexpr int kMostPanels = 4;      // of a tile

template <class T>
constexpr int kColumns = 4 / static_cast<int>(sizeof(T));  // of a word

ARDIFF_INLINE VFloat column(VWord word, int, float) { return from_bits(word); }
ARDIFF_INLINE VFloat column(VWord word, int i, BFloat16) {
  return from_bits(i == 0 ? word << 16 : word & VWord(0xffff0000u));
}
ARDIFF_INLINE VFloat column(VWord word, int i, Int8) {
  return float_from_int(shift_signed(word << (24 - 8 * i), 24));
}

/// kOf parts of the sums of kRows rows with kCount vectors of rows of the matrix.
template <int kCount, int kRows, int kOf>
struct Sums {
  VFloat v[kOf][kRows][kCount];
};

/// Adds the columns below `columns` whose number modulo 8 lies in [part, part + kOf). Vector v of
/// the matrix begins at w + (v / kVectors) panel + (v % kVectors) kLanes. The matrix is asked for
/// `ahead` words before its use.
template <class T, int kCount, int kRows, int kOf>
ARDIFF_INLINE void add_parts(const uint32_t* w, int64_t panel, int64_t ahead, const float* x,
                             int64_t x_stride, int64_t columns, int part,
                             Sums<kCount, kRows, kOf>& sums) {
  constexpr int kWords = kParts / kColumns<T>;
  const uint32_t* at = w + part / kColumns<T> * kPanel;
  for (int64_t k = part; k < columns; k += kParts, at += kWords * kPanel) {
#pragma GCC unroll 8
    for (int j = 0; j < kOf / kColumns<T>; ++j) {
      VWord words[kCount];
#pragma GCC unroll 16
      for (int v = 0; v < kCount; ++v) {
        const uint32_t* p = at + v / kVectors * panel + v % kVectors * kLanes + j * kPanel;
        if (v % kVectors == 0) __builtin_prefetch(p + ahead);
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

/// The sum of eight parts; `part(i)` gives them.
template <class Part>
ARDIFF_INLINE VFloat total(Part part) {
  return ((part(0) + part(1)) + (part(2) + part(3))) + ((part(4) + part(5)) + (part(6) + part(7)));
}

template <int kCount, int kRows>
ARDIFF_INLINE void set_zero(Sums<kCount, kRows, kParts>& sums) {
  for (auto& part : sums.v) {
    for (auto& row : part) {
      for (VFloat& sum : row) sum = VFloat(0.0f);
    }
  }
}
template <int kCount, int kRows>
ARDIFF_INLINE void store_totals(const Sums<kCount, kRows, kParts>& sums, float* out,
                                int64_t out_stride) {
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kCount; ++v) {
      store(out + r * out_stride + v * kLanes, total([&](int i) { return sums.v[i][r][v]; }));
    }
  }
}

/// Two panels, or one, with one row, all parts of the sums in registers.
template <class T, int kPanels>
void stream_row(const uint32_t* w, int64_t panel, const float* x, int64_t columns, float* out) {
  Sums<kPanels * kVectors, 1, kParts> sums;
  set_zero(sums);
  add_parts<T>(w, panel, kAhead, x, 0, columns, 0, sums);
  store_totals(sums, out, 0);
}

/// A panel with up to kStreamedRows rows, by groups of rows and vectors whose sums fit into the
/// registers: the first group reads a few columns of the matrix as they come from memory, the
/// others read them from the cache.
template <class T>
void stream_groups(const uint32_t* w, const float* x, int64_t x_stride, int64_t rows,
                   int64_t columns, float* out, int64_t out_stride) {
  constexpr int kGroups = (kStreamedRows + kFewRows - 1) / kFewRows * kVectors;
  Sums<1, kFewRows, kParts> all[kGroups];
  for (int64_t k = 0; k < columns; k += kStreamed) {
    const int64_t count = k + kStreamed < columns ? kStreamed : columns - k;
    int group = 0;
    for_each_group<kFewRows>(rows, [&](auto width, int64_t n) {
      for (int v = 0; v < kVectors; ++v) {
        auto& kept = reinterpret_cast<Sums<1, width, kParts>&>(all[group++]);
        Sums<1, width, kParts> sums;
        if (k == 0) {
          set_zero(sums);
        } else {
          sums = kept;
        }
        add_parts<T>(w + k / kColumns<T> * kPanel + v * kLanes, 0, kAhead, x + n * x_stride + k,
                     x_stride, count, 0, sums);
        kept = sums;
        if (k + count == columns) {
          store_totals(sums, out + n * out_stride + v * kLanes, out_stride);
        }
      }
    });
  }
}

/// Parts of the sums of kRowBlock rows with a tile's panels.
struct alignas(64) Parts {
  float v[kParts][kRowBlock][kMostPanels * kPanel];
};

/// Adds a block of columns of kRows rows with kPanels panels, kOf parts at a time.
template <class T, int kPanels, int kRows, int kOf>
void add_block(const uint32_t* w, int64_t panel, const float* x, int64_t x_stride, int64_t columns,
               bool first, int64_t n, Parts& parts) {
  constexpr int kCount = kPanels * kVectors;
  for (int part = 0; part < kParts; part += kOf) {
    Sums<kCount, kRows, kOf> sums;
    for (int i = 0; i < kOf; ++i) {
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kCount; ++v) {
          const float* from = parts.v[part + i][n + r] + v * kLanes;
          sums.v[i][r][v] = first ? VFloat(0.0f) : load(from);
        }
      }
    }
    const int64_t ahead = n == 0 ? kBlock / kColumns<T> * kPanel : 0;  // once is enough
    add_parts<T>(w, panel, ahead, x, x_stride, columns, part, sums);
    for (int i = 0; i < kOf; ++i) {
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kCount; ++v) {
          store(parts.v[part + i][n + r] + v * kLanes, sums.v[i][r][v]);
        }
      }
    }
  }
}

/// At most kRowBlock rows with kPanels panels, block after block of columns.
template <class T, int kPanels, int kMost, int kOf>
void multiply_blocks(const uint32_t* w, int64_t panel, const float* x, int64_t x_stride,
                     int64_t rows, int64_t columns, Parts& parts, float* out, int64_t out_stride) {
  for (int64_t k = 0; k < columns; k += kBlock) {
    const int64_t n_columns = k + kBlock < columns ? kBlock : columns - k;
    for_each_group<kMost>(rows, [&](auto width, int64_t n) {
      add_block<T, kPanels, width, kOf>(w + k / kColumns<T> * kPanel, panel, x + n * x_stride + k,
                                        x_stride, n_columns, k == 0, n, parts);
    });
  }
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t i = 0; i < kPanels * kPanel; i += kLanes) {
      store(out + n * out_stride + i, total([&](int part) { return load(parts.v[part][n] + i); }));
    }
  }
}

/// How sums fit into the registers, 24 into 32 or 8 into 16 (GCC spills more): parts at a
/// time, most rows, panels.
template <class T>
struct Tile {
  static constexpr int kOf = kColumns<T>;
  static constexpr int kRows = kLanes == 1 ? 1 : kLanes == 16 ? 6 : kOf == 1 ? 4 : kOf == 2 ? 2 : 1;
  static constexpr int kPanels = kLanes != 16 ? 1 : kOf == 1 ? 4 : kOf == 2 ? 2 : 1;
};

template <class T>
void multiply_many(const PackedMatrix& m, int64_t first, int64_t last, const float* x,
                   int64_t x_stride, int64_t rows, float* out, int64_t out_stride) {
  const int64_t panel = m.words_of_panel();
  Parts parts;
  for_each_panels<Tile<T>::kPanels>(first, last, [&](auto panels, int64_t p) {
    for (int64_t n = 0; n < rows; n += kRowBlock) {
      multiply_blocks<T, panels, Tile<T>::kRows, Tile<T>::kOf>(
          m.data + p * panel, panel, x + n * x_stride, x_stride,
          rows - n < kRowBlock ? rows - n : kRowBlock, m.columns, parts,
          out + n * out_stride + (p - first) * kPanel, out_stride);
    }
  });
}

/// Up to kStreamedRows rows.
template <class T>
void multiply_few(const PackedMatrix& m, int64_t first, int64_t last, const float* x,
                  int64_t x_stride, int64_t rows, float* out, int64_t out_stride) {
  const int64_t panel = m.words_of_panel();
  if (rows > 1 || kLanes < 16) {
    for (int64_t p = first; p < last; ++p) {
      stream_groups<T>(m.data + p * panel, x, x_stride, rows, m.columns, out + (p - first) * kPanel,
                       out_stride);
    }
    return;
  }
  for_each_panels<2>(first, last, [&](auto panels, int64_t p) {
    stream_row<T, panels>(m.data + p * panel, panel, x, m.columns, out + (p - first) * kPanel);
  });
}

template <class T>
void multiply_of(const PackedMatrix& m, int64_t first, int64_t last, const PackedRows& rows,
                 int64_t count, float* out, int64_t out_stride) {
  const float* x = reinterpret_cast<const float*>(rows.data);
  const int64_t stride = rows.stride / static_cast<int64_t>(sizeof(float));
  if constexpr (kStreamedRows > 0) {
    if (count <= kStreamedRows) {
      return multiply_few<T>(m, first, last, x, stride, count, out, out_stride);
    }
  }
  multiply_many<T>(m, first, last, x, stride, count, out, out_stride);
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
const Products products{true, row_bytes, pack_row, multiply};

}  // namespace ARDIFF_NS
