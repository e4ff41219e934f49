// Rows of a KV cache as vectors: values widened to float32, keys transposed so that a lane is a
// key.
#pragma once

#include "../../math/attention.h"
#include "../tile.h"

namespace ARDIFF_NS {

/// Rows that will be read soon, asked for line by line between the work at hand: in one burst they
/// would wait for each other.
template <class T>
struct Ahead {
  const T* rows;
  const int64_t* offset;
  int64_t row, end, bytes;  // the next row, the last and one, bytes per row
  int64_t at = 0;           // the next byte of the row

  ARDIFF_INLINE void ask(int lines) {
    for (int i = 0; i < lines && row < end; ++i) {
      __builtin_prefetch(reinterpret_cast<const char*>(rows + offset[row]) + at, 0, 2);
      at += 64;
      if (at < bytes) continue;
      at = 0;
      ++row;
    }
  }
};

/// Keys of a transposed tile: two vectors, so that four queries keep eight sums in flight.
constexpr int kKeys = kLanes == 1 ? 16 : 2 * kLanes;

#if ARDIFF_LANES == 1

ARDIFF_INLINE float larger(float a, float b) { return a > b ? a : b; }

template <class T>
ARDIFF_INLINE float widen(const T* p, int64_t) {
  return to_float(*p);
}

template <class T>
inline void transpose_keys(const T* k, const int64_t* offset, int64_t D, float* out, Ahead<T>&) {
  for (int j = 0; j < kKeys; ++j) {
    const T* row = k + offset[j];
    for (int64_t i = 0; i < D; ++i) out[i * kKeys + j] = to_float(row[i]);
  }
}
inline void transpose_keys(const BFloat16* k, const int64_t* offset, int64_t D, uint32_t* out,
                           Ahead<BFloat16>&) {
  for (int j = 0; j < kKeys; ++j) {
    const BFloat16* row = k + offset[j];
    for (int64_t i = 0; i < D; i += 2) {
      out[i / 2 * kKeys + j] = row[i].bits | static_cast<uint32_t>(row[i + 1].bits) << 16;
    }
  }
}

#else

ARDIFF_INLINE VFloat larger(VFloat a, VFloat b) { return a.v > b.v ? a.v : b.v; }

ARDIFF_INLINE __m256 widen_eight(const float* p) { return _mm256_loadu_ps(p); }
ARDIFF_INLINE __m256 widen_eight(const BFloat16* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
ARDIFF_INLINE __m256 widen_eight(const Int8* p) {
  const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
}
ARDIFF_INLINE __m256 widen_eight(const Float8* p) {
  const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  const __m256i x = _mm256_cvtepu8_epi32(codes), nan = _mm256_set1_epi32(0x7f);
  const __m256i magnitude = _mm256_and_si256(x, nan);
  const __m256i sign = _mm256_slli_epi32(_mm256_andnot_si256(nan, x), 24);
  const __m256i quiet =
      _mm256_and_si256(_mm256_cmpeq_epi32(magnitude, nan), _mm256_set1_epi32(0x7fc00000));
  const __m256 value = _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(magnitude, 20)),
                                     _mm256_set1_ps(0x1p120f));
  return _mm256_or_ps(value, _mm256_castsi256_ps(_mm256_or_si256(sign, quiet)));
}

#if ARDIFF_LANES == 8

/// Elements [0, kLanes) of a row, of which `left` are there (a multiple of 8).
template <class T>
ARDIFF_INLINE VFloat widen(const T* p, int64_t) {
  return VFloat((FloatVector)widen_eight(p));
}

#else

template <class T>
ARDIFF_INLINE VFloat widen(const T* p, int64_t left) {
  const __m256 low = widen_eight(p);
  const __m256 high = left > 8 ? widen_eight(p + 8) : _mm256_setzero_ps();
#ifdef __AVX512F__
  return VFloat((FloatVector)_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1));
#else
  VFloat x;
  std::memcpy(&x, &low, sizeof low);
  std::memcpy(reinterpret_cast<char*>(&x) + sizeof low, &high, sizeof high);
  return x;
#endif
}

#endif

/// Transposes four words of eight rows; rows i and i + 4 are the halves of r[i].
ARDIFF_INLINE void transpose_words(__m256 (&r)[4]) {
  const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(r[0], r[1]));
  const __m256d b = _mm256_castps_pd(_mm256_unpackhi_ps(r[0], r[1]));
  const __m256d c = _mm256_castps_pd(_mm256_unpacklo_ps(r[2], r[3]));
  const __m256d d = _mm256_castps_pd(_mm256_unpackhi_ps(r[2], r[3]));
  r[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
  r[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
  r[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
  r[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
}

ARDIFF_INLINE __m256 two_rows(const float* first, const float* second) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(first)), _mm_loadu_ps(second), 1);
}

/// Eight dimensions of eight keys, each at row[j], to out[dimension * kKeys + j].
ARDIFF_INLINE void transpose_eight(const float* const (&row)[8], float* out) {
  for (int half = 0; half < 8; half += 4) {
    __m256 r[4];
    for (int j = 0; j < 4; ++j) r[j] = two_rows(row[j] + half, row[j + 4] + half);
    transpose_words(r);
    for (int i = 0; i < 4; ++i) _mm256_storeu_ps(out + (half + i) * kKeys, r[i]);
  }
}
/// The same for bfloat16, two dimensions to a word.
ARDIFF_INLINE void transpose_eight(const BFloat16* const (&row)[8], uint32_t* out) {
  __m256 r[4];
  for (int j = 0; j < 4; ++j) {
    r[j] = two_rows(reinterpret_cast<const float*>(row[j]),
                    reinterpret_cast<const float*>(row[j + 4]));
  }
  transpose_words(r);
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i * kKeys), _mm256_castps_si256(r[i]));
  }
}
template <class Code>
ARDIFF_INLINE void transpose_eight(const Code* const (&row)[8], float* out) {
  alignas(32) float wide[8][8];
  const float* rows[8];
  for (int j = 0; j < 8; ++j) {
    _mm256_store_ps(wide[j], widen_eight(row[j]));
    rows[j] = wide[j];
  }
  transpose_eight(rows, out);
}

/// Keys k + offset[0] to k + offset[kKeys - 1]: float32 `[D, kKeys]`, or pairs of bfloat16
/// `[D / 2, kKeys]`. Asks for as many bytes ahead as it reads.
template <class T, class Out>
inline void transpose_keys(const T* k, const int64_t* offset, int64_t D, Out* out,
                           Ahead<T>& ahead) {
  constexpr int64_t kWords = sizeof(T) == 2 ? 4 : 8;  // of eight dimensions
  for (int j = 0; j < kKeys; j += 8) {
    for (int64_t i = 0; i < D; i += 8) {
      const T* row[8];
      for (int l = 0; l < 8; ++l) row[l] = k + offset[j + l] + i;
      ahead.ask(sizeof(T));
      transpose_eight(row, out + i / 8 * kWords * kKeys + j);
    }
  }
}

#endif  // ARDIFF_LANES == 1

}  // namespace ARDIFF_NS
