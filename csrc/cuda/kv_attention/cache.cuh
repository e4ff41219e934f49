// Keys and values in shared memory: how a tile of them lies there, and its words as float32.
#pragma once

#include "../codes.cuh"
#include "../kv/rows.cuh"
#include "../phases.cuh"

namespace ardiff {

constexpr int kSplitThreads = 128;
constexpr int kTileBytes = 8192;

/// A tile of keys (a power of two of them) as units of 16 bytes. Eight neighbouring keys have the
/// same unit in eight different groups of banks: their rows are an odd number of units apart, or
/// the units of a row are exchanged by the key's low bits (`swizzle` 7).
struct Tile {
  int units, pitch, swizzle;  // units of a row, from row to row
  int keys, key_bits;
  int parts;                // threads that share a key's dimensions
  int groups;               // threads that share the keys of eight dimensions
  int key_step, unit_step;  // what kSplitThreads units further means
};

inline Tile tile_of(int D, int element_bytes) {
  Tile t{};
  t.units = (D * element_bytes + 15) / 16;
  t.swizzle = t.units % 8 ? 0 : 7;
  t.pitch = t.units % 8 ? t.units | 1 : t.units;
  for (t.key_bits = 6; (t.pitch << t.key_bits) * 16 > kTileBytes;) --t.key_bits;
  t.keys = 1 << t.key_bits;
  t.parts = kSplitThreads >> t.key_bits;
  t.groups = kSplitThreads / (D / kEight);
  t.key_step = kSplitThreads / t.units;
  t.unit_step = kSplitThreads % t.units;
  return t;
}

/// Offset in bytes of a unit of a key in its tile.
ARDIFF_HD int unit_offset(const Tile& t, int key, int unit) {
  return (key * t.pitch + (unit ^ (key & t.swizzle))) * 16;
}

/// Elements in a word of the cache: 1, 2 or 4.
template <class T>
constexpr int kOfWord = 4 / static_cast<int>(sizeof(T));

ARDIFF_HD void widen_word(float, uint32_t word, float* x) { x[0] = from_bits(word); }

ARDIFF_HD void widen_word(BFloat16, uint32_t word, float* x) {
  x[0] = from_bits(word << 16);
  x[1] = from_bits(word & 0xffff0000u);
}

ARDIFF_HD void widen_word(Int8, uint32_t word, float* x) {
  for (int i = 0; i < 4; ++i) x[i] = code_of(word, i);
}

ARDIFF_HD void widen_word(Float8, uint32_t word, float* x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  for (int i = 0; i < 4; i += 2) {
    uint32_t halves;  // float16, exact; NaN stays NaN
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<uint16_t>(word >> 8 * i)));
    asm("cvt.f32.f16 %0, %1;" : "=f"(x[i]) : "h"(static_cast<uint16_t>(halves)));
    asm("cvt.f32.f16 %0, %1;" : "=f"(x[i + 1]) : "h"(static_cast<uint16_t>(halves >> 16)));
  }
#else
  for (int i = 0; i < 4; ++i) x[i] = to_float(Float8{static_cast<uint8_t>(word >> 8 * i)});
#endif
}

/// A unit as 4, 8 or 16 elements.
template <class T>
ARDIFF_HD void widen_unit(const void* p, float* x) {
  const Unit unit = load_unit(p);
  for (int i = 0; i < 4; ++i) widen_word(T{}, unit.w[i], x + i * kOfWord<T>);
}

/// Dimensions [8 chunk, 8 chunk + 8) of a key of a tile.
template <class T>
ARDIFF_HD void widen_eight(const Tile& t, const char* tile, int key, int chunk, float* x) {
  if constexpr (sizeof(T) == 4) {
    widen_unit<T>(tile + unit_offset(t, key, 2 * chunk), x);
    widen_unit<T>(tile + unit_offset(t, key, 2 * chunk + 1), x + 4);
  } else if constexpr (sizeof(T) == 2) {
    widen_unit<T>(tile + unit_offset(t, key, chunk), x);
  } else {
    const char* p = tile + unit_offset(t, key, chunk / 2) + 8 * (chunk % 2);
    uint32_t word[2];
#ifdef __CUDA_ARCH__
    const uint2 both = *reinterpret_cast<const uint2*>(p);
    word[0] = both.x;
    word[1] = both.y;
#else
    std::memcpy(word, p, sizeof word);
#endif
    widen_word(T{}, word[0], x);
    widen_word(T{}, word[1], x + 4);
  }
}

/// Starts the copy of a unit of a row of `row_bytes` from `row`; zeros for a key that is not
/// `there`, and behind the row's end. Rows are aligned to kWidth: 16, 8 or 1 bytes.
template <int kWidth>
ARDIFF_DEVICE void copy_unit(Copies& copies, int row_bytes, char* to, const char* row, int unit,
                             bool there) {
  const char* from = row + 16 * unit;
  if constexpr (kWidth == 16) {
    copies.start<16>(to, from, there);
  } else if constexpr (kWidth == 8) {
    const bool whole = 16 * unit + 8 < row_bytes;
    copies.start<8>(to, from, there);
    copies.start<8>(to + 8, whole ? from + 8 : from, there && whole);
  } else {
#pragma unroll 1
    for (int i = 0; i < 16; ++i) to[i] = there && 16 * unit + i < row_bytes ? from[i] : 0;
  }
}

}  // namespace ardiff
