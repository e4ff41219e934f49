// What the lanes of a warp do together in packed_linear: a product on the matrix units, and sums
// over lanes four apart.
#pragma once

#include "../phases.cuh"

namespace ardiff {

/// A lane's operands of the matrix units, two bfloat16 to a word, and its sums. With g = lane / 4
/// and t = lane % 4 they are of rows g and g + 8 of the one matrix [16, 16], in columns 2t, 2t + 1
/// and those eight further; of column g of the other [16, 8]; and of columns 2t and 2t + 1.
struct MatrixLeft {
  uint32_t word[4];
};
struct MatrixRight {
  uint32_t word[2];
};
struct MatrixSums {
  float sum[4];
};

constexpr int kTerms = 16;
struct LaneTerms {
  float term[kTerms];
};

#ifdef __CUDACC__

/// sums += left(lane) right(lane).
template <class Left, class Right>
ARDIFF_DEVICE void multiply_matrices(PerLane<MatrixSums>& sums, Left left, Right right) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const MatrixLeft a = left(lane);
  const MatrixRight b = right(lane);
  float (&c)[4] = sums[lane].sum;
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b.word[0]),
        "r"(b.word[1]));
}

/// Leaves a lane with a part of the sums; the loops unroll, so that no register is chosen at run
/// time.
template <int kHalf>
ARDIFF_DEVICE void halve_terms(float (&x)[kTerms], int lane) {
  const bool upper = lane & (2 * kHalf);
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const float kept = upper ? x[i + kHalf] : x[i], given = upper ? x[i] : x[i + kHalf];
    x[i] = kept + __shfl_xor_sync(~0u, given, 2 * kHalf);
  }
  if constexpr (kHalf > 4) halve_terms<kHalf / 2>(x, lane);
}

/// Sums each term over the eight lanes that are equal modulo 4; lane l is left with four of them,
/// the terms from 4 (l / 8) on, in the place of its first.
ARDIFF_DEVICE void add_terms(PerLane<LaneTerms>& terms) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  float (&x)[kTerms] = terms[lane].term;
  halve_terms<kTerms / 2>(x, lane);
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] += __shfl_xor_sync(~0u, x[i], 4);
}

#else

/// The order of the units' sums is not known; here they are exact and rounded once.
template <class Left, class Right>
void multiply_matrices(PerLane<MatrixSums>& sums, Left left, Right right) {
  float a[16][16], b[16][8];
  const auto half = [](uint32_t word, int i) {
    const uint32_t bits = i ? word & 0xffff0000u : word << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  };
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    const MatrixLeft l = left(lane);
    const MatrixRight r = right(lane);
    for (int i = 0; i < 2; ++i) {
      for (int k = 0; k < 2; ++k) {
        a[g][8 * k + 2 * t + i] = half(l.word[2 * k], i);
        a[g + 8][8 * k + 2 * t + i] = half(l.word[2 * k + 1], i);
        b[8 * k + 2 * t + i][g] = half(r.word[k], i);
      }
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) {
      double sum = sums[lane].sum[i];
      for (int k = 0; k < 16; ++k) {
        sum += static_cast<double>(a[lane / 4 + i / 2 * 8][k]) * b[k][lane % 4 * 2 + i % 2];
      }
      sums[lane].sum[i] = static_cast<float>(sum);
    }
  }
}

inline void add_terms(PerLane<LaneTerms>& terms) {
  PerLane<LaneTerms> given = terms;
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) {
      float x[8];
      for (int j = 0; j < 8; ++j) x[j] = given[4 * j + lane % 4].term[lane / 8 * 4 + i];
      for (int apart = 4; apart; apart /= 2) {
        for (int j = 0; j < apart; ++j) x[j] += x[j + apart];
      }
      terms[lane].term[i] = x[0];
    }
  }
}

#endif

}  // namespace ardiff
