// What the CPU kernels of lookahead_draft and lookahead_verify share: a tile's normals at a row,
// and loops over the elements of a tile for both kinds of rows.
#pragma once

#include "../../math/lookahead.h"
#include "../../math/lookahead_args.h"
#include "../tile.h"

namespace ARDIFF_NS {

/// Normals of kTile elements of one sample.
class Normals {
 public:
  explicit Normals(const LookaheadArgs& a) : one_(a.address), two_(a.address) {}

  /// Those of elements [i0, i0 + n) of sample b at its row j; `stand_in` where they do not enter.
  void fetch(const LookaheadArgs& a, const WindowRow& r, int64_t b, int64_t j, int64_t i0,
             int64_t n, bool noisy, const float* stand_in) {
    first = second = stand_in;
    if (a.noise.data) first = second = address<float>(a.noise, b, j * a.d + i0);
    if (a.noise.data || !noisy) return;
    NoiseAddress at = a.address;
    at.draw = {};
    at.counter = counter_word(r.draw, kStepNoise);
    if (r.kinetic) {
      fill_one_sample(two_, at, b, i0 / 2, (n + 1) / 2, Fetch());
      first = two_.n1;
      second = two_.n2;
    } else {
      fill_one_sample(one_, at, b, i0 / 4, (n + 3) / 4, Fetch());
      first = one_.n1;
    }
  }

  const float *first, *second;

 private:
  NoiseTile<4> one_;
  NoiseTile<2> two_;
};

/// Memories of a tile; `second` null where there is none.
template <class T>
struct MemoryRows {
  T *first, *second;
};

inline MemoryRows<float> memory_rows(const LookaheadArgs& a, const Out& memory, int64_t b,
                                     int64_t i0) {
  float* first = address<float>(memory, b, i0);
  return {first, a.second_memory ? first + a.d : nullptr};
}

template <bool kSecond, class F, class T>
ARDIFF_INLINE MemoryOf<F> load_memory(const MemoryRows<T>& m, int64_t i) {
  const F first = load_as<F>(m.first + i);
  if constexpr (kSecond) return {first, load_as<F>(m.second + i)};
  return {first, first};
}

template <bool kSecond, class F>
ARDIFF_INLINE void store_memory(const MemoryRows<float>& m, int64_t i, const MemoryOf<F>& memory) {
  store_as(m.first + i, memory.first);
  if constexpr (kSecond) store_as(m.second + i, memory.second);
}

struct OfDiffusion {
  template <class F>
  using Row = DiffusionWindow<F>;
};
struct OfUld {
  template <class F>
  using Row = UldWindow<F>;
};
struct Yes {
  static constexpr bool value = true;
};
struct No {
  static constexpr bool value = false;
};

/// Calls f(kind, second) with the kind of row and whether there is a second memory, as types.
template <class Function>
ARDIFF_INLINE void with_window(bool kinetic, bool second, Function f) {
  if (kinetic) {
    second ? f(OfUld(), Yes()) : f(OfUld(), No());
  } else {
    second ? f(OfDiffusion(), Yes()) : f(OfDiffusion(), No());
  }
}

/// Whether the normals of a row enter, and whether it changes a memory.
inline bool is_noisy(const WindowRow& r) {
  return r.kinetic ? UldWindow<float>::noisy(r.coef, r.scale)
                   : DiffusionWindow<float>::noisy(r.coef, r.scale);
}
inline bool moves_memory(const WindowRow& r) {
  return r.kinetic ? UldWindow<float>::moves_memory(r.coef)
                   : DiffusionWindow<float>::moves_memory(r.coef);
}

/// A row as the loops over elements take it.
template <template <class> class Row, class F>
struct RowOf {
  PlanRow<F> plan;
  Row<F> window;
};

template <class Kind>
ARDIFF_INLINE auto make_row(const WindowRow& r) {
  return [&r](auto lane) {
    using F = decltype(lane);
    const PlanRow<F> plan = plan_row<F>(r.plan);
    return RowOf<Kind::template Row, F>{plan,
                                        typename Kind::template Row<F>(r.coef, plan, r.scale)};
  };
}

inline void copy(float* to, const float* from, int64_t n) {
  if (n > 0) std::memcpy(to, from, sizeof(float) * n);
}

}  // namespace ARDIFF_NS
