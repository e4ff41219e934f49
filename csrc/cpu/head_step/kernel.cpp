// head_step for one instruction set; free of torch, built once for each. All threads run the whole
// step together: whoever is free takes the next ticket, a share of a layer, and waits only for the
// tickets of earlier layers, each of which some running thread holds. So one thread alone gets
// through, and one that the system delays holds up no more than its share.
#if ARDIFF_LANES == 16
// Sums have eight parts on every instruction set, so that all agree to the bit.
#undef ARDIFF_LANES
#define ARDIFF_LANES 8
#define ARDIFF_NARROW
#undef ARDIFF_NS
#define ARDIFF_NS ardiff::avx512::narrow
#endif

#include <sched.h>

#include "../silu.h"
#include "product.h"

namespace ARDIFF_NS {
namespace {

constexpr int kSpins = 256;  // before the core is left to others

void wait_for(const int64_t* done, int64_t count) {
  for (int i = 0; __atomic_load_n(done, __ATOMIC_ACQUIRE) < count; ++i) {
    if (i >= kSpins) {
      sched_yield();
      continue;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

/// Vector `index` of a row's modulation of a block: shift, scale or gate; the final layer is block
/// `depth`.
template <class T>
ARDIFF_INLINE const T* modulation(const HeadStepArgs& a, int64_t row, int64_t block, int index) {
  const int64_t columns = (3 * a.depth + 2) * a.width;
  const int64_t at = a.modulation_rows == a.R ? row : row / a.N;
  return static_cast<const T*>(a.modulation) + at * columns + (3 * block + index) * a.width;
}

/// The sum over a row of f(h), in eight parts.
template <class Function>
ARDIFF_INLINE float sum_of(const float* h, int64_t width, Function f) {
  Parts sum = zero_parts();
  int64_t k = 0;
  for (; k + kParts <= width; k += kParts) f(load_parts(h + k), sum);
  if (k < width) {
    float part[kParts];
    store_parts(part, sum);
    for (int64_t i = k; i < width; ++i) {
      Parts one = zero_parts();
      f(load_some(h + i, 1), one);
      float first[kParts];
      store_parts(first, one);
      part[i - k] += first[0];
    }
    sum = load_parts(part);
  }
  return total(sum);
}

Parts all_parts(float x) {
  float v[kParts];
  for (float& part : v) part = x;
  return load_parts(v);
}

/// Row `row` of y as the matrix that reads it takes it, where that is packed.
void pack_normed(const HeadStepArgs& a, int64_t row, int64_t block) {
  const HeadMatrix& m = a.matrix[2 * block + 1];
  if (!m.products || m.products->floats) return;
  m.products->pack_row(m.type, a.y + row * a.stride, m.columns, a.y_rows, row);
}

/// Row `row` of u for the matrix that leads out of a block, or of x for the input's, block -1.
void pack_input(const HeadStepArgs& a, int64_t row, int64_t block) {
  const HeadMatrix& m = a.matrix[2 * block + 2];
  const float* x = block < 0 ? a.x + row * a.x_stride : a.u + row * a.u_stride;
  m.products->pack_row(m.type, x, m.columns, block < 0 ? a.x_rows : a.u_rows, row);
}

/// out[n, o] = rows[n] . matrix[o] for o in [begin, end), without scale and bias; `x` and
/// `x_stride` are the rows as float32. `next` is fetched at the end, where that is given.
void multiply(const HeadMatrix& m, int64_t begin, int64_t end, const PackedRows& rows,
              const float* x, int64_t x_stride, int64_t count, const void* next, float* out,
              int64_t out_stride) {
  if (!m.products) return products(m, begin, end, x, x_stride, count, next, out, out_stride);
  char* floats = const_cast<char*>(reinterpret_cast<const char*>(x));
  m.products->multiply(m.packed(), begin / kPanel, (end + kPanel - 1) / kPanel,
                       m.products->floats ? PackedRows{floats, 4 * x_stride, nullptr} : rows, count,
                       out + begin, out_stride);
}

template <class T>
void normalize(const HeadStepArgs& a, int64_t row, int64_t block) {
  const float* h = a.h + row * a.stride;
  float* y = a.y + row * a.stride;
  const float width = static_cast<float>(a.width);
  float mean = 0.0f;
  if (!a.rms_norm) {
    const Parts one = all_parts(1.0f);
    mean = sum_of(h, a.width, [&](Parts x, Parts& sum) { multiply_add(x, one, sum); }) / width;
  }
  const Parts minus = all_parts(-1.0f), centre = all_parts(mean);
  const float square = sum_of(h, a.width, [&](Parts x, Parts& sum) {
    multiply_add(centre, minus, x);
    multiply_add(x, x, sum);
  });
  const float factor = 1.0f / sqrt(square / width + a.eps);
  const T *shift = modulation<T>(a, row, block, 0), *scale = modulation<T>(a, row, block, 1);
  for_each_lane(a.width, [&](int64_t i, auto lane) {
    using F = decltype(lane);
    const F n = (load_as<F>(h + i) - F(mean)) * F(factor);
    store_as(y + i, fma(n, load_as<F>(scale + i), load_as<F>(shift + i)));
  });
}

/// A layer's sums at [begin, end), times scale, plus bias.
template <class F>
ARDIFF_INLINE F with_bias(const HeadMatrix& m, F sum, int64_t i) {
  if (m.scale) sum = sum * load_as<F>(m.scale + i);
  return m.bias ? sum + load_as<F>(m.bias + i) : sum;
}

void input_layer(const HeadStepArgs& a, int64_t begin, int64_t end, const void* next) {
  const HeadMatrix& m = a.matrix[0];
  multiply(m, begin, end, a.x_rows, a.x, a.x_stride, a.N, next, a.h, a.stride);
  for (int64_t n = 0; n < a.N; ++n) {
    float* h = a.h + n * a.stride + begin;
    for_each_lane(end - begin, [&](int64_t i, auto lane) {
      using F = decltype(lane);
      const F sum = with_bias(m, load_as<F>(h + i), begin + i);
      for (int64_t way = 0; way < a.ways; ++way) store_as(h + way * a.N * a.stride + i, sum);
    });
  }
}

void inner_layer(const HeadStepArgs& a, int64_t block, int64_t begin, int64_t end,
                 const void* next) {
  const HeadMatrix& m = a.matrix[2 * block + 1];
  const int64_t inner = a.matrix[2 * block + 2].columns;
  multiply(m, begin, end, a.y_rows, a.y, a.stride, a.R, a.gated ? row_of(m, inner + begin) : next,
           a.u, a.u_stride);
  if (a.gated) {
    multiply(m, inner + begin, inner + end, a.y_rows, a.y, a.stride, a.R, next,
             a.u + a.half - inner, a.u_stride);
  }
  for (int64_t n = 0; n < a.R; ++n) {
    float* u = a.u + n * a.u_stride + begin;
    for_each_lane(end - begin, [&](int64_t i, auto lane) {
      using F = decltype(lane);
      F x = silu(with_bias(m, load_as<F>(u + i), begin + i));
      if (a.gated) x = x * with_bias(m, load_as<F>(u + a.half + i), inner + begin + i);
      store_as(u + i, x);
    });
    if (end == inner) {
      for (int64_t i = inner; i % kParts; ++i) u[i - begin] = 0.0f;
    }
  }
}

template <class T>
void outer_layer(const HeadStepArgs& a, int64_t block, int64_t begin, int64_t end,
                 const void* next) {
  const HeadMatrix& m = a.matrix[2 * block + 2];
  multiply(m, begin, end, a.u_rows, a.u, a.u_stride, a.R, next, a.y, a.stride);
  for (int64_t n = 0; n < a.R; ++n) {
    const float* y = a.y + n * a.stride + begin;
    float* h = a.h + n * a.stride + begin;
    const T* gate = modulation<T>(a, n, block, 2) + begin;
    for_each_lane(end - begin, [&](int64_t i, auto lane) {
      using F = decltype(lane);
      const F x = with_bias(m, load_as<F>(y + i), begin + i);
      store_as(h + i, fma(load_as<F>(gate + i), x, load_as<F>(h + i)));
    });
  }
}

void last_layer(const HeadStepArgs& a, int64_t begin, int64_t end, const void* next) {
  const HeadMatrix& m = a.matrix[2 * a.depth + 1];
  multiply(m, begin, end, a.y_rows, a.y, a.stride, a.R, next, a.out, a.out_stride);
  for (int64_t n = 0; n < a.R; ++n) {
    float* out = a.out + n * a.out_stride + begin;
    for_each_lane(end - begin, [&](int64_t i, auto lane) {
      store_as(out + i, with_bias(m, load_as<decltype(lane)>(out + i), begin + i));
    });
  }
}

/// The matrix of a phase; null for a norm and for packing.
const HeadMatrix* matrix_of(const HeadStepArgs& a, const HeadPhase& phase) {
  switch (phase.part) {
    case HeadPart::input:
      return a.matrix;
    case HeadPart::norm:
    case HeadPart::pack:
      return nullptr;
    case HeadPart::inner:
      return a.matrix + 2 * phase.block + 1;
    case HeadPart::outer:
      return a.matrix + 2 * phase.block + 2;
    case HeadPart::last:
      return a.matrix + 2 * a.depth + 1;
  }
  return nullptr;
}

/// Share `index` of a phase; `next` is where the weights of this thread's next share lie, or null.
template <class T>
void run_share(const HeadStepArgs& a, const HeadPhase& phase, int64_t index, const void* next) {
  const int64_t begin = index * phase.share, block = phase.block;
  const auto end = [&](int64_t rows) { return smaller(rows, begin + phase.share); };
  switch (phase.part) {
    case HeadPart::input:
      return input_layer(a, begin, end(a.width), next);
    case HeadPart::norm:
      for (int64_t row = begin; row < end(a.R); ++row) {
        normalize<T>(a, row, block);
        pack_normed(a, row, block);
      }
      return;
    case HeadPart::pack:
      for (int64_t row = begin; row < end(block < 0 ? a.N : a.R); ++row) pack_input(a, row, block);
      return;
    case HeadPart::inner:
      return inner_layer(a, block, begin, end(a.matrix[2 * block + 2].columns), next);
    case HeadPart::outer:
      return outer_layer<T>(a, block, begin, end(a.width), next);
    case HeadPart::last:
      return last_layer(a, begin, end(a.matrix[2 * a.depth + 1].rows), next);
  }
}

/// The tickets of one thread, of which it takes one ahead to know what to fetch.
struct Taker {
  const HeadStepArgs& a;
  int64_t ticket = -1, phase = 0;
  void take() {
    ticket = __atomic_fetch_add(&a.tickets->taken, 1, __ATOMIC_RELAXED);
    while (phase < a.phases && ticket >= a.phase[phase + 1].begin) ++phase;
  }
  bool over() const { return phase == a.phases; }
  int64_t index() const { return ticket - a.phase[phase].begin; }
  const void* weights() const {
    const HeadMatrix* m = over() ? nullptr : matrix_of(a, a.phase[phase]);
    return m ? row_of(*m, index() * a.phase[phase].share) : nullptr;
  }
};

}  // namespace

/// Takes tickets until there are none left; to be called by any number of threads at once.
void head_step_shares(const HeadStepArgs& a, int64_t, int64_t) {
  Taker next{a};
  next.take();
  while (!next.over()) {
    const int64_t index = next.index();
    const HeadPhase& phase = a.phase[next.phase];
    next.take();
    wait_for(&a.tickets->done, phase.begin);
    if (a.modulation_bfloat16) {
      run_share<BFloat16>(a, phase, index, next.weights());
    } else {
      run_share<float>(a, phase, index, next.weights());
    }
    __atomic_fetch_add(&a.tickets->done, 1, __ATOMIC_RELEASE);
  }
}

}  // namespace ARDIFF_NS

#ifdef ARDIFF_NARROW
namespace ardiff::avx512 {
void head_step_shares(const HeadStepArgs& a, int64_t first, int64_t last) {
  narrow::head_step_shares(a, first, last);
}
}  // namespace ardiff::avx512
#endif
