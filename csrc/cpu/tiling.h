// The division of a [B, d] problem into tiles, and of the tiles over threads; free of torch.
#pragma once

#include <algorithm>
#include <atomic>

#include "../math/step_args.h"
#include "args.h"

namespace ardiff {

/// elements_a_quad: 4 for one normal per element, 2 for two.
inline Tiling tiling_of(int64_t B, int64_t d, int64_t elements_a_quad) {
  if (B == 0 || d == 0) return {1, 1, 0};
  const int64_t slot = (d + elements_a_quad - 1) / elements_a_quad * elements_a_quad;
  const int64_t samples = std::max<int64_t>(1, kTile / slot);
  if (samples > 1) return {samples, 1, (B + samples - 1) / samples};
  const int64_t tiles = (d + kTile - 1) / kTile;
  return {1, tiles, B * tiles};
}

/// A step's arguments in tiles.
template <class Args>
Tiled<Args> tiled(const Args& a) {
  Tiled<Args> t{a, tiling_of(a.B, a.d, Args::kElementsPerQuad), a.B > 1};
  visit_rows(a,
             [&](const auto& rows) { t.packed = t.packed && (!rows.data || rows.stride == t.d); });
  return t;
}

/// Runs a kernel over all tiles, on the calling thread where starting others would cost more; else
/// `parallel(threads, work)` calls `work()` once on each of at most `available` threads. They take
/// chunks as they get to them, so a thread that the system delays holds up no other. `times`: how
/// often the kernel goes over the elements.
template <class Args, class Parallel>
void share_tiles(void (*kernel)(const Args&, int64_t, int64_t), const Args& args, int64_t available,
                 Parallel parallel, int64_t times = 1) {
  constexpr double kElementsPerThread = 32768;  // a thread that sleeps takes 0.1 ms to wake
  constexpr int64_t kChunksPerThread = 16;
  const int64_t count = args.tiling.count;
  const double elements = static_cast<double>(args.B) * args.d * times;
  const int64_t useful = static_cast<int64_t>(elements / kElementsPerThread);
  const int64_t threads = useful > 1 ? std::min<int64_t>({useful, count, available}) : 1;
  if (threads <= 1) {
    kernel(args, 0, count);
    return;
  }
  const int64_t chunks = std::min(useful, threads * kChunksPerThread);
  const int64_t size = (count + chunks - 1) / chunks;
  std::atomic<int64_t> next{0};
  parallel(threads, [&] {
    for (;;) {
      const int64_t first = next.fetch_add(size, std::memory_order_relaxed);
      if (first >= count) return;
      kernel(args, first, std::min(first + size, count));
    }
  });
}

}  // namespace ardiff
