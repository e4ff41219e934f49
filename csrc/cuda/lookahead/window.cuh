// What the CUDA kernels of lookahead_draft and lookahead_verify share: a unit (four neighbouring
// elements) of a window's row.
#pragma once

#include "../../math/lookahead.h"
#include "../../math/lookahead_args.h"
#include "../unit.cuh"

namespace ardiff {

/// The normals of a unit; of a row of diffusion_step `second` is zero.
struct UnitNormals {
  Four<float> first, second;
};

/// Those of n elements from element i of sample b at its row j; zeros where they do not enter.
template <bool kVector>
ARDIFF_HD UnitNormals unit_normals(const LookaheadArgs& a, const WindowRow& r, int64_t b, int64_t j,
                                   int64_t i, int n) {
  if (a.noise.data) return {load<float, kVector>(a.noise, b, j * a.d + i, n), {}};
  const bool noisy = r.kinetic ? UldWindow<float>::noisy(r.coef, r.scale)
                               : DiffusionWindow<float>::noisy(r.coef, r.scale);
  if (!noisy) return {};
  const SampleAddress address =
      sample_address(a.address.key, a.address.stream[b], counter_word(r.draw, kStepNoise));
  if (!r.kinetic) return {quad_normals(address, static_cast<uint32_t>(i / kUnit)), {}};
  const Four<float> p = quad_normals(address, static_cast<uint32_t>(i / 2));
  const Four<float> q = quad_normals(address, static_cast<uint32_t>(i / 2 + 1));
  return {{p.v[0], p.v[2], q.v[0], q.v[2]}, {p.v[1], p.v[3], q.v[1], q.v[3]}};
}

/// Both memories of a unit; `second` is not used where there is none.
struct UnitMemory {
  Four<float> first, second;

  template <bool kSecond>
  ARDIFF_HD MemoryOf<float> at(int k) const {
    return {first.v[k], kSecond ? second.v[k] : first.v[k]};
  }
  ARDIFF_HD void set(int k, const MemoryOf<float>& m) {
    first.v[k] = m.first;
    second.v[k] = m.second;
  }
};

template <bool kSecond, bool kVector>
ARDIFF_HD UnitMemory load_memory(const In& in, int64_t b, int64_t d, int64_t i, int n) {
  UnitMemory m;
  m.first = load<float, kVector>(in, b, i, n);
  m.second = m.first;
  if constexpr (kSecond) m.second = load<float, kVector>(in, b, d + i, n);
  return m;
}

template <bool kSecond, bool kVector>
ARDIFF_HD void store_memory(const Out& out, int64_t b, int64_t d, int64_t i, int n,
                            const UnitMemory& m) {
  store<float, kVector>(out, b, i, n, m.first);
  if constexpr (kSecond) store<float, kVector>(out, b, d + i, n, m.second);
}

ARDIFF_HD In read(const Out& out) { return {out.data, out.stride, out.type}; }

}  // namespace ardiff
