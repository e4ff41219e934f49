// The room that packed_linear needs, and its threads.
#pragma once

#include "../launch.h"
#include "../shares.h"
#include "args.h"

namespace ardiff {

/// Rows of whole cache lines, and one line more, so that rows do not meet in the same sets of a
/// cache; then the scales.
inline void make_room(PackedLinearArgs& a, std::unique_ptr<char[]>& memory) {
  constexpr int64_t kLine = 64;  // bytes
  const int64_t bytes = a.products->row_bytes(a.matrix.type, a.matrix.columns);
  const int64_t stride = (bytes + kLine - 1) / kLine * kLine + kLine;
  memory.reset(new char[a.N * (stride + static_cast<int64_t>(sizeof(float))) + kLine]);
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory.get());
  a.packed.data = memory.get() + (kLine - address % kLine) % kLine;
  a.packed.stride = stride;
  a.packed.scale = reinterpret_cast<float*>(a.packed.data + a.N * stride);
}

/// Packs the rows of x, then computes the result, both on as many threads as are worth waking.
inline void run_packed_linear(void (*rows)(const PackedLinearArgs&, int64_t, int64_t),
                              void (*tiles)(const PackedLinearArgs&, int64_t, int64_t),
                              const PackedLinearArgs& a) {
  constexpr int64_t kElementsOfThread = 1 << 15;
  constexpr int64_t kProductsOfThread = 1 << 16;
  const int64_t available = torch::stable::get_num_threads();
  const int64_t packers = std::min({available, a.N, a.N * a.columns / kElementsOfThread});
  if (packers <= 1) {
    rows(a, 0, a.N);
  } else {
    torch::stable::parallel_for(0, packers, 1, [&](int64_t first, int64_t last) {
      rows(a, a.N * first / packers, a.N * last / packers);
    });
  }
  const int64_t count = (a.outs + kTileOuts - 1) / kTileOuts;
  const int64_t threads =
      std::min({available, count, a.N * a.rows * a.columns / kProductsOfThread});
  if (threads <= 1) return tiles(a, 0, count);
  Shares shares(count, threads);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t thread = first; thread < last; ++thread) {
      shares.run(thread, [&](int64_t from, int64_t to) { tiles(a, from, to); });
    }
  });
}

}  // namespace ardiff
