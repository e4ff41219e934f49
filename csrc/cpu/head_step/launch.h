// The plan of a head's step, and the threads that carry it out.
#pragma once

#include <cstring>
#include <vector>

#include "../launch.h"
#include "args.h"

namespace ardiff {

inline int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/// Elements between rows of `columns` activations: whole cache lines, and one more so that rows do
/// not meet in the same sets of a cache.
inline int64_t padded(int64_t columns) { return rounded_up(columns, 16) + 16; }

/// Whether a packed matrix reads rounded rows, which must be made first.
inline bool reads_packed_rows(const HeadMatrix& m) { return m.products && !m.products->floats; }

/// Bytes between packed rows for a matrix: whole cache lines and one more, as of `padded`.
inline int64_t packed_stride(const HeadMatrix& m) {
  if (!reads_packed_rows(m)) return 0;
  return rounded_up(m.products->row_bytes(m.type, m.columns), 64) + 64;
}

/// Lays out the rounded rows behind the activations, at p, a whole cache line.
inline void place_packed_rows(HeadStepArgs& a, char* p) {
  const auto place = [&](PackedRows& rows, int64_t count, int64_t stride) {
    if (stride == 0) return;
    rows = {p, stride, reinterpret_cast<float*>(p + count * stride)};
    p += count * stride + rounded_up(4 * count, 64);
  };
  place(a.x_rows, a.N, packed_stride(a.matrix[0]));
  int64_t y_stride = packed_stride(a.matrix[2 * a.depth + 1]), u_stride = 0;
  for (int64_t block = 0; block < a.depth; ++block) {
    y_stride = std::max(y_stride, packed_stride(a.matrix[2 * block + 1]));
    u_stride = std::max(u_stride, packed_stride(a.matrix[2 * block + 2]));
  }
  place(a.y_rows, a.R, y_stride);
  place(a.u_rows, a.R, u_stride);
}

/// At most so many bytes of rounded rows.
inline int64_t packed_bytes(const HeadStepArgs& a) {
  int64_t most = 0;
  for (int64_t i = 0; i < 2 * a.depth + 2; ++i) {
    most = std::max(most, packed_stride(a.matrix[i]));
  }
  return 3 * (a.R * most + rounded_up(4 * a.R, 64));
}

/// Lays out the activations in `memory`, which is made long enough, and copies x to them.
inline void fill_activations(HeadStepArgs& a, const float* x, int64_t x_stride,
                             std::vector<float>& memory) {
  int64_t inner = 0;
  for (int64_t block = 0; block < a.depth; ++block) {
    inner = std::max(inner, a.matrix[2 * block + 2].columns);
  }
  const int64_t d = a.matrix[0].columns;
  a.x_stride = padded(d);
  a.stride = padded(a.width);
  a.half = rounded_up(inner, 16);
  a.u_stride = padded(a.gated ? 2 * a.half : inner);
  const int64_t floats = a.N * a.x_stride + a.R * (2 * a.stride + a.u_stride);
  const int64_t need = floats + packed_bytes(a) / static_cast<int64_t>(sizeof(float));
  const int64_t lead = 16;  // to the beginning of a cache line
  if (static_cast<int64_t>(memory.size()) < need + lead) memory.resize(need + lead);
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory.data());
  a.x = memory.data() + (rounded_up(address, 64) - address) / sizeof(float);
  a.h = a.x + a.N * a.x_stride;
  a.y = a.h + a.R * a.stride;
  a.u = a.y + a.R * a.stride;
  for (int64_t n = 0; n < a.N; ++n) {
    std::memcpy(a.x + n * a.x_stride, x + n * x_stride, sizeof(float) * d);
    std::fill(a.x + n * a.x_stride + d, a.x + (n + 1) * a.x_stride, 0.0f);
  }
  for (int64_t n = 0; n < a.R; ++n) {
    std::fill(a.y + n * a.stride + a.width, a.y + (n + 1) * a.stride, 0.0f);
  }
  place_packed_rows(a, reinterpret_cast<char*>(a.x + floats));
}

inline std::vector<HeadPhase> phases_of(const HeadStepArgs& a, int64_t threads) {
  constexpr int64_t kSharesPerThread = 16;
  constexpr int64_t kLeastWork = 16384;  // products of a share
  std::vector<HeadPhase> phases;
  int64_t tickets = 0;
  const auto add = [&](HeadPart part, int64_t block, int64_t rows, int64_t work_of_row,
                       const HeadMatrix* m = nullptr) {
    int64_t share = rows;
    if (threads > 1) {
      // Four panels of a packed matrix are multiplied together.
      const int64_t whole = m && m->products ? 4 * kPanel : 16;
      share =
          rounded_up((rows + kSharesPerThread * threads - 1) / (kSharesPerThread * threads), whole);
      share = std::max(share, rounded_up(kLeastWork / work_of_row, whole));
      if (!m) share = std::max<int64_t>(1, kLeastWork / 2 / work_of_row);
    }
    phases.push_back({part, block, tickets, share});
    tickets += (rows + share - 1) / share;
  };
  const HeadMatrix* m = a.matrix;
  if (reads_packed_rows(*m)) add(HeadPart::pack, -1, a.N, m->columns);
  add(HeadPart::input, 0, a.width, m->columns * a.N, m);
  for (int64_t block = 0; block < a.depth; ++block) {
    const int64_t inner = a.matrix[2 * block + 2].columns;
    add(HeadPart::norm, block, a.R, a.width);
    add(HeadPart::inner, block, inner, a.width * a.R * (a.gated ? 2 : 1), ++m);
    if (reads_packed_rows(*++m)) add(HeadPart::pack, block, a.R, inner);
    add(HeadPart::outer, block, a.width, inner * a.R, m);
  }
  add(HeadPart::norm, a.depth, a.R, a.width);
  ++m;
  add(HeadPart::last, a.depth, m->rows, a.width * a.R, m);
  phases.push_back({HeadPart::last, 0, tickets, 1});
  return phases;
}

/// Runs the step on up to `threads` threads.
inline void run_head(void (*kernel)(const HeadStepArgs&, int64_t, int64_t), HeadStepArgs& a,
                     int64_t threads) {
  constexpr int64_t kWorkPerThread = 1 << 16;
  int64_t work = 0;
  for (int64_t i = 0; i < 2 * a.depth + 2; ++i) {
    work += a.R * a.matrix[i].rows * a.matrix[i].columns;
  }
  threads = std::max<int64_t>(1, std::min(threads, work / kWorkPerThread));
  const std::vector<HeadPhase> phases = phases_of(a, threads);
  HeadTickets tickets{};
  a.phase = phases.data();
  a.phases = static_cast<int64_t>(phases.size()) - 1;
  a.tickets = &tickets;
  if (threads == 1) return kernel(a, 0, 1);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) { kernel(a, 0, 1); });
}

}  // namespace ardiff
