// kv_attention of a bfloat16 cache and bfloat16 queries by the CPU's dot products (pairs.h), or by
// their emulation; the rest is that of kernel.cpp. Queries and weights are rounded to bfloat16, and
// a query's weights are divided by the sum of the rounded ones. No variant uses tiles.
#if !defined(ARDIFF_TILES)

#include "pairs.h"
#include "softmax.h"

namespace ARDIFF_NS {
namespace {

struct alignas(64) Pairs : Scratch {
  using Element = BFloat16;
  static constexpr int kTileOfValues = 64;

  uint32_t query[kQueryGroup * kMostDims / 2];  // blocks of queries, each [D / 2, queries]
  uint32_t keys[kMostDims / 2 * kKeys];         // transposed
  float score[kQueryGroup][kSplit];
  BFloat16 weight[kQueryGroup][kSplit];

  void put_query(const KvAttentionArgs& a, const float* x, int first, int i, int width) {
    const int64_t pairs = a.cache.D / 2;
    uint32_t* out = query + first * pairs + i;
    for (int64_t d = 0; d < pairs; ++d) {
      out[d * width] = pair_of(to_bfloat16(x[2 * d]), to_bfloat16(x[2 * d + 1]));
    }
  }

  void add_keys(const KvAttentionArgs& a, int n, const BFloat16* rows, const int64_t* offset,
                int64_t j, Ahead& ahead) {
    const int64_t D = a.cache.D;
    transpose_keys(rows, offset, D, keys, ahead);
    for_each_block(n, [&](auto width, int i) {
      dots<width>(query + i * D / 2, keys, D, a.scale, score[i] + j, ahead);
    });
  }

  void read_scales(const KvCache&, const Places&) {}

  void weigh(int i, Range r) {
    split.high[i] = exponentials(score[i], r);
    split.sum[i] = sum_of_weights(r, [&](int64_t j) {
      store_as(weight[i] + j, load_as<VFloat>(score[i] + j));
      return load_as<VFloat>(weight[i] + j);
    });
  }

  template <int kWidth>
  void add_values(int64_t D, const BFloat16* values, const int64_t* offset, const Range* range,
                  int i, int64_t j, Ahead& ahead) {
    for_visible<kWidth, 2>(
        range, j, j + kTileOfValues,
        [&](int64_t from, int64_t to) {
          add_pairs<kWidth>(values, offset, weight[i], from, to, {true, true}, D, split.acc[i],
                            ahead);
        },
        [&](int which, int64_t from, int64_t to) {
          const int at = i + which;
          add_some_pairs(values, offset, weight[at], from, to, D, split.acc[at], ahead);
        });
  }

  void finish(int n, int64_t D) {
    for (int i = 0; i < n; ++i) sort_dims(split.acc[i], D);
  }
};

}  // namespace

void kv_attention_tiles(const KvAttentionArgs& a, int64_t first, int64_t last) {
  run<Pairs>(a, first, last);
}

}  // namespace ARDIFF_NS

#endif
