// The primitives of csrc/math/lane.h for the lanes of one instruction set: 1 (scalar), 8 (AVX2)
// or 16 (AVX-512). ARDIFF_LANES chooses. Sixteen lanes also compile without AVX-512 (the compiler
// then splits the vectors), which lets the tests run that path on any x86 CPU with AVX2.
#pragma once

#include "../math/convert.h"
#include "../math/lane.h"

#if ARDIFF_LANES > 1
#include <immintrin.h>
#endif

#define ARDIFF_INLINE inline __attribute__((always_inline))

namespace ARDIFF_NS {

constexpr int kLanes = ARDIFF_LANES;

#if ARDIFF_LANES == 1

using VFloat = float;
using VWord = uint32_t;
using VCounter = uint32_t;

/// Quads that a VCounter holds, and VCounters whose words are made side by side.
constexpr int kCounters = 1, kInFlight = 1;

ARDIFF_INLINE VFloat load(const float* p) { return *p; }
ARDIFF_INLINE VFloat load(const BFloat16* p) { return to_float(*p); }
ARDIFF_INLINE VFloat load(const Float16* p) { return to_float(*p); }
ARDIFF_INLINE VWord load(const uint32_t* p) { return *p; }
ARDIFF_INLINE void store(uint32_t* p, VWord x) { *p = x; }
ARDIFF_INLINE void store(float* p, VFloat x) { *p = x; }
ARDIFF_INLINE void store(BFloat16* p, VFloat x) { *p = to_bfloat16(x); }
ARDIFF_INLINE void store(Float16* p, VFloat x) { *p = to_float16(x); }

ARDIFF_INLINE VCounter to_counter(VWord w) { return w; }
template <int kPerQuad>
ARDIFF_INLINE VWord lane_quads() {
  return 0;
}
ARDIFF_INLINE VWord permute(VWord x, VWord) { return x; }

ARDIFF_INLINE void store_alternating(float* p, VFloat a, VFloat b) {
  p[0] = a;
  p[1] = b;
}

#else

typedef float FloatVector __attribute__((vector_size(4 * kLanes)));
typedef uint32_t WordVector __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVector __attribute__((vector_size(4 * kLanes)));
typedef uint64_t WideVector __attribute__((vector_size(4 * kLanes)));
typedef uint16_t HalfVector __attribute__((vector_size(2 * kLanes)));

struct VFloat {
  FloatVector v;
  VFloat() = default;
  ARDIFF_INLINE VFloat(FloatVector x) : v(x) {}
  ARDIFF_INLINE explicit VFloat(float x) : v(x - FloatVector{}) {}
};

struct VWord {
  WordVector v;
  VWord() = default;
  ARDIFF_INLINE VWord(WordVector x) : v(x) {}
  ARDIFF_INLINE explicit VWord(uint32_t x) : v(x - WordVector{}) {}
};

template <>
struct Lane<VFloat> {
  using U = VWord;
};

ARDIFF_INLINE VFloat operator+(VFloat a, VFloat b) { return a.v + b.v; }
ARDIFF_INLINE VFloat operator-(VFloat a, VFloat b) { return a.v - b.v; }
ARDIFF_INLINE VFloat operator*(VFloat a, VFloat b) { return a.v * b.v; }
ARDIFF_INLINE VWord operator+(VWord a, VWord b) { return a.v + b.v; }
ARDIFF_INLINE VWord operator-(VWord a, VWord b) { return a.v - b.v; }
ARDIFF_INLINE VWord operator^(VWord a, VWord b) { return a.v ^ b.v; }
ARDIFF_INLINE VWord operator&(VWord a, VWord b) { return a.v & b.v; }
ARDIFF_INLINE VWord operator<<(VWord a, int n) { return a.v << n; }

ARDIFF_INLINE VWord bits(VFloat x) { return (WordVector)x.v; }
ARDIFF_INLINE VFloat from_bits(VWord x) { return (FloatVector)x.v; }
ARDIFF_INLINE VFloat float_from_int(VWord x) {
  return __builtin_convertvector((IntVector)x.v, FloatVector);
}
ARDIFF_INLINE VWord shift_signed(VWord x, int n) { return (WordVector)((IntVector)x.v >> n); }
ARDIFF_INLINE VFloat select_zero(VWord s, VFloat a, VFloat b) { return s.v == 0 ? a.v : b.v; }
ARDIFF_INLINE VFloat keep_if_nonzero(VFloat c, VFloat t) {
  return c.v != 0.0f ? t.v : FloatVector{};
}
ARDIFF_INLINE VFloat keep_if_zero(VFloat c, VFloat t) { return c.v == 0.0f ? t.v : FloatVector{}; }

/// Quads that a VCounter holds.
constexpr int kCounters = kLanes / 2;

/// A word of the Philox state of each of kCounters quads, in the low half of 64 bits. The high
/// halves hold rubbish, which the multiplication ignores: no word is moved in a round but the high
/// ones of the products.
struct VCounter {
  WideVector v;
  VCounter() = default;
  ARDIFF_INLINE VCounter(WideVector x) : v(x) {}
  ARDIFF_INLINE explicit VCounter(uint32_t x) : v(x - WideVector{}) {}
};

ARDIFF_INLINE VCounter operator^(VCounter a, VCounter b) { return a.v ^ b.v; }

// Of an instruction set: products of the low halves; the high halves in the place of the low ones;
// the low (high) halves of a in the even lanes and those of b in the odd ones.
ARDIFF_INLINE VCounter multiply_low_halves(VCounter a, uint32_t m);
ARDIFF_INLINE VCounter high_halves(VCounter a);
ARDIFF_INLINE VWord join_low_halves(VCounter a, VCounter b);
ARDIFF_INLINE VWord join_high_halves(VCounter a, VCounter b);

ARDIFF_INLINE void multiply_wide(VCounter a, uint32_t m, VCounter& high, VCounter& low) {
  low = multiply_low_halves(a, m);
  high = high_halves(low);
}

/// From the even lanes.
ARDIFF_INLINE VCounter to_counter(VWord w) { return (WideVector)w.v; }

ARDIFF_INLINE VWord load(const uint32_t* p) {
  VWord x;
  std::memcpy(&x.v, p, sizeof x.v);
  return x;
}
ARDIFF_INLINE VFloat load(const float* p) {
  VFloat x;
  std::memcpy(&x.v, p, sizeof x.v);
  return x;
}
ARDIFF_INLINE void store(uint32_t* p, VWord x) { std::memcpy(p, &x.v, sizeof x.v); }
ARDIFF_INLINE void store(float* p, VFloat x) { std::memcpy(p, &x.v, sizeof x.v); }

ARDIFF_INLINE VFloat load(const BFloat16* p) {
  HalfVector h;
  std::memcpy(&h, p, sizeof h);
  return from_bits(VWord(__builtin_convertvector(h, WordVector)) << 16);
}
ARDIFF_INLINE void store(BFloat16* p, VFloat x) {
  const WordVector u = (WordVector)x.v;
  const WordVector rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const WordVector kept = x.v == x.v ? rounded : 0x7fc0u - WordVector{};
  const HalfVector h = __builtin_convertvector(kept, HalfVector);
  std::memcpy(p, &h, sizeof h);
}

#if ARDIFF_LANES == 8
#include "vec_avx2.inc"
#elif defined(__AVX512F__)
#include "vec_avx512.inc"
#else
#include "vec_split.inc"
#endif

#endif  // ARDIFF_LANES == 1

}  // namespace ARDIFF_NS
