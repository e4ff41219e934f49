// What kv_append and kv_attention share on CUDA: rows of a batch and whether they fit, places in a
// cache, and new heads as float32 in shared memory: read, RMS-normed, rotated.
#pragma once

#include "../../math/attention.h"
#include "../../math/kv.h"
#include "../layout.cuh"

namespace ardiff {

constexpr int kMostDims = 256;
constexpr int kEight = 8;  // dimensions that a thread reads at once; they divide D

struct KvRow {
  int64_t length, count;
  bool sound;  // both make sense
};

ARDIFF_HD KvRow kv_row(const KvRows& r, int64_t b) {
  const int64_t length = r.length[b], count = r.count ? r.count[b] : r.T;
  return {length, count, length >= 0 && count >= 0 && count <= r.T};
}

/// Whether a row has room, and rotary tables that are long enough unless positions are given.
ARDIFF_HD bool has_room(const KvRows& r, const KvRow& row) {
  const int64_t end = row.length + row.count;
  if (!row.sound || end > (r.table ? r.S * r.M : r.S)) return false;
  return r.P == 0 || r.position || row.count == 0 || end <= r.P;
}

/// Whether row b, which has room, names a block or a rotary position that there is not, among the
/// entries that this one of `threads` threads looks at.
ARDIFF_HD bool names_wrong(const KvRows& r, int64_t b, const KvRow& row, int thread, int threads) {
  bool wrong = false;
  if (r.P && r.position) {
    for (int64_t t = thread; t < row.count; t += threads) {
      const int32_t at = r.position[b * r.T + t];
      wrong |= at < 0 || at >= r.P;
    }
  }
  if (r.table) {
    const int64_t used = divide(row.length + row.count + r.S - 1, r.S);
    for (int64_t i = thread; i < used; i += threads) {
      const int32_t block = r.table[b * r.M + i];
      wrong |= block < 0 || block >= r.N;
    }
  }
  return wrong;
}

/// Index of a token in a cache [N, heads, S]; in block 0 where the row names none that there is.
ARDIFF_HD int64_t place_of_token(const KvRows& r, int64_t b, int64_t head, int64_t heads,
                                 int64_t position) {
  int64_t block = b, token = position;
  if (r.table) {
    const int64_t i = divide(position, r.S);
    block = r.table[b * r.M + i];
    if (block < 0 || block >= r.N) block = 0;
    token = position - i * r.S;
  }
  return (block * heads + head) * r.S + token;
}

ARDIFF_HD int64_t start_of(const KvTokens& x, int64_t b, int64_t t, int64_t head) {
  return b * x.stride_b + t * x.stride_t + head * x.stride_h;
}

struct alignas(16) Unit {
  uint32_t w[4];
};

/// 16 bytes, aligned to them, in one access.
ARDIFF_HD Unit load_unit(const void* p) {
  Unit unit;
#ifdef __CUDA_ARCH__
  const uint4 word = *static_cast<const uint4*>(p);
  unit = {{word.x, word.y, word.z, word.w}};
#else
  std::memcpy(&unit, p, sizeof unit);
#endif
  return unit;
}

ARDIFF_HD void store_unit(void* p, const Unit& unit) {
#ifdef __CUDA_ARCH__
  *static_cast<uint4*>(p) = make_uint4(unit.w[0], unit.w[1], unit.w[2], unit.w[3]);
#else
  std::memcpy(p, &unit, sizeof unit);
#endif
}

ARDIFF_HD void store_four(float* p, float a, float b, float c, float d) {
  store_unit(p, {{bits(a), bits(b), bits(c), bits(d)}});
}

/// Eight elements from offset `at` on, to `out`, which is aligned to 16 bytes.
ARDIFF_HD void read_eight(const KvTokens& x, int64_t at, float* out) {
  float v[kEight];
  if (x.bfloat16) {
    const BFloat16* p = static_cast<const BFloat16*>(x.data) + at;
    if (x.vector) {
      const Unit unit = load_unit(p);
      for (int i = 0; i < 4; ++i) {
        v[2 * i] = from_bits(unit.w[i] << 16);
        v[2 * i + 1] = from_bits(unit.w[i] & 0xffff0000u);
      }
    } else {
      for (int i = 0; i < kEight; ++i) v[i] = to_float(p[i]);
    }
  } else {
    const float* p = static_cast<const float*>(x.data) + at;
    if (x.vector) {
      const Unit low = load_unit(p), high = load_unit(p + 4);
      for (int i = 0; i < 4; ++i) {
        v[i] = from_bits(low.w[i]);
        v[4 + i] = from_bits(high.w[i]);
      }
    } else {
      for (int i = 0; i < kEight; ++i) v[i] = p[i];
    }
  }
  store_four(out, v[0], v[1], v[2], v[3]);
  store_four(out + 4, v[4], v[5], v[6], v[7]);
}

/// Partial sum `lane` of kSumOfLanes of the squares of a head.
ARDIFF_HD float square_sum(const float* x, int D, int lane) {
  float sum = 0.0f;
  for (int i = lane; i < D; i += kSumOfLanes) sum = fma(x[i], x[i], sum);
  return sum;
}

/// Row of cos and sin of token t; -1 where there is no such row, or no rotation.
ARDIFF_HD int64_t rotary_row(const KvRows& r, const KvRow& row, int64_t b, int64_t t) {
  if (r.P == 0) return -1;
  const int64_t at = r.position ? r.position[b * r.T + t] : row.length + t;
  return at >= 0 && at < r.P ? at : -1;
}

/// Norms, rotates and scales the elements of a head that fall to one of `threads` threads: i and
/// i + R / 2 to the same. `squares` are its partial sums, read with a norm only.
ARDIFF_HD void prepare_head(const KvHead& head, int D, const float* squares, int64_t rotary,
                            float scale, float* x, int thread, int threads) {
  float factor = 1.0f;
  if (head.norm) {
    float lanes[kSumOfLanes];
    for (int l = 0; l < kSumOfLanes; ++l) lanes[l] = squares[l];
    factor = inverse_rms(sum_of_lanes(lanes), D, head.eps);
  }
  const auto normed = [&](int i) { return head.norm ? x[i] * factor * head.norm[i] : x[i]; };
  const int half = rotary < 0 ? 0 : head.half;
  for (int i = thread; i < D; i += threads) {
    if (i >= half && i < 2 * half) continue;
    float first = normed(i);
    if (i < half) {
      float second = normed(i + half);
      const int64_t at = rotary * head.half + i;
      rotate_pair(first, second, head.cos[at], head.sin[at]);
      x[i + half] = second * scale;
    }
    x[i] = first * scale;
  }
}

}  // namespace ardiff
