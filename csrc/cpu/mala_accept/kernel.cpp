// mala_accept for one instruction set; free of torch, built once for each. A sample is one
// thread's, which sums it chunk by chunk. Some samples are decided one after the other, then their
// selected rows are copied while they are in the cache.
#if defined(__GNUC__) && !defined(__clang__)
// The four vectors of a step in flight at once do not fit the registers.
#pragma GCC optimize("no-schedule-insns")
#endif

#include "../../math/mala_accept.h"
#include "../sums.h"

namespace ARDIFF_NS {
namespace {

struct alignas(64) Scratch {
  float out_x[kChunk], out_y[kChunk], out_mid[kChunk];
};

/// Pointers to a chunk of one sample.
struct Chunk {
  const float *x, *y, *out_x, *out_y, *anchor, *v_x, *v_y, *out_mid;
  int64_t length;
};

/// What a chunk's loop computes. `drop` follows the definition; without it a value that is not
/// finite shows in the sum even where its coefficient is zero.
template <bool kKinetic_, Correction kCorrection_, bool kProject, bool kDrop_>
struct Mode {
  static constexpr bool kKinetic = kKinetic_, kDrop = kDrop_;
  static constexpr Correction kCorrection = kCorrection_;
  static constexpr int kSums = kProject ? 3 : 1;
};

/// One element per lane, added to a lane of each sum: log_alpha, |y - x|^2 and |y|^2.
template <class M, class F>
ARDIFF_INLINE void add_element(const AcceptRow<F>& row, const Chunk& c, int64_t i,
                               F* const (&sums)[M::kSums]) {
  const AcceptPair<F> p{load_as<F>(c.x + i), load_as<F>(c.y + i), load_as<F>(c.out_x + i),
                        load_as<F>(c.out_y + i)};
  const F anchor = load_as<F>(c.anchor + i);
  F t = M::kDrop ? accept_term(row, p, anchor) : accept_term_undropped(row, p, anchor);
  if constexpr (M::kKinetic) {
    t = add_kinetic(row, load_as<F>(c.v_x + i), load_as<F>(c.v_y + i), t);
  }
  if constexpr (M::kCorrection == Correction::simpson) {
    t = add_simpson(row, p, load_as<F>(c.out_mid + i), t);
  }
  if constexpr (M::kCorrection == Correction::energies) t = subtract_trapezoid(row, p, t);
  *sums[0] = *sums[0] + t;
  if constexpr (M::kSums == 3) {
    const F delta = p.y - p.x;
    *sums[1] = fma(delta, delta, *sums[1]);
    *sums[2] = fma(p.y, p.y, *sums[2]);
  }
}

template <class M>
ARDIFF_INLINE void add_vector(const AcceptRow<VFloat>& row, const Chunk& c, int64_t i, int j,
                              Vectors (&sums)[M::kSums]) {
  if constexpr (M::kSums == 3) {
    add_element<M, VFloat>(row, c, i, {&sums[0][j], &sums[1][j], &sums[2][j]});
  } else {
    add_element<M, VFloat>(row, c, i, {&sums[0][j]});
  }
}

/// Adds the last elements, too few for a vector; the first of them belongs to lane `k`.
template <class M>
__attribute__((noinline)) void add_rest(const float* coef, const Chunk& c, int64_t i, int64_t k,
                                        Vectors (&sums)[M::kSums]) {
  const AcceptRow<float> row = accept_row<float>(coef);
  float lanes[M::kSums][kSumLanes];
  for (int s = 0; s < M::kSums; ++s) {
    for (int j = 0; j < kVectors; ++j) store_as(lanes[s] + j * kLanes, sums[s][j]);
  }
  for (; i < c.length; ++i, ++k) {
    if constexpr (M::kSums == 3) {
      add_element<M, float>(row, c, i, {&lanes[0][k], &lanes[1][k], &lanes[2][k]});
    } else {
      add_element<M, float>(row, c, i, {&lanes[0][k]});
    }
  }
  for (int s = 0; s < M::kSums; ++s) {
    for (int j = 0; j < kVectors; ++j) sums[s][j] = load_as<VFloat>(lanes[s] + j * kLanes);
  }
}

/// Sums of a chunk.
template <class M>
ARDIFF_INLINE AcceptSums<double> sums_of(const float* coef, const AcceptRow<VFloat>& row,
                                         const Chunk& c) {
  Vectors sums[M::kSums];
  for (int s = 0; s < M::kSums; ++s) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) sums[s][j] = VFloat(0.0f);
  }
  int64_t i = 0;
  for (; i + kSumLanes <= c.length; i += kSumLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) add_vector<M>(row, c, i + j * kLanes, j, sums);
  }
  const int64_t whole = i;
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) {
    if (i + kLanes > c.length) continue;
    add_vector<M>(row, c, i, j, sums);
    i += kLanes;
  }
  if (kLanes > 1 && i < c.length) add_rest<M>(coef, c, i, i - whole, sums);
  if constexpr (M::kSums == 1) {
    return {sum_vectors(sums[0]), 0.0, 0.0};
  } else {
    return {sum_vectors(sums[0]), sum_vectors(sums[1]), sum_vectors(sums[2])};
  }
}

/// Sums of sample b.
template <class M>
AcceptSums<double> total_of(const AcceptArgs& a, int64_t b, const float* coef, Scratch& scratch) {
  const AcceptRow<VFloat> row = accept_row<VFloat>(coef);
  const int64_t chunks = (a.d + kChunk - 1) / kChunk;
  AcceptSums<double> groups[kGroups];
  const int64_t used = smaller(chunks, kGroups);
  for (int64_t g = 0; g < used; ++g) groups[g] = {};
  for (int64_t k = 0; k < chunks; ++k) {
    const int64_t i = k * kChunk;
    Chunk c{};
    c.length = smaller(kChunk, a.d - i);
    c.x = address<float>(a.x, b, i);
    c.y = address<float>(a.y, b, i);
    c.anchor = address<float>(a.anchor, b, i);
    c.out_x = as_float(a.out_x, b, i, c.length, scratch.out_x);
    c.out_y = as_float(a.out_y, b, i, c.length, scratch.out_y);
    if constexpr (M::kKinetic) {
      c.v_x = address<float>(a.v_x, b, i);
      c.v_y = address<float>(a.v_y, b, i);
    }
    if constexpr (M::kCorrection == Correction::simpson) {
      c.out_mid = as_float(a.out_mid, b, i, c.length, scratch.out_mid);
    }
    add_sums(groups[k % kGroups], sums_of<M>(coef, row, c));
  }
  AcceptSums<double> total{};
  for (int64_t g = 0; g < used; ++g) add_sums(total, groups[g]);
  return total;
}

using TotalOf = AcceptSums<double> (*)(const AcceptArgs&, int64_t, const float*, Scratch&);

/// The loops for a call: without dropping, with and without projection, and the definition's.
struct Loops {
  TotalOf plain, projected, defined;
};

template <bool kKinetic, Correction kCorrection>
Loops choose() {
  return {&total_of<Mode<kKinetic, kCorrection, false, false>>,
          &total_of<Mode<kKinetic, kCorrection, true, false>>,
          &total_of<Mode<kKinetic, kCorrection, true, true>>};
}

template <bool kKinetic>
Loops choose(const AcceptArgs& a) {
  return a.energy_x       ? choose<kKinetic, Correction::energies>()
         : a.out_mid.data ? choose<kKinetic, Correction::simpson>()
                          : choose<kKinetic, Correction::none>();
}

template <class T>
void copy_row(const In& from, const Out& to, int64_t b, int64_t d) {
  const T* source = address<T>(from, b, 0);
  T* target = address<T>(to, b, 0);
  if (source != target) std::memcpy(target, source, sizeof(T) * d);
}

/// Makes sample b the origin or the proposal; a row that is in its place already is left alone.
void select(const AcceptArgs& a, int64_t b, bool proposal) {
  copy_row<float>(proposal ? a.y : a.x, a.x_new, b, a.d);
  const In& out = proposal ? a.out_y : a.out_x;
  if (out.type == Type::float32) {
    copy_row<float>(out, a.out_new, b, a.d);
  } else {
    copy_row<uint16_t>(out, a.out_new, b, a.d);
  }
  if (a.energy_new) a.energy_new[b] = proposal ? a.energy_y[b] : a.energy_x[b];
  if (!a.v_new.data) return;
  if (proposal) return copy_row<float>(a.v_y, a.v_new, b, a.d);
  const float* v_x = address<float>(a.v_x, b, 0);
  float* v_new = address<float>(a.v_new, b, 0);
  for_each_lane(a.d, [&](int64_t i, auto lane) {
    using F = decltype(lane);
    using U = typename Lane<F>::U;
    store_as(v_new + i, from_bits(bits(load_as<F>(v_x + i)) ^ U(0x80000000u)));
  });
}

constexpr int64_t kBatch = 16;  // a multiple of the lanes

/// log of the accept uniforms of samples [b, b + n), n <= kBatch.
void log_uniforms(const AcceptArgs& a, const RoundKeys& keys, int64_t b, int64_t n,
                  float (&log_u)[kBatch]) {
  uint32_t c1[kBatch] = {}, c2[kBatch] = {}, c3[kBatch] = {};
  for (int64_t s = 0; s < n; ++s) {
    c1[s] = counter_word(at(a.address.draw, b + s), kAcceptUniform);
    c2[s] = low_word(a.address.stream[b + s]);
    c3[s] = high_word(a.address.stream[b + s]);
  }
  for (int64_t s = 0; s < n; s += kLanes) {
    const VWord word = first_words(VWord(0u), load(c1 + s), load(c2 + s), load(c3 + s), keys);
    store_as(log_u + s, VFloat(-0.5f) * neg_two_log<VFloat>(word));
  }
}

Decision decide(const AcceptArgs& a, const Loops& loops, int64_t b, float log_u, Scratch& scratch) {
  const int32_t index = at(a.row, b);
  if (index < 0 || index >= a.T) return {false, 0.0f};
  const float* coef = a.coef + kColumns * static_cast<int64_t>(index);
  using Column = MalaAcceptColumn;
  const double radius = a.ball_radius.data ? at(a.ball_radius, b) : 0.0;
  const double r2 = coef[Column::r2];
  const double ball2 = a.ball_radius.data ? radius * radius : coef[Column::R2];
  const double energy = a.energy_x ? energy_drop(a.energy_x[b], a.energy_y[b]) : 0.0;
  const TotalOf loop = r2 == 0.0 && ball2 == 0.0 ? loops.plain : loops.projected;
  AcceptSums<double> sums = loop(a, b, coef, scratch);
  if (!__builtin_isfinite(sums.log_alpha)) sums = loops.defined(a, b, coef, scratch);
  return accept_decision(sums, energy, log_u, r2, ball2);
}

}  // namespace

void mala_accept_tiles(const Tiled<AcceptArgs>& a, int64_t first, int64_t last) {
  constexpr int64_t kCached = 8192;  // elements whose rows stay in the second-level cache
  const Loops loops = a.v_x.data ? choose<true>(a) : choose<false>(a);
  const int64_t per_tile = a.tiling.samples_per_tile;
  const int64_t end = smaller(last * per_tile, a.B);
  const int64_t batch = a.d * kBatch <= kCached ? kBatch : a.d >= kCached ? 1 : kCached / a.d;
  const RoundKeys keys(*a.address.key);
  Scratch scratch;
  float log_u[kBatch];
  for (int64_t b = first * per_tile; b < end; b += batch) {
    const int64_t n = smaller(batch, end - b);
    log_uniforms(a, keys, b, n, log_u);
    for (int64_t s = b; s < b + n; ++s) {
      const Decision decision = decide(a, loops, s, log_u[s - b], scratch);
      a.accepted[s] = decision.accepted;
      a.log_alpha[s] = decision.log_alpha;
    }
    for (int64_t s = b; s < b + n; ++s) {
      const int32_t index = at(a.row, s);
      select(a, s, a.accepted[s] || index < 0 || index >= a.T);
    }
  }
}

}  // namespace ARDIFF_NS
