// Which elements a CUDA thread works on. Free of CUDA, so that a test walks it on the host.
//
// A unit is four neighbouring elements of one sample: one 128-bit access of a float32 tensor, and
// exactly the normals of one Philox quad (one normal an element) or two (two an element). Few or
// short samples are laid out flat, a unit a thread, samples side by side in a block. Long samples
// are cut into chunks, a block each: there a thread reads its sample's coefficients once for up to
// kUnitsPerThread units, and all index arithmetic is the same for the whole block.
#pragma once

#include "../common/lane.h"

namespace ardiff {

constexpr int kThreads = 256;
constexpr int64_t kUnit = 4;
constexpr int64_t kUnitsPerThread = 4;
constexpr int64_t kChunkedBlocks = 2048;  // chunk only where this many blocks remain

struct Layout {
  int64_t samples, units;       // units of a sample
  int64_t chunks, chunk_units;  // chunks of a sample (0: flat), units of a chunk
  int64_t blocks;
};

/// Units first, first + step, ... below last, of one sample.
struct Span {
  int64_t sample, first, last;
  int step;
};

inline Layout layout_of(int64_t B, int64_t d) {
  const int64_t units = (d + kUnit - 1) / kUnit;
  const int64_t chunks = (units + kThreads * kUnitsPerThread - 1) / (kThreads * kUnitsPerThread);
  if (units >= kThreads * kUnitsPerThread && B * chunks >= kChunkedBlocks) {
    const int64_t even = (units + chunks - 1) / chunks;
    return {B, units, chunks, (even + 31) / 32 * 32, B * chunks};
  }
  return {B, units, 0, 0, (B * units + kThreads - 1) / kThreads};
}

/// Floor of n / m for n >= 0, m > 0; in 32 bits where they suffice (64 cost 70 instructions).
ARDIFF_HD int64_t divide(int64_t n, int64_t m) {
  if (((n | m) >> 32) == 0) return static_cast<uint32_t>(n) / static_cast<uint32_t>(m);
  return n / m;
}

/// The span of a thread of a block; empty (first == last) past the end.
ARDIFF_HD Span span_of(const Layout& layout, int64_t block, int thread) {
  if (layout.chunks == 0) {
    const int64_t t = block * kThreads + thread;
    if (t >= layout.samples * layout.units) return {0, 0, 0, 1};
    const int64_t sample = divide(t, layout.units);
    const int64_t unit = t - sample * layout.units;
    return {sample, unit, unit + 1, 1};
  }
  const int64_t sample = divide(block, layout.chunks);
  const int64_t begin = (block - sample * layout.chunks) * layout.chunk_units;
  const int64_t end = begin + layout.chunk_units;
  const int64_t last = end < layout.units ? end : layout.units;
  const int64_t first = begin + thread;
  return {sample, first < last ? first : last, last, kThreads};
}

}  // namespace ardiff
