// Walks csrc/cuda/layout.cuh on the host: every unit of every sample has exactly one thread.
#include <cstdio>
#include <vector>

#include "../../csrc/cuda/layout.cuh"

using ardiff::kThreads;
using ardiff::Layout;
using ardiff::layout_of;
using ardiff::Place;
using ardiff::place_of;

bool covers(int64_t B, int64_t d) {
  const Layout layout = layout_of(B, d);
  std::vector<int> seen(B * layout.units, 0);
  for (int64_t block = 0; block < layout.blocks; ++block) {
    for (int thread = 0; thread < kThreads; ++thread) {
      const Place p = place_of(layout, block, thread);
      if (!p.inside) continue;
      if (p.sample < 0 || p.sample >= B || p.unit < 0 || 4 * p.unit >= d) return false;
      ++seen[p.sample * layout.units + p.unit];
    }
  }
  for (int count : seen) {
    if (count != 1) return false;
  }
  return true;
}

bool finds(int64_t B, int64_t d, int64_t sample, int64_t unit) {
  const Layout layout = layout_of(B, d);
  const int64_t t = sample * layout.units + unit;
  const Place p = place_of(layout, t / kThreads, static_cast<int>(t % kThreads));
  return p.inside && p.sample == sample && p.unit == unit;
}

int main() {
  for (int64_t B = 0; B <= 70; ++B) {
    for (int64_t d = 1; d <= 70; ++d) {
      if (!covers(B, d)) return std::printf("B = %ld, d = %ld\n", long(B), long(d)), 1;
    }
  }
  const int64_t wide = int64_t{1} << 33;
  const bool far = covers(3, 4097) && covers(1025, 1) && finds(1, wide, 0, wide / 4 - 1) &&
                   finds(16, wide, 15, wide / 4 - 1) && finds(16, wide, 2, 0) &&
                   finds(int64_t{1} << 33, 1, (int64_t{1} << 33) - 1, 0) &&
                   finds(int64_t{1} << 20, 1 << 14, (1 << 20) - 1, (1 << 12) - 1);
  if (!far) return std::printf("wide shapes\n"), 1;
  return 0;
}
