// A head of a new token as float32: read, RMS-normed, rotated. Shared by kv_append and
// kv_attention, so that keys and queries go the same way.
#pragma once

#include "../../math/attention.h"
#include "../tile.h"
#include "args.h"

namespace ARDIFF_NS {

constexpr int64_t kMostDims = 256;

inline int64_t new_tokens(const KvArgs& a, int64_t b) {
  return a.rows.count ? a.rows.count[b] : a.rows.T;
}

inline void read_head(const KvTokens& t, int64_t b, int64_t token, int64_t h, int64_t D, float* x) {
  const int64_t at = b * t.stride_b + token * t.stride_t + h * t.stride_h;
  if (!t.bfloat16) {
    std::memcpy(x, static_cast<const float*>(t.data) + at, sizeof(float) * D);
    return;
  }
  const BFloat16* p = static_cast<const BFloat16*>(t.data) + at;
  for (int64_t i = 0; i < D; ++i) x[i] = to_float(p[i]);
}

/// Norm and rotation of token `token` of row b.
inline void prepare_head(const KvArgs& a, int64_t b, int64_t token, float* x) {
  const KvHead& head = a.head;
  const int64_t D = a.cache.D;
  if (head.norm) {
    float lanes[kSumOfLanes] = {};
    for (int64_t i = 0; i < D; i += kSumOfLanes) {
      for (int l = 0; l < kSumOfLanes; ++l) lanes[l] = fma(x[i + l], x[i + l], lanes[l]);
    }
    const float factor = inverse_rms(sum_of_lanes(lanes), D, head.eps);
    for (int64_t i = 0; i < D; ++i) x[i] = x[i] * factor * head.norm[i];
  }
  if (head.cos) {
    const int64_t half = head.half;
    const KvRows& r = a.rows;
    const int64_t position = r.position ? r.position[b * r.T + token] : r.length[b] + token;
    const float *cos = head.cos + position * half, *sin = head.sin + position * half;
    for (int64_t i = 0; i < half; ++i) rotate_pair(x[i], x[i + half], cos[i], sin[i]);
  }
}

/// Element 0 of the token at `position` of row b, head h; a scale lies at this over D.
inline int64_t cache_offset(const KvArgs& a, int64_t b, int64_t h, int64_t position) {
  const KvRows& r = a.rows;
  const int64_t block = r.table ? r.table[b * r.M + position / r.S] : b;
  const int64_t token = r.table ? position % r.S : position;
  return ((block * a.cache.heads + h) * r.S + token) * a.cache.D;
}

}  // namespace ARDIFF_NS
