// Products of a few rows with a large matrix of float32, bfloat16 or int8 weights. Each sum has
// eight parts, of the columns that are alike modulo 8, in ascending order, whatever the number of
// rows, the tile or the instruction set: a row's bits depend on nothing but the row.
#pragma once

#include "../kv/lanes.h"
#include "../number.h"
#include "args.h"

namespace ARDIFF_NS {

constexpr int kParts = 8;      // of a sum
constexpr int kTileOut = 4;    // rows of the matrix in a tile
constexpr int kTileRows = 3;   // rows of the batch in a tile
constexpr int kFewRows = 16;   // up to which the matrix is read as it streams by
constexpr int kRowBlock = 64;  // rows whose activations stay in the second-level cache
constexpr int kBlock = 512;    // columns whose weights stay in the first-level cache

#if ARDIFF_LANES == 1

struct Parts {
  float v[kParts];
};
template <class T>
ARDIFF_INLINE Parts load_parts(const T* p) {
  Parts x;
  for (int i = 0; i < kParts; ++i) x.v[i] = to_float(p[i]);
  return x;
}
ARDIFF_INLINE void store_parts(float* p, const Parts& x) { std::memcpy(p, x.v, sizeof x.v); }
ARDIFF_INLINE void multiply_add(const Parts& a, const Parts& b, Parts& c) {
  for (int i = 0; i < kParts; ++i) c.v[i] = fma(a.v[i], b.v[i], c.v[i]);
}
ARDIFF_INLINE void fetch(const void*) {}

#else

using Parts = VFloat;
template <class T>
ARDIFF_INLINE Parts load_parts(const T* p) {
  return widen<T>(p, kParts);
}
ARDIFF_INLINE void store_parts(float* p, Parts x) { store(p, x); }
ARDIFF_INLINE void multiply_add(Parts a, Parts b, Parts& c) { c = fma(a, b, c); }
ARDIFF_INLINE void fetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

#endif

ARDIFF_INLINE Parts zero_parts() {
  const float zero[kParts] = {};
  return load_parts(zero);
}
/// Elements [0, n), n < kParts, then zeros.
template <class T>
ARDIFF_INLINE Parts load_some(const T* p, int64_t n) {
  float x[kParts] = {};
  for (int64_t i = 0; i < n; ++i) x[i] = to_float(p[i]);
  return load_parts(x);
}
ARDIFF_INLINE float total(const Parts& parts) {
  float v[kParts];
  store_parts(v, parts);
  return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

/// Totals of one row's sums with kOut rows of the matrix.
template <int kOut>
ARDIFF_INLINE void store_totals(const Parts (&sum)[kOut], float* out) {
  int o = 0;
#if ARDIFF_LANES > 1
  for (; o + 4 <= kOut; o += 4) {
    const __m256 low = _mm256_hadd_ps((__m256)sum[o].v, (__m256)sum[o + 1].v);
    const __m256 high = _mm256_hadd_ps((__m256)sum[o + 2].v, (__m256)sum[o + 3].v);
    const __m256 all = _mm256_hadd_ps(low, high);
    _mm_storeu_ps(out + o, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
  }
#endif
  for (; o < kOut; ++o) out[o] = total(sum[o]);
}

/// Adds columns [k, k + kParts).
template <int kOut, int kRows, class T>
ARDIFF_INLINE void add_vector(const T* w, int64_t w_stride, const float* x, int64_t x_stride,
                              int64_t k, Parts (&sum)[kRows][kOut]) {
  Parts row[kRows];
  for (int n = 0; n < kRows; ++n) row[n] = load_parts(x + n * x_stride + k);
  for (int o = 0; o < kOut; ++o) {
    const Parts weight = load_parts(w + o * w_stride + k);
    for (int n = 0; n < kRows; ++n) multiply_add(weight, row[n], sum[n][o]);
  }
}

/// Adds columns [from, to), a multiple of kParts.
template <int kOut, int kRows, class T>
ARDIFF_INLINE void add_columns(const T* w, int64_t w_stride, const float* x, int64_t x_stride,
                               int64_t from, int64_t to, Parts (&sum)[kRows][kOut]) {
  for (int64_t k = from; k < to; k += kParts) add_vector(w, w_stride, x, x_stride, k, sum);
}

/// The same while it fetches next(o, k) for each cache line of the matrix.
template <int kOut, int kRows, class T, class Next>
ARDIFF_INLINE void stream_columns(const T* w, int64_t w_stride, const float* x, int64_t x_stride,
                                  int64_t from, int64_t to, Next next, Parts (&sum)[kRows][kOut]) {
  constexpr int kLine = 64 / sizeof(T);
  int64_t k = from;
  for (; k + kLine <= to; k += kLine) {
    for (int o = 0; o < kOut; ++o) fetch(next(o, k));
    for (int i = 0; i < kLine; i += kParts) add_vector(w, w_stride, x, x_stride, k + i, sum);
  }
  add_columns(w, w_stride, x, x_stride, k, to, sum);
}

/// The same for all whole vectors; fetches as many rows from `next` on. Measured on Zen 3: float32
/// rows come fastest side by side, shorter ones one after the other.
template <int kOut, int kRows, class T>
ARDIFF_INLINE void stream_group(const T* w, int64_t columns, const float* x, int64_t x_stride,
                                const T* next, Parts (&sum)[kRows][kOut]) {
  constexpr int kLine = 64 / sizeof(T);
  const int64_t whole = columns / kParts * kParts;
  if constexpr (sizeof(T) < sizeof(float)) {
    const auto in_order = [&](int o, int64_t k) { return next + k * kOut + o * kLine; };
    stream_columns(w, columns, x, x_stride, 0, whole, in_order, sum);
  } else {
    const int64_t ahead = smaller(1024, whole);
    const auto this_row = [&](int o, int64_t k) { return w + o * columns + k + ahead; };
    const auto next_row = [&](int o, int64_t k) {
      return next + o * columns + k - (whole - ahead);
    };
    stream_columns(w, columns, x, x_stride, 0, whole - ahead, this_row, sum);
    stream_columns(w, columns, x, x_stride, whole - ahead, whole, next_row, sum);
  }
}

/// The columns behind the last whole vector; x is zero from there on.
template <int kOut, int kRows, class T>
ARDIFF_INLINE void add_rest(const T* w, int64_t w_stride, const float* x, int64_t x_stride,
                            int64_t whole, int64_t columns, Parts (&sum)[kRows][kOut]) {
  if (whole == columns) return;
  for (int o = 0; o < kOut; ++o) {
    const Parts weight = load_some(w + o * w_stride + whole, columns - whole);
    for (int n = 0; n < kRows; ++n) {
      multiply_add(weight, load_parts(x + n * x_stride + whole), sum[n][o]);
    }
  }
}

/// Calls f(width, n) for groups of 3, 2 or 1 of the rows [0, rows).
template <class Function>
ARDIFF_INLINE void for_each_group(int64_t rows, Function f) {
  int64_t n = 0;
  for (; rows - n >= kTileRows && rows - n != 4; n += kTileRows) f(Number<kTileRows>(), n);
  for (; rows - n >= 2; n += 2) f(Number<2>(), n);
  if (n < rows) f(Number<1>(), n);
}

/// All columns of kOut rows of the matrix with a few rows of the batch; the first group of these
/// reads the matrix from memory, the others from the caches.
template <int kOut, class T>
inline void stream_rows(const T* w, int64_t columns, const float* x, int64_t x_stride, int64_t rows,
                        const T* next, float* out, int64_t out_stride) {
  const int64_t whole = columns / kParts * kParts;
  for_each_group(rows, [&](auto width, int64_t n) {
    constexpr int kRows = decltype(width)();
    Parts sum[kRows][kOut];
    for (auto& row : sum) {
      for (Parts& part : row) part = zero_parts();
    }
    const float* from = x + n * x_stride;
    if (n == 0) {
      stream_group(w, columns, from, x_stride, next, sum);
    } else {
      add_columns(w, columns, from, x_stride, 0, whole, sum);
    }
    add_rest(w, columns, from, x_stride, whole, columns, sum);
    for (int i = 0; i < kRows; ++i) store_totals(sum[i], out + (n + i) * out_stride);
  });
}

/// Columns [0, n) of kOut rows as float32 `[kOut, kBlock]`; fetches those of the next kOut rows.
template <int kOut, class T>
ARDIFF_INLINE void widen_block(const T* w, int64_t columns, int64_t n, float* block) {
  for (int o = 0; o < kOut; ++o) {
    const T* row = w + o * columns;
    for (int64_t k = 0; k < n; k += kParts) {
      fetch(row + kOut * columns + k);
      store_parts(block + o * kBlock + k, load_parts(row + k));
    }
  }
}

/// The same for many rows, at most kRowBlock: block after block of columns.
template <int kOut, class T>
inline void block_rows(const T* w, int64_t columns, const float* x, int64_t x_stride, int64_t rows,
                       float* out, int64_t out_stride) {
  alignas(64) float sums[kRowBlock][kOut][kParts], wide[kOut * kBlock];
  const int64_t whole = columns / kParts * kParts;
  int64_t k = 0;
  do {
    const int64_t n_columns = smaller(kBlock, whole - k);
    const bool first = k == 0, last = k + n_columns == whole;
    widen_block<kOut>(w + k, columns, n_columns, wide);
    for_each_group(rows, [&](auto width, int64_t n) {
      constexpr int kRows = decltype(width)();
      Parts sum[kRows][kOut];
      for (int i = 0; i < kRows; ++i) {
        for (int o = 0; o < kOut; ++o) {
          sum[i][o] = first ? zero_parts() : load_parts(sums[n + i][o]);
        }
      }
      add_columns(wide, kBlock, x + n * x_stride + k, x_stride, 0, n_columns, sum);
      if (last) {
        add_rest(w, columns, x + n * x_stride, x_stride, whole, columns, sum);
        for (int i = 0; i < kRows; ++i) store_totals(sum[i], out + (n + i) * out_stride);
        return;
      }
      for (int i = 0; i < kRows; ++i) {
        for (int o = 0; o < kOut; ++o) store_parts(sums[n + i][o], sum[i][o]);
      }
    });
    k += n_columns;
  } while (k < whole);
}

/// kOut rows of the matrix at a time, one at a time for the rest.
template <int kOut, class Function>
ARDIFF_INLINE void for_each_out(int64_t begin, int64_t end, Function f) {
  int64_t o = begin;
  for (; o + kOut <= end; o += kOut) f(Number<kOut>(), o);
  for (; o < end; ++o) f(Number<1>(), o);
}

template <class T>
inline void products_of(const HeadMatrix& m, int64_t begin, int64_t end, const float* x,
                        int64_t x_stride, int64_t rows, const void* next, float* out,
                        int64_t out_stride) {
  const T* w = static_cast<const T*>(m.data);
  const int64_t K = m.columns;
  const auto stream = [&](auto width, int64_t o) {
    constexpr int kOut = decltype(width)();
    const bool last = o + kOut >= end && next;
    stream_rows<kOut>(w + o * K, K, x, x_stride, rows,
                      last ? static_cast<const T*>(next) : w + (o + kOut) * K, out + o, out_stride);
  };
  if (rows <= kFewRows) return for_each_out<kTileOut>(begin, end, stream);
  for (int64_t n = 0; n < rows; n += kRowBlock) {
    for_each_out<kTileOut>(begin, end, [&](auto width, int64_t o) {
      block_rows<decltype(width){}>(w + o * K, K, x + n * x_stride, x_stride,
                                    smaller(kRowBlock, rows - n), out + n * out_stride + o,
                                    out_stride);
    });
  }
}

/// out[n, o] = x[n] . matrix[o] for o in [begin, end), without scale and bias. At the end fetches
/// what lies at `next`, where that is given.
inline void products(const HeadMatrix& m, int64_t begin, int64_t end, const float* x,
                     int64_t x_stride, int64_t rows, const void* next, float* out,
                     int64_t out_stride) {
  auto run = m.type == WeightType::float32    ? products_of<float>
             : m.type == WeightType::bfloat16 ? products_of<BFloat16>
                                              : products_of<Int8>;
  run(m, begin, end, x, x_stride, rows, next, out, out_stride);
}

/// The first weight of a row.
ARDIFF_INLINE const void* row_of(const HeadMatrix& m, int64_t row) {
  const int64_t size = m.type == WeightType::float32 ? 4 : m.type == WeightType::bfloat16 ? 2 : 1;
  return static_cast<const char*>(m.data) + row * m.columns * size;
}

}  // namespace ARDIFF_NS
