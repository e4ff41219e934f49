// The arithmetic of kv_attention by dot products of bfloat16 pairs. q.k: a pair is of two
// dimensions, a lane a key. Weighted values: a pair is of two keys, a lane a dimension. No sum
// crosses the lanes of a vector, so the emulation's one lane gives the same bits.
#pragma once

#include "../dots.h"
#include "units.h"

namespace ARDIFF_NS {
namespace {

constexpr int kPairDims = 2 * kLanes;  // of two keys, as two vectors

ARDIFF_INLINE uint32_t pair_of(BFloat16 even, BFloat16 odd) {
  return even.bits | static_cast<uint32_t>(odd.bits) << 16;
}

/// q.k times `scale` of a tile of transposed keys `[D / 2, kKeys]` with queries `[D / 2, kWidth]`.
template <int kWidth>
ARDIFF_INLINE void dots(const uint32_t* query, const uint32_t* keys, int64_t D, float scale,
                        float* weight, Ahead& ahead) {
  VFloat sums[kWidth][kVectors];
  for (int i = 0; i < kWidth; ++i) {
    for (int v = 0; v < kVectors; ++v) sums[i][v] = VFloat(0.0f);
  }
  for (int64_t d = 0; d < D / 2; ++d) {
    ahead.ask(1);
    VWord key[kVectors];
    for (int v = 0; v < kVectors; ++v) key[v] = load(keys + d * kKeys + v * kLanes);
    for (int i = 0; i < kWidth; ++i) {
      const VWord q(query[d * kWidth + i]);
      for (int v = 0; v < kVectors; ++v) sums[i][v] = dot_pairs(q, key[v], sums[i][v]);
    }
  }
  for (int i = 0; i < kWidth; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      store_as(weight + i * kSplit + v * kLanes, sums[i][v] * VFloat(scale));
    }
  }
}

/// Which keys of a pair are seen; another is not read and counts as zero.
struct Seen {
  bool even, odd;
};

#if ARDIFF_LANES == 1

/// Reads kPairDims dimensions of two keys, or as many as are left.
struct PairReader {
  Seen seen;
  PairReader(Seen s, int64_t) : seen(s) {}
  void read(const BFloat16* even, const BFloat16* odd, VWord& low, VWord& high) const {
    const BFloat16 zero{0};
    low = pair_of(seen.even ? even[0] : zero, seen.odd ? odd[0] : zero);
    high = pair_of(seen.even ? even[1] : zero, seen.odd ? odd[1] : zero);
  }
};

/// Puts sums of what PairReader read in the order of dimensions.
inline void sort_dims(float*, int64_t) {}

#else

struct PairReader {
  __mmask32 even, odd;
  ARDIFF_INLINE PairReader(Seen seen, int64_t left) {
    const __mmask32 dims = left < kPairDims ? (1u << left) - 1 : ~0u;
    even = seen.even ? dims : 0;
    odd = seen.odd ? dims : 0;
  }
  ARDIFF_INLINE void read(const BFloat16* p, const BFloat16* q, VWord& low, VWord& high) const {
    const __m512i a = _mm512_maskz_loadu_epi16(even, p), b = _mm512_maskz_loadu_epi16(odd, q);
    low = (WordVector)_mm512_unpacklo_epi16(a, b);
    high = (WordVector)_mm512_unpackhi_epi16(a, b);
  }
};

/// Each 128 bits were interleaved apart.
inline void sort_dims(float* acc, int64_t D) {
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
  for (int64_t d = 0; d < D; d += kPairDims) {
    const __m512 low = _mm512_loadu_ps(acc + d), high = _mm512_loadu_ps(acc + d + kLanes);
    _mm512_storeu_ps(acc + d, _mm512_permutex2var_ps(low, first, high));
    _mm512_storeu_ps(acc + d + kLanes, _mm512_permutex2var_ps(low, second, high));
  }
}

#endif

/// Adds the values of pairs of keys that begin at even keys [j0, j1), in kCount times kPairDims
/// dimensions from d on.
template <int kWidth, int kCount>
ARDIFF_INLINE void add_pair_dims(const BFloat16* values, const int64_t* offset,
                                 const BFloat16* weight, int64_t j0, int64_t j1, Seen seen,
                                 int64_t d, int64_t D, float* acc, Ahead& ahead) {
  VFloat sums[kWidth][2 * kCount];
  for (int i = 0; i < kWidth; ++i) {
    for (int v = 0; v < 2 * kCount; ++v) {
      sums[i][v] = load_as<VFloat>(acc + i * kMostDims + d + v * kLanes);
    }
  }
  const PairReader last(seen, D - d - (kCount - 1) * kPairDims), whole(seen, kPairDims);
  for (int64_t j = j0; j < j1; j += 2) {
    const BFloat16 *even = values + offset[j] + d, *odd = values + offset[j + 1] + d;
    ahead.ask(2 * kCount);
    VWord value[2 * kCount];
    for (int v = 0; v < kCount; ++v) {
      const PairReader& reader = v == kCount - 1 ? last : whole;
      reader.read(even + v * kPairDims, odd + v * kPairDims, value[2 * v], value[2 * v + 1]);
    }
    for (int i = 0; i < kWidth; ++i) {
      uint32_t pair;
      std::memcpy(&pair, weight + i * kSplit + j, sizeof pair);
      const VWord p(pair);
      for (int v = 0; v < 2 * kCount; ++v) sums[i][v] = dot_pairs(p, value[v], sums[i][v]);
    }
  }
  for (int i = 0; i < kWidth; ++i) {
    for (int v = 0; v < 2 * kCount; ++v) {
      store_as(acc + i * kMostDims + d + v * kLanes, sums[i][v]);
    }
  }
}

template <int kWidth>
void add_pairs(const BFloat16* values, const int64_t* offset, const BFloat16* weight, int64_t j0,
               int64_t j1, Seen seen, int64_t D, float* acc, Ahead& ahead) {
  int64_t d = 0;
  for (; d + kPairDims < D; d += 2 * kPairDims) {
    add_pair_dims<kWidth, 2>(values, offset, weight, j0, j1, seen, d, D, acc, ahead);
  }
  if (d < D) add_pair_dims<kWidth, 1>(values, offset, weight, j0, j1, seen, d, D, acc, ahead);
}

/// The same for keys [from, to) of one query, which may lack a key of the first and last pair.
inline void add_some_pairs(const BFloat16* values, const int64_t* offset, const BFloat16* weight,
                           int64_t from, int64_t to, int64_t D, float* acc, Ahead& ahead) {
  const auto add = [&](int64_t j0, int64_t j1, Seen seen) {
    if (j0 < j1) add_pairs<1>(values, offset, weight, j0, j1, seen, D, acc, ahead);
  };
  const int64_t begin = (from + 1) / 2 * 2, end = to / 2 * 2;
  if (from < begin) add(from - 1, begin, {false, true});
  add(begin, end, {true, true});
  if (end < to) add(end, to + 1, {true, false});
}

}  // namespace
}  // namespace ARDIFF_NS
