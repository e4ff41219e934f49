// kv_attention on CUDA: flash-decoding over a ragged, possibly paged cache, in two launches and one
// workspace whose size follows from shapes; nothing waits for the device, so it can be captured.
//
// Decoding is bound by memory: 4.8 TB/s are 21 bytes a clock of a multiprocessor of an H200, and
// with a microsecond of latency 36 KB must be on their way to each. Five blocks of SplitBody<T, 4>
// fit there, each with two tiles of 8 KiB on their way: 80 KiB. A tile of 32 bfloat16 keys of 128
// dimensions and its values (16 KiB, 790 clocks of that rate) take a warp about 690 instructions,
// of which each of four schedulers issues one a clock. These are counts of machine code, not
// measurements. With more than eight queries per key head arithmetic is the limit.
#include <algorithm>

#include "../../torch/kv_attention.h"
#include "../launch_phases.cuh"
#include "kernel.cuh"
#include "merge.cuh"

namespace ardiff {
namespace {

constexpr int64_t kWorkspace = int64_t{1} << 26;  // float32; larger batches go part by part
constexpr int64_t kEnoughBlocks = 1 << 15;        // blocks of longer rows take several splits

/// The most splits of a row: what its keys fill, or a window's, wherever that begins. Lengths are
/// int32, so a cache holds no more of use.
int64_t most_splits(const KvRows& rows, int64_t window) {
  const int64_t keys = std::min(rows.S * (rows.table ? rows.M : 1), int64_t{1} << 31);
  const int64_t whole = (keys + kSplit - 1) / kSplit;
  if (window == 0 || window >= keys) return whole;
  return std::min(whole, (window + rows.T - 1 + kSplit - 1) / kSplit + 1);
}

template <class T>
void launch_split(const AttentionArgs& a, int64_t blocks, bool few, int32_t device) {
  few ? launch_blocks<SplitBody<T, 4>>(a, blocks, device)
      : launch_blocks<SplitBody<T, 8>>(a, blocks, device);
}

void launch_split(const AttentionArgs& a, ScalarType type, int64_t blocks, bool few,
                  int32_t device) {
  if (type == ScalarType::Float) return launch_split<float>(a, blocks, few, device);
  if (type == ScalarType::BFloat16) return launch_split<BFloat16>(a, blocks, few, device);
  if (type == ScalarType::Char) return launch_split<Int8>(a, blocks, few, device);
  launch_split<Float8>(a, blocks, few, device);
}

void launch(MergeArgs& a, const KvTensors& t) {
  const int64_t rows = t.tokens.sizes[0], total = a.queries * a.heads;
  const bool few = a.queries <= 4;
  a.tiles = (a.queries + (few ? 3 : 7)) / (few ? 4 : 8);
  a.splits = static_cast<int>(most_splits(a.rows, a.window));
  const int64_t size_of_row = a.splits * total * a.D;
  const int64_t part = std::max<int64_t>(1, std::min(rows, kWorkspace / size_of_row));
  const int64_t slots = part * a.splits * total;
  const int64_t size = slots * (a.D + 2);
  const Tensor workspace = fresh_tensor(t.tokens, ScalarType::Float, 1, &size);
  a.partial = static_cast<float*>(workspace.mutable_data_ptr());
  a.high = a.partial + slots * a.D;
  a.sum = a.high + slots;
  const int64_t units = part * a.heads * a.tiles;
  a.step = static_cast<int>(std::min<int64_t>(a.splits, (kEnoughBlocks + units - 1) / units));
  const int64_t merged = MergeBody::queries_of(a.D);
  a.blocks_of_row = (total + merged - 1) / merged;
  const int32_t device = t.tokens.device_index;
  for (a.first_row = 0; a.first_row < rows; a.first_row += part) {
    const int64_t n = std::min(part, rows - a.first_row);
    launch_split(a, t.k_cache.dtype, n * a.step * a.heads * a.tiles, few, device);
    launch_blocks<MergeBody>(a, n * a.blocks_of_row, device);
  }
}

void run(const KvTensors& t, const KvAttentionOptions& o, void* out) {
  const int64_t* n = t.tokens.sizes;
  const ScalarType type = t.k_cache.dtype;
  const int bytes = type == ScalarType::Float ? 4 : type == ScalarType::BFloat16 ? 2 : 1;
  MergeArgs a{};
  a.rows = rows_of(t);
  a.head = head_of(t, o.norm_eps);
  a.q = tokens_of(t.tokens);
  const KvCache cache = cache_of(t);
  a.k_cache = static_cast<const char*>(cache.k);
  a.v_cache = static_cast<const char*>(cache.v);
  a.k_scale = cache.k_scale;
  a.v_scale = cache.v_scale;
  a.D = cache.D;
  a.heads = cache.heads;
  a.tile = tile_of(a.D, bytes);
  a.row_bytes = a.D * bytes;
  const auto on = [&](int64_t width) {
    return a.row_bytes % width == 0 && aligned(t.k_cache, width) && aligned(t.v_cache, width);
  };
  a.width = on(16) ? 16 : on(8) ? 8 : 1;
  a.G = static_cast<int>(n[2] / a.heads);
  a.queries = static_cast<int>(n[1]) * a.G;
  a.window = o.window;
  a.causal = o.causal;
  a.scale = o.scale;
  a.out = out;
  a.bfloat16 = t.tokens.dtype == ScalarType::BFloat16;
  launch(a, t);
}

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ARDIFF_CUDA_NAMESPACE, ARDIFF_CUDA_KEY, m) {
  ARDIFF_IMPL(m, "kv_attention", &ardiff::KvAttention<ardiff::run>::functional);
}
