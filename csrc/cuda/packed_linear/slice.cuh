// What a warp does with its slice of the columns: it keeps that of some rows of x in registers, and
// multiplies it by a panel after the other, whose weights it reads straight from memory, each word
// once, in the order in which they lie.
//
// bfloat16 and int8 weights go through the matrix units. x is rounded to bfloat16 for the one; for
// the other, whose codes are exact in bfloat16, it is the sum of two bfloat16 parts. float32 is
// multiplied as it is.
#pragma once

#include "../codes.cuh"
#include "args.cuh"
#include "matrix.cuh"

namespace ardiff {

/// Sums of a warp: of rows of x by rows of a panel.
using SumRow = float[kSumPitch];

/// What a warp puts down while it reads x: eight rows of a slice.
template <class W>
constexpr int kStagePitch = kSliceColumns<W> + 4;

ARDIFF_DEVICE void write_quad(float* p, const Four<float>& x) {
  store<float, true>({p, 0}, 0, 0, 4, x);
}

/// Puts eight rows of x from `row` on, times the norm's weight, into `stage`; zeros for rows that
/// are not of this launch. The row's own factor comes at the end.
template <class W>
ARDIFF_DEVICE void stage_rows(const Warp& warp, const LinearArgs& a, int64_t row, int64_t column,
                              float* stage) {
  constexpr int kQuads = kSliceColumns<W> / 4;
  warp.lanes([&](int lane) {
#pragma unroll 4
    for (int i = lane; i < kTileRows * kQuads; i += kLanes) {
      const int64_t n = row + i / kQuads, at = column + i % kQuads * 4;
      Four<float> x{};
      if (n < a.first_row + a.rows) x = x_four(a, n, at);
      if (has_norm(a)) {
#pragma unroll
        for (int k = 0; k < 4; ++k) x.v[k] *= at + k < a.columns ? a.norm[at + k] : 0.0f;
      }
      write_quad(stage + i / kQuads * kStagePitch<W> + i % kQuads * 4, x);
    }
  });
}

/// Two floats as bfloat16 in a word, the first in its low half.
ARDIFF_DEVICE uint32_t bfloat16_pair(float low, float high) {
#ifdef __CUDA_ARCH__
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  return to_bfloat16(low).bits | static_cast<uint32_t>(to_bfloat16(high).bits) << 16;
#endif
}

/// What is left of two floats behind such a word.
ARDIFF_DEVICE uint32_t bfloat16_rest(float low, float high, uint32_t word) {
  return bfloat16_pair(low - from_bits(word << 16), high - from_bits(word & 0xffff0000u));
}

/// Through the matrix units, for kTiles times eight rows of x. Rows 2g and 2g + 1 of a panel are
/// their rows g and g + 8, so that a lane's weights lie side by side.
template <class W, int kTiles>
struct Slice {
  static constexpr bool kKeepsStage = false;
  static constexpr bool kCodes = std::is_same_v<W, Int8>;
  static constexpr int kParts = kCodes ? 2 : 1;  // of an element of x
  static constexpr int kLoads = kCodes ? 1 : 2;  // of eight bytes in a step
  static constexpr int kWords = 4 * kLoads;      // of a step
  struct Weights {
    uint32_t word[kSteps][kLoads][2];
  };
  struct Rows {
    MatrixRight part[kTiles][kSteps][kParts];
  };

  PerLane<Weights> weights;
  PerLane<Rows> rows;
  PerLane<MatrixSums> sums[kTiles];

  /// Starts to read a panel's weights from word `begin` on; zeros behind its end.
  ARDIFF_DEVICE void fetch(const Warp& warp, const LinearArgs& a, int64_t panel, int64_t begin) {
    warp.each([&](int lane) {
      const char* from =
          a.weight + (panel * a.words + begin + lane % 4) * kWordBytes + lane / 4 * 8;
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const bool there = begin + s * kWords < a.words;
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
          uint32_t (&to)[2] = weights[lane].word[s][i];
          to[0] = to[1] = 0;
          const char* p = from + (s * kWords + 4 * i) * kWordBytes;
#ifdef __CUDA_ARCH__
          if (there) {
            const uint2 word = __ldg(reinterpret_cast<const uint2*>(p));
            to[0] = word.x;
            to[1] = word.y;
          }
#else
          if (there) std::memcpy(to, p, sizeof to);
#endif
        }
      }
    });
  }

  /// Reads the slice of the rows of x from `row` on.
  ARDIFF_DEVICE void read_rows(const Warp& warp, const LinearArgs& a, int64_t row, int64_t begin,
                               float* stage) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      stage_rows<W>(warp, a, row + tile * kTileRows, begin * (4 / sizeof(W)), stage);
      warp.lanes([&](int lane) {
        const float* from = stage + lane / 4 * kStagePitch<W>;
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          const int at = 16 * s + (kCodes ? 4 : 2) * (lane % 4), apart = kCodes ? 2 : 8;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const float low = from[at + i * apart], high = from[at + i * apart + 1];
            const uint32_t word = bfloat16_pair(low, high);
            rows[lane].part[tile][s][0].word[i] = word;
            if constexpr (kCodes) {
              rows[lane].part[tile][s][1].word[i] = bfloat16_rest(low, high, word);
            }
          }
        }
      });
    }
  }

  /// A lane's weights of a step as operands.
  ARDIFF_DEVICE static MatrixLeft left_of(const Weights& w, int step) {
    if constexpr (kCodes) {
      MatrixLeft left;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t word = w.word[step][0][i % 2];
        left.word[i] = bfloat16_pair(code_of(word, i / 2 * 2), code_of(word, i / 2 * 2 + 1));
      }
      return left;
    } else {
      return {{w.word[step][0][0], w.word[step][0][1], w.word[step][1][0], w.word[step][1][1]}};
    }
  }

  ARDIFF_DEVICE void multiply(const Warp& warp) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      warp.each([&](int lane) { sums[tile][lane] = {}; });
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      PerLane<MatrixLeft> left;
      warp.each([&](int lane) { left[lane] = left_of(weights[lane], s); });
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          multiply_matrices(
              sums[tile], [&](int lane) { return left[lane]; },
              [&](int lane) { return rows[lane].part[tile][s][part]; });
        }
      }
    }
  }

  ARDIFF_DEVICE void leave(const Warp& warp, SumRow* to) {
    warp.each([&](int lane) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const float (&sum)[4] = sums[tile][lane].sum;
        SumRow* row = to + tile * kTileRows + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < 4; ++i) row[i % 2][lane / 4 * 2 + i / 2] = sum[i];
      }
    });
  }
};

/// float32: a lane has one column of a step, four rows of a panel and eight of x, which stay where
/// they were put down.
template <int kTiles>
struct Slice<float, kTiles> {
  static_assert(kTiles == 1);
  static constexpr bool kKeepsStage = true;
  static constexpr int kWords = 8;  // of a step
  struct Weights {
    Four<float> step[kSteps];
  };

  PerLane<Weights> weights;
  PerLane<Four<float>> sums;  // of row 4 (lane / 4 % 2) + lane / 8 of x with four of a panel
  const float* rows;

  ARDIFF_DEVICE void fetch(const Warp& warp, const LinearArgs& a, int64_t panel, int64_t begin) {
    warp.each([&](int lane) {
      const char* from =
          a.weight + (panel * a.words + begin + lane / 4) * kWordBytes + lane % 4 * 16;
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        weights[lane].step[s] = {};
        if (begin + s * kWords < a.words) {
          weights[lane].step[s] = load<float, true>({from + s * kWords * kWordBytes, 0}, 0, 0, 4);
        }
      }
    });
  }

  ARDIFF_DEVICE void read_rows(const Warp& warp, const LinearArgs& a, int64_t row, int64_t begin,
                               float* stage) {
    stage_rows<float>(warp, a, row, begin, stage);
    rows = stage;
  }

  /// Half of the rows of x after the other, for want of registers.
  ARDIFF_DEVICE void multiply(const Warp& warp) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      PerLane<LaneTerms> terms;
      warp.each([&](int lane) {
#pragma unroll
        for (int i = 0; i < kTerms; ++i) {
          float term = 0.0f;
#pragma unroll
          for (int s = 0; s < kSteps; ++s) {
            const int n = half * (kTileRows / 2) + i / 4;
            const float x = rows[n * kStagePitch<float> + kWords * s + lane / 4];
            term = fma(weights[lane].step[s].v[i % 4], x, term);
          }
          terms[lane].term[i] = term;
        }
      });
      add_terms(terms);
      warp.each([&](int lane) {
        const float (&sum)[kTerms] = terms[lane].term;
        if (lane / 4 % 2 == half) sums[lane] = {{sum[0], sum[1], sum[2], sum[3]}};
      });
    }
  }

  ARDIFF_DEVICE void leave(const Warp& warp, SumRow* to) {
    warp.each([&](int lane) {
      const int row = lane / 4 % 2 * (kTileRows / 2) + lane / 8;
      write_quad(to[row] + lane % 4 * 4, sums[lane]);
    });
  }
};

}  // namespace ardiff
