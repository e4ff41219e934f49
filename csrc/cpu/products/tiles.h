// Products with packed weights by matrix tiles (AMX): a tile of 16 rows of x by a tile of 16 rows
// of the matrix and 64 bytes of columns. The packed form is what the instructions take. A row's
// sums do not depend on the other rows of its tile.
#pragma once

#include "tiling.h"

namespace ARDIFF_NS {

constexpr int kTileRows = 16;
constexpr int64_t kTileBytes = 64;  // of a row of a tile
constexpr int64_t kTileWords = kTileRows * kPanel;
constexpr int64_t kTilesAhead = 4;  // at which the matrix is asked for

#if defined(ARDIFF_EMULATED)

/// A tile of the emulation: up to 16 rows of 64 bytes.
struct Tile {
  int rows = 0;
  uint32_t word[kTileRows][16];

  void zero() { std::memset(word, 0, sizeof word); }
  void load(const void* p, int64_t stride) {
    for (int i = 0; i < rows; ++i) {
      std::memcpy(word[i], static_cast<const char*>(p) + i * stride, sizeof word[i]);
    }
  }
  void store(void* p, int64_t stride) const {
    for (int i = 0; i < rows; ++i) {
      std::memcpy(static_cast<char*>(p) + i * stride, word[i], sizeof word[i]);
    }
  }
};

/// TDPBF16PS: the even and the odd columns are summed apart, from zero and in ascending order, then
/// added to each other and to the sum; subnormal numbers are zero.
inline void tile_dot_pairs(Tile& c, const Tile& a, const Tile& b) {
  for (int m = 0; m < c.rows; ++m) {
    for (int n = 0; n < 16; ++n) {
      float even = 0.0f, odd = 0.0f;
      for (int k = 0; k < 16; ++k) {
        const uint32_t x = a.word[m][k], y = b.word[k][n];
        even = flushed(fma(flushed(from_bits(x << 16)), flushed(from_bits(y << 16)), even));
        odd = flushed(
            fma(flushed(from_bits(x & 0xffff0000u)), flushed(from_bits(y & 0xffff0000u)), odd));
      }
      const float sum = flushed(even + odd);
      c.word[m][n] = bits(flushed(flushed(from_bits(c.word[m][n])) + sum));
    }
  }
}

/// TDPBSSD: products of signed bytes, added modulo 2^32.
inline void tile_dot_quads(Tile& c, const Tile& a, const Tile& b) {
  for (int m = 0; m < c.rows; ++m) {
    for (int n = 0; n < 16; ++n) {
      for (int k = 0; k < 16; ++k) {
        for (int shift = 0; shift < 32; shift += 8) {
          const int32_t x = static_cast<int8_t>(a.word[m][k] >> shift);
          c.word[m][n] += static_cast<uint32_t>(x * static_cast<int8_t>(b.word[k][n] >> shift));
        }
      }
    }
  }
}

// A thread's tiles; 0 to 3 are sums, 4 and 5 rows of x, 6 and 7 of the matrix.
struct Tiles {
  Tile tile[8];
  void shape(int first, int second) {
    const int rows[8] = {first, first, second, second, first, second, kTileRows, kTileRows};
    for (int i = 0; i < 8; ++i) tile[i].rows = rows[i];
  }
};
#define ARDIFF_TILES_BEGIN Tiles tiles
#define ARDIFF_TILES_SHAPE(first, second) tiles.shape(first, second)
#define ARDIFF_TILES_END
#define ARDIFF_TILE_ZERO(i) tiles.tile[i].zero()
#define ARDIFF_TILE_LOAD(i, p, stride) tiles.tile[i].load(p, stride)
#define ARDIFF_TILE_STORE(i, p, stride) tiles.tile[i].store(p, stride)
#define ARDIFF_TILE_PAIRS(c, a, b) tile_dot_pairs(tiles.tile[c], tiles.tile[a], tiles.tile[b])
#define ARDIFF_TILE_QUADS(c, a, b) tile_dot_quads(tiles.tile[c], tiles.tile[a], tiles.tile[b])

#else

/// What the instruction LDTILECFG reads.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};

  TileShapes(int first, int second) {
    const int wanted[8] = {first, first, second, second, first, second, kTileRows, kTileRows};
    for (int i = 0; i < 8; ++i) {
      rows[i] = static_cast<uint8_t>(wanted[i] > 0 ? wanted[i] : 1);
      bytes[i] = kTileBytes;
    }
  }
};
struct Tiles {};
#define ARDIFF_TILES_BEGIN Tiles tiles
// To the compiler LDTILECFG reads 8 bytes alone; the empty statement reads all of them.
#define ARDIFF_TILES_SHAPE(first, second)                \
  do {                                                   \
    const TileShapes shapes_of_tiles(first, second);     \
    asm volatile("" ::"r"(&shapes_of_tiles) : "memory"); \
    _tile_loadconfig(&shapes_of_tiles);                  \
  } while (false)
#define ARDIFF_TILES_END _tile_release()
#define ARDIFF_TILE_ZERO(i) _tile_zero(i)
#define ARDIFF_TILE_LOAD(i, p, stride) _tile_loadd(i, p, stride)
#define ARDIFF_TILE_STORE(i, p, stride) _tile_stored(i, p, stride)
#define ARDIFF_TILE_PAIRS(c, a, b) _tile_dpbf16ps(c, a, b)
#define ARDIFF_TILE_QUADS(c, a, b) _tile_dpbssd(c, a, b)

#endif

/// Sums of rows of x, up to 16 and `second` more, with the panel at `w` and, where that is given,
/// the one at `other`: tiles 0 and 1, of the second rows 2 and 3.
template <bool kPairs>
inline void sum_tiles([[maybe_unused]] Tiles& tiles, const uint32_t* w, const uint32_t* other,
                      const char* x, int64_t stride, int second, int64_t steps) {
  ARDIFF_TILE_ZERO(0);
  ARDIFF_TILE_ZERO(1);
  ARDIFF_TILE_ZERO(2);
  ARDIFF_TILE_ZERO(3);
  for (int64_t k = 0; k < steps; ++k) {
    ARDIFF_TILE_LOAD(4, x + k * kTileBytes, stride);
    ARDIFF_TILE_LOAD(6, w + k * kTileWords, kTileBytes);
    for (int64_t line = 0; line < kTileRows; ++line) {
      __builtin_prefetch(w + (k + kTilesAhead) * kTileWords + line * kPanel);
    }
    if constexpr (kPairs) {
      ARDIFF_TILE_PAIRS(0, 4, 6);
    } else {
      ARDIFF_TILE_QUADS(0, 4, 6);
    }
    if (other) {
      ARDIFF_TILE_LOAD(7, other + k * kTileWords, kTileBytes);
      for (int64_t line = 0; line < kTileRows; ++line) {
        __builtin_prefetch(other + (k + kTilesAhead) * kTileWords + line * kPanel);
      }
      if constexpr (kPairs) {
        ARDIFF_TILE_PAIRS(1, 4, 7);
      } else {
        ARDIFF_TILE_QUADS(1, 4, 7);
      }
    }
    if (second == 0) continue;
    ARDIFF_TILE_LOAD(5, x + kTileRows * stride + k * kTileBytes, stride);
    if constexpr (kPairs) {
      ARDIFF_TILE_PAIRS(2, 5, 6);
      if (other) ARDIFF_TILE_PAIRS(3, 5, 7);
    } else {
      ARDIFF_TILE_QUADS(2, 5, 6);
      if (other) ARDIFF_TILE_QUADS(3, 5, 7);
    }
  }
}

/// Tiles 0 to 3, row by row, to `out` with `stride` bytes between rows.
inline void store_tiles([[maybe_unused]] const Tiles& tiles, char* out, int64_t stride, bool other,
                        int second) {
  ARDIFF_TILE_STORE(0, out, stride);
  if (other) ARDIFF_TILE_STORE(1, out + kTileBytes, stride);
  if (second == 0) return;
  ARDIFF_TILE_STORE(2, out + kTileRows * stride, stride);
  if (other) ARDIFF_TILE_STORE(3, out + kTileRows * stride + kTileBytes, stride);
}

/// As `Products::multiply`; `join(high, low, scale)` makes a result of the sums of two digits.
template <class Join>
inline void multiply_tiles(const PackedMatrix& m, int64_t first, int64_t last,
                           const PackedRows& rows, int64_t count, float* out, int64_t out_stride,
                           Join join) {
  const int64_t panel = m.words_of_panel(), steps = panel / kTileWords;
  const bool half = m.type == WeightType::bfloat16;
  alignas(64) uint32_t high[2 * kTileRows * 2 * kPanel], low[2 * kTileRows * 2 * kPanel];
  constexpr int64_t kSumBytes = 2 * kTileBytes;
  ARDIFF_TILES_BEGIN;
  for (int64_t n = 0; n < count; n += 2 * kTileRows) {
    const int left = static_cast<int>(count - n < 2 * kTileRows ? count - n : 2 * kTileRows);
    const int head = left < kTileRows ? left : kTileRows, second = left - head;
    ARDIFF_TILES_SHAPE(head, second);
    const char* x = rows.data + n * rows.stride;
    for (int64_t p = first; p < last; p += 2) {
      const uint32_t* w = m.data + p * panel;
      const uint32_t* other = p + 1 < last ? w + panel : nullptr;
      float* to = out + n * out_stride + (p - first) * kPanel;
      if (half) {
        sum_tiles<true>(tiles, w, other, x, rows.stride, second, steps);
        store_tiles(tiles, reinterpret_cast<char*>(to), 4 * out_stride, other, second);
        continue;
      }
      sum_tiles<false>(tiles, w, other, x, rows.stride, second, steps);
      store_tiles(tiles, reinterpret_cast<char*>(high), kSumBytes, other, second);
      sum_tiles<false>(tiles, w, other, x + m.columns, rows.stride, second, steps);
      store_tiles(tiles, reinterpret_cast<char*>(low), kSumBytes, other, second);
      const int64_t width = other ? 2 * kPanel : kPanel;
      for (int r = 0; r < left; ++r) {
        for (int64_t i = 0; i < width; ++i) {
          const int64_t at = r * 2 * kPanel + i;
          to[r * out_stride + i] = join(high[at], low[at], rows.scale[n + r]);
        }
      }
    }
  }
  ARDIFF_TILES_END;
}

}  // namespace ARDIFF_NS
