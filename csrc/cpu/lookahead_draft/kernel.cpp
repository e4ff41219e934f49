// lookahead_draft for one instruction set; free of torch, built once for each. All rows of a tile
// of one sample run one after the other: a row's state and guess lie where the results are, and the
// next row reads them there, in the first-level cache.
#include "../lookahead/window.h"

namespace ARDIFF_NS {
namespace {

struct alignas(64) Scratch {
  explicit Scratch(const LookaheadArgs& a) : normals(a) {}

  Normals normals;
  float memory[kTile], second[kTile];
};

/// Where a guess comes from: null pointers where nothing is known.
struct Origin {
  const float *x, *x0;
};

/// Entry k of what is known of sample b, from element i0 on.
Origin known_at(const LookaheadArgs& a, int64_t b, int64_t k, int64_t i0) {
  if (k < 0) return {nullptr, nullptr};
  return {address<float>(a.known_x, b, k * a.d + i0), address<float>(a.known_0, b, k * a.d + i0)};
}

/// The guesses of n elements of a row at x.
void guess(const DraftArgs& a, const WindowRow& r, const Origin& known, const Origin& before,
           float gain, const float* x, int64_t n, float* drafts) {
  const float limit = a.x0_limit;
  const auto store_clamped = [&](int64_t i, auto value) {
    using F = decltype(value);
    store_as(drafts + i, clamp(value, F(-limit), F(limit)));
  };
  if (known.x) {
    for_each_lane(n, [&](int64_t i, auto lane) {
      using F = decltype(lane);
      store_clamped(i, known_guess(load_as<F>(x + i), load_as<F>(known.x + i),
                                   load_as<F>(known.x0 + i), F(gain)));
    });
  } else if (before.x) {
    for_each_lane(
        n, [&](auto lane) { return plan_row<decltype(lane)>(r.plan); },
        [&](int64_t i, auto lane, const auto& plan) {
          using F = decltype(lane);
          store_clamped(i, fresh_guess(plan, load_as<F>(x + i), load_as<F>(before.x + i),
                                       load_as<F>(before.x0 + i), F(gain)));
        });
  } else {
    for_each_lane(n, [&](int64_t i, auto lane) {
      using F = decltype(lane);
      store_clamped(i, F(gain) * load_as<F>(x + i));
    });
  }
}

/// Pointers to the elements of a row.
struct Step {
  const float *x, *v, *guess, *n1, *n2;
  float *x_new, *v_new;
  MemoryRows<float> memory;
  int64_t length;
};

template <class Kind, bool kSecond>
void advance(const WindowRow& r, const Step& step) {
  const Step s = step;
  constexpr bool kKinetic = Kind::template Row<float>::kKinetic;
  for_each_lane(s.length, make_row<Kind>(r), [&](int64_t i, auto lane, const auto& row) {
    using F = decltype(lane);
    const F v = kKinetic ? load_as<F>(s.v + i) : F(0.0f);
    const WindowState<F> state{load_as<F>(s.x + i), v, load_memory<kSecond, F>(s.memory, i)};
    const WindowState<F> next = row.window.template advance<kSecond>(
        state, load_as<F>(s.guess + i), load_as<F>(s.n1 + i), load_as<F>(s.n2 + i));
    store_as(s.x_new + i, next.x);
    if constexpr (kKinetic) store_as(s.v_new + i, next.v);
    store_memory<kSecond>(s.memory, i, next.memory);
  });
  if (!kKinetic && s.v) copy(s.v_new, s.v, s.length);
}

/// All rows of n elements of sample b.
void draft(const DraftArgs& a, int64_t b, int64_t i0, int64_t n, Scratch& scratch) {
  const int64_t rows = window_rows(a, b), d = a.d;
  float* x = address<float>(a.states, b, i0);
  float* v = a.v.data ? address<float>(a.velocities, b, i0) : nullptr;
  float* drafts = address<float>(a.drafts, b, i0);
  copy(x, address<float>(a.x, b, i0), n);
  if (v) copy(v, address<float>(a.v, b, i0), n);
  copy(scratch.memory, address<float>(a.memory, b, i0), n);
  if (a.second_memory) copy(scratch.second, address<float>(a.memory, b, d + i0), n);

  const int64_t last = known_entry(a, b, int64_t{a.row[b]} - 1);
  Origin before = known_at(a, b, last, i0);
  float gain_before = last >= 0 ? a.gain[b * a.K + last] : 0.0f;
  for (int64_t j = 0; j < rows; ++j) {
    const WindowRow r = window_row(a, b, j);
    const Origin known = known_at(a, b, r.known, i0);
    const float gain =
        known.x ? a.gain[b * a.K + r.known] : kept_gain(r.plan, last >= 0, gain_before);
    guess(a, r, known, before, gain, x, n, drafts);
    scratch.normals.fetch(a, r, b, j, i0, n, is_noisy(r), x);
    const Step step{x,
                    v,
                    drafts,
                    scratch.normals.first,
                    scratch.normals.second,
                    x + d,
                    v ? v + d : nullptr,
                    {scratch.memory, scratch.second},
                    n};
    with_window(r.kinetic, a.second_memory, [&](auto kind, auto second) {
      advance<decltype(kind), decltype(second)::value>(r, step);
    });
    before = {x, drafts};
    gain_before = gain;
    x += d;
    if (v) v += d;
    drafts += d;
  }
  for (int64_t j = rows; j < a.L; ++j, x += d, drafts += d) {
    copy(x + d, x, n);
    std::memset(drafts, 0, sizeof(float) * n);
    if (v) copy(v + d, v, n), v += d;
  }
}

}  // namespace

void lookahead_draft_tiles(const Tiled<DraftArgs>& a, int64_t first, int64_t last) {
  Scratch scratch{a};
  for (int64_t t = first; t < last; ++t) {
    const Tile tile = tile_at(a.tiling, a.B, a.d, t);
    draft(a, tile.b, tile.i0, tile.length, scratch);
  }
}

}  // namespace ARDIFF_NS
