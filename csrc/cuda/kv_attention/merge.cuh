// The second kernel of kv_attention: merges the splits of a query in ascending order. A thread
// takes four dimensions of a query. A row that does not fit, and tokens that are not real, have
// zeros.
#pragma once

#include "split.cuh"

namespace ardiff {

struct MergeArgs : AttentionArgs {
  int64_t blocks_of_row;
  bool bfloat16;
};

struct MergeBody {
  static constexpr int kThreads = 128, kBlocks = 8;

  struct Shared {
    int wrong;
  };
  using State = Nothing;
  using Team = ardiff::Team<kThreads>;

  /// Queries of a block.
  static int queries_of(int D) { return kThreads / (D / 4); }

  ARDIFF_DEVICE static void merge(const MergeArgs& a, const KvRow& row, int64_t b, int64_t query,
                                  int d, bool fits) {
    const int64_t total = a.queries * a.heads, t = divide(query, a.G * a.heads);
    int64_t low = 0, top = 0;
    if (fits && t < row.count) {
      const KeyRange seen = seen_by(a, row, t);
      low = seen.lo / kSplit - first_split(a, row);
      top = divide(seen.hi + kSplit - 1, kSplit) - first_split(a, row);
    }
    const int64_t at = (b - a.first_row) * a.splits * total + query;
    float high = -__builtin_inff();
#pragma unroll 4
    for (int64_t s = low; s < top; ++s) {
      const float other = a.high[at + s * total];
      high = other > high ? other : high;
    }
    float sum = 0.0f, acc[4] = {};
#pragma unroll 4
    for (int64_t s = low; s < top; ++s) {
      const int64_t slot = at + s * total;
      const float part = a.sum[slot];
      const bool none = part == 0.0f;  // no key of the split weighs anything
      const float weight = none ? 0.0f : exp_limited(a.high[slot] - high);
      float x[4];
      widen_unit<float>(a.partial + slot * a.D + d, x);
      sum = fma(weight, part, sum);
      for (int k = 0; k < 4; ++k) acc[k] = fma(weight, none ? 0.0f : x[k], acc[k]);
    }
    const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
    for (int k = 0; k < 4; ++k) acc[k] *= inverse;
    const int64_t to = (b * total + query) * a.D + d;
    if (a.bfloat16) {
      uint16_t* out = static_cast<uint16_t*>(a.out) + to;
      uint32_t word[2];
      for (int k = 0; k < 2; ++k) {
        word[k] = to_bfloat16(acc[2 * k]).bits |
                  static_cast<uint32_t>(to_bfloat16(acc[2 * k + 1]).bits) << 16;
      }
#ifdef __CUDA_ARCH__
      *reinterpret_cast<uint2*>(out) = make_uint2(word[0], word[1]);
#else
      std::memcpy(out, word, sizeof word);
#endif
    } else {
      store_four(static_cast<float*>(a.out) + to, acc[0], acc[1], acc[2], acc[3]);
    }
  }

  ARDIFF_DEVICE static void flow(const MergeArgs& a, Shared& shared, const Team& team) {
    const int64_t block = team.number(), index = divide(block, a.blocks_of_row);
    const int64_t b = a.first_row + index;
    const KvRow row = kv_row(a.rows, b);
    const bool room = has_room(a.rows, row);
    team.threads([&](int thread) {
      if (thread == 0) shared.wrong = 0;
    });
    team.threads([&](int thread) {
      if (room && names_wrong(a.rows, b, row, thread, kThreads)) shared.wrong = 1;
    });
    team.threads([&](int thread) {
      const int quads = a.D / 4, of_block = kThreads / quads;
      const int64_t query = (block - index * a.blocks_of_row) * of_block + thread / quads;
      if (thread / quads >= of_block || query >= a.queries * a.heads) return;
      merge(a, row, b, query, 4 * (thread % quads), room && !shared.wrong);
    });
  }
};

}  // namespace ardiff
