// Rows of a KV cache as vectors: values widened to float32, keys transposed so that a lane is a
// key.
#pragma once

#include "../../math/attention.h"
#include "../tile.h"

namespace ARDIFF_NS {

/// Elements of a cache that lie side by side.
struct Run {
  int64_t offset, elements;
};

/// Runs that will be read soon, asked for a few lines at a time between the work at hand: in one
/// burst they would wait for each other.
class Ahead {
 public:
  template <class T>
  Ahead(const T* cache, const Run* runs, int count)
      : cache_(reinterpret_cast<const char*>(cache)),
        size_(sizeof(T)),
        run_(runs),
        last_(runs + count) {}

  ARDIFF_INLINE void ask(int lines) {
    if (end_ - at_ >= kLine * lines) {
      for (int i = 0; i < lines; ++i) __builtin_prefetch(at_ + kLine * i, 0, 2);
      at_ += kLine * lines;
    } else if (run_ < last_) {
      ask_across_runs(lines);
    }
  }

 private:
  static constexpr int64_t kLine = 64;

  __attribute__((noinline)) void ask_across_runs(int lines) {
    for (; lines > 0; --lines) {
      if (at_ >= end_) {
        if (run_ == last_) return;
        at_ = cache_ + run_->offset * size_;
        end_ = at_ + run_->elements * size_;
        ++run_;
      }
      __builtin_prefetch(at_, 0, 2);
      at_ += kLine;
    }
  }

  const char* cache_;
  int64_t size_;
  const Run *run_, *last_;
  const char *at_ = nullptr, *end_ = nullptr;
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
inline void transpose_keys(const T* k, const int64_t* offset, int64_t D, float* out, Ahead&) {
  for (int j = 0; j < kKeys; ++j) {
    const T* row = k + offset[j];
    for (int64_t i = 0; i < D; ++i) out[i * kKeys + j] = to_float(row[i]);
  }
}
inline void transpose_keys(const BFloat16* k, const int64_t* offset, int64_t D, uint32_t* out,
                           Ahead&) {
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

#elif defined(__AVX512F__)

ARDIFF_INLINE __m512 widen_sixteen(const float* p) { return _mm512_loadu_ps(p); }
ARDIFF_INLINE __m512 widen_sixteen(const BFloat16* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
ARDIFF_INLINE __m512 widen_sixteen(const Int8* p) {
  const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
}
ARDIFF_INLINE __m512 widen_sixteen(const Float8* p) {
  const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m512i x = _mm512_cvtepu8_epi32(codes), nan = _mm512_set1_epi32(0x7f);
  const __m512i magnitude = _mm512_and_si512(x, nan);
  const __m512i sign = _mm512_slli_epi32(_mm512_andnot_si512(nan, x), 24);
  const __m512i quiet =
      _mm512_maskz_set1_epi32(_mm512_cmpeq_epi32_mask(magnitude, nan), 0x7fc00000);
  const __m512 value = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(magnitude, 20)),
                                     _mm512_set1_ps(0x1p120f));
  return _mm512_or_ps(value, _mm512_castsi512_ps(_mm512_or_si512(sign, quiet)));
}

/// Elements [0, 16) of a row, zeros behind the `left` (a multiple of 8) that are there.
template <class T>
ARDIFF_INLINE VFloat widen(const T* p, int64_t left) {
  return (FloatVector)(left > 8 ? widen_sixteen(p) : _mm512_zextps256_ps512(widen_eight(p)));
}

#else

template <class T>
ARDIFF_INLINE VFloat widen(const T* p, int64_t left) {
  const __m256 low = widen_eight(p);
  const __m256 high = left > 8 ? widen_eight(p + 8) : _mm256_setzero_ps();
  VFloat x;
  std::memcpy(&x, &low, sizeof low);
  std::memcpy(reinterpret_cast<char*>(&x) + sizeof low, &high, sizeof high);
  return x;
}

#endif

#ifdef __AVX512F__

constexpr int kRows = 16;  // that are transposed at once

/// The next 64 bytes of a row: 16 float32, 16 pairs of bfloat16, or 16 codes widened; zeros where
/// the row ends before, `left` elements (a multiple of 8) being there.
template <bool kWhole>
ARDIFF_INLINE __m512i load_words(const float* p, int64_t left) {
  if (kWhole) return _mm512_loadu_si512(p);
  return _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << left) - 1), p);
}
template <bool kWhole>
ARDIFF_INLINE __m512i load_words(const BFloat16* p, int64_t left) {
  return load_words<kWhole>(reinterpret_cast<const float*>(p), left / 2);
}
template <bool kWhole, class Code>
ARDIFF_INLINE __m512i load_words(const Code* p, int64_t left) {
  return (__m512i)widen(p, kWhole ? kLanes : left).v;
}

ARDIFF_INLINE void transpose_words(__m512i (&r)[kRows], void* out) {
  __m512i t[kRows];
  for (int i = 0; i < kRows; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < kRows; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  const auto put = [&](int word, __m512i x) {
    _mm512_storeu_si512(static_cast<uint32_t*>(out) + word * kKeys, x);
  };
  for (int i = 0; i < 4; ++i) {
    const __m512i even = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    const __m512i odd = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    const __m512i more_even = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    const __m512i more_odd = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    put(i, _mm512_shuffle_i32x4(even, more_even, 0x88));
    put(i + 4, _mm512_shuffle_i32x4(odd, more_odd, 0x88));
    put(i + 8, _mm512_shuffle_i32x4(even, more_even, 0xdd));
    put(i + 12, _mm512_shuffle_i32x4(odd, more_odd, 0xdd));
  }
}

template <bool kWhole, class T>
ARDIFF_INLINE void transpose_part(const T* const (&row)[kRows], int64_t i, int64_t left, void* out,
                                  Ahead& ahead) {
  __m512i r[kRows];
  for (int l = 0; l < kRows; ++l) {
    r[l] = load_words<kWhole>(row[l] + i, left);
    if (l % 2 == 0) ahead.ask(1);
  }
  transpose_words(r, out);
}

/// Keys k + offset[0] to k + offset[kKeys - 1]: float32 `[D, kKeys]`, or pairs of bfloat16
/// `[D / 2, kKeys]`, and rubbish up to the next multiple of 16 words. Asks for half as many lines
/// ahead as it reads; who uses the keys, for the others.
template <class T, class Out>
inline void transpose_keys(const T* k, const int64_t* offset, int64_t D, Out* out, Ahead& ahead) {
  constexpr int64_t kStep = sizeof(T) == 2 ? 32 : 16, kPerWord = kStep / 16;
  for (int j = 0; j < kKeys; j += kRows) {
    const T* row[kRows];
    for (int l = 0; l < kRows; ++l) row[l] = k + offset[j + l];
    int64_t i = 0;
    for (; i + kStep <= D; i += kStep) {
      transpose_part<true>(row, i, kStep, out + i / kPerWord * kKeys + j, ahead);
    }
    if (i < D) transpose_part<false>(row, i, D - i, out + i / kPerWord * kKeys + j, ahead);
  }
}

#else

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
/// `[D / 2, kKeys]`. Asks for half as many lines ahead as it reads.
template <class T, class Out>
inline void transpose_keys(const T* k, const int64_t* offset, int64_t D, Out* out, Ahead& ahead) {
  constexpr int64_t kWords = sizeof(T) == 2 ? 4 : 8;  // of eight dimensions
  for (int j = 0; j < kKeys; j += 8) {
    for (int64_t i = 0; i < D; i += 8) {
      const T* row[8];
      for (int l = 0; l < 8; ++l) row[l] = k + offset[j + l] + i;
      ahead.ask((sizeof(T) + 1) / 2);
      transpose_eight(row, out + i / 8 * kWords * kKeys + j);
    }
  }
}

#endif  // __AVX512F__

#endif  // ARDIFF_LANES == 1

}  // namespace ARDIFF_NS
