// The two kernels of packed_linear: LinearBody multiplies, and finishes what needs no other block;
// FinishBody adds the ranges of a sum and finishes it.
#pragma once

#include "../activation.cuh"
#include "slice.cuh"

namespace ardiff {

constexpr int kLinearThreads = kSliceWarps * kLanes;

/// The part of warp `warp` of a row's sum of squares.
ARDIFF_DEVICE float square_part(const Warp& warp, const LinearArgs& a, int64_t row) {
  return warp.sum([&](int lane) {
    float sum = 0.0f;
#pragma unroll 2
    for (int64_t i = 4 * (warp.index * kLanes + lane); i < a.columns; i += 4 * kLinearThreads) {
      const Four<float> x = x_four(a, row, i);
#pragma unroll
      for (int k = 0; k < 4; ++k) sum = fma(x.v[k], x.v[k], sum);
    }
    return sum;
  });
}

/// What the norm multiplies a row by, from the parts of its square.
ARDIFF_DEVICE float norm_factor(const LinearArgs& a, const float* parts) {
  float sum = parts[0];
#pragma unroll
  for (int i = 1; i < kSliceWarps; ++i) sum += parts[i];
  return 1.0f / sqrt(sum / static_cast<float>(a.columns) + a.eps);
}

/// Row `row` of W n(x) + b.
ARDIFF_DEVICE float with_bias(const LinearArgs& a, float sum, float factor, int64_t row) {
  sum *= factor;
  if (a.scale) sum *= a.scale[row];
  return a.bias ? sum + a.bias[row] : sum;
}

/// Element o of row n of the result, from the sums with row o of the matrix and, for SwiGLU, with
/// that of up.
ARDIFF_DEVICE void finish(const LinearArgs& a, int64_t n, int64_t o, float factor, float sum,
                          float up) {
  float y = with_bias(a, sum, factor, o);
  if (a.activation != LinearActivation::none) y = silu(y);
  if (a.activation == LinearActivation::swiglu) y *= with_bias(a, up, factor, a.outs + o);
  if (a.gate) y *= a.gate[n * a.gate_stride + o];
  const int64_t place = n * a.residual.stride + o;
  const bool narrow = a.x.type == Type::bfloat16;
  if (a.residual.data) {
    y += narrow ? widen(static_cast<const BFloat16*>(a.residual.data)[place])
                : static_cast<const float*>(a.residual.data)[place];
  }
  if (narrow) {
    static_cast<BFloat16*>(a.out)[n * a.outs + o] = to_bfloat16(y);
  } else {
    static_cast<float*>(a.out)[n * a.outs + o] = y;
  }
}

template <class W, int kTiles>
struct LinearBody {
  static constexpr int kBlocks = kTiles > 2 ? 1 : 2;
  static constexpr int kRows = kTiles * kTileRows;
  static constexpr bool kKeepsStage = Slice<W, kTiles>::kKeepsStage;
  static constexpr int kSlots = (kKeepsStage ? 4 : 8) / kTiles;  // panels of a block
  static constexpr int kStage = kTileRows * kStagePitch<W>;
  using State = Nothing;
  using Team = ardiff::Team<kLinearThreads>;

  /// What is put down of x lies where the sums come later, unless it is needed to the end.
  struct Shared {
    alignas(16) SumRow sum[kSliceWarps][kSlots][kRows];
    alignas(16) float stage[kKeepsStage ? kSliceWarps * kStage : 1];
    float square[kRows][kSliceWarps];
  };
  static_assert(kKeepsStage || sizeof(float) * kStage <= sizeof(Shared::sum[0]));
  static_assert(sizeof(Shared) <= 48 << 10);

  ARDIFF_DEVICE static float* stage_of(Shared& shared, int warp) {
    return kKeepsStage ? shared.stage + warp * kStage : &shared.sum[warp][0][0][0];
  }

  struct Job {
    int64_t row, task;  // the first ones
    int range, slots;
  };

  ARDIFF_DEVICE static Job job_of(const LinearArgs& a, int64_t block) {
    Job job;
    int64_t rest = divide(block, a.tiles);
    job.row = a.first_row + (block - rest * a.tiles) * kRows;
    const int64_t group = divide(rest, a.ranges);
    job.range = static_cast<int>(rest - group * a.ranges);
    job.task = group * a.tasks_of_block;
    const int64_t left = a.tasks - job.task;
    job.slots = a.halves * (left < a.tasks_of_block ? static_cast<int>(left) : a.tasks_of_block);
    return job;
  }

  /// The panel of a slot; those of gate and of up lie side by side.
  ARDIFF_DEVICE static int64_t panel_of(const LinearArgs& a, const Job& job, int slot) {
    if (a.halves == 1) return job.task + slot;
    return job.task + slot / 2 + slot % 2 * a.tasks;
  }

  ARDIFF_DEVICE static void flow(const LinearArgs& a, Shared& shared, const Team& team) {
    const Job job = job_of(a, team.number());
    team.warps([&](const Warp& warp) {
      const int64_t begin =
          (static_cast<int64_t>(job.range) * kSliceWarps + warp.index) * kSliceWords<W>;
      Slice<W, kTiles> slice;
      slice.fetch(warp, a, panel_of(a, job, 0), begin);
      slice.read_rows(warp, a, job.row, begin, stage_of(shared, warp.index));
#pragma unroll 1
      for (int slot = 0; slot < job.slots; ++slot) {
        slice.multiply(warp);
        if (slot + 1 < job.slots) slice.fetch(warp, a, panel_of(a, job, slot + 1), begin);
        slice.leave(warp, shared.sum[warp.index][slot]);
      }
      if (!has_norm(a) || a.partial) return;
#pragma unroll 1
      for (int n = 0; n < kRows && job.row + n < a.first_row + a.rows; ++n) {
        const float part = square_part(warp, a, job.row + n);
        warp.each([&](int lane) {
          if (lane == 0) shared.square[n][warp.index] = part;
        });
      }
    });
    team.threads([&](int thread) {
#pragma unroll 1
      for (int i = thread; i < job.slots * kRows * kPanelWidth; i += kLinearThreads) {
        const int o = i % kPanelWidth, n = i / kPanelWidth % kRows;
        const int slot = i / kPanelWidth / kRows;
        if (job.row + n < a.first_row + a.rows) put(a, shared, job, slot, n, o);
      }
    });
  }

 private:
  ARDIFF_DEVICE static float total(const Shared& shared, int slot, int n, int o) {
    float sum = shared.sum[0][slot][n][o];
#pragma unroll
    for (int warp = 1; warp < kSliceWarps; ++warp) sum += shared.sum[warp][slot][n][o];
    return sum;
  }

  /// Row o of a slot's panel by row n of the block's: the result, or the sum over the range.
  ARDIFF_DEVICE static void put(const LinearArgs& a, const Shared& shared, const Job& job, int slot,
                                int n, int o) {
    const int64_t row = job.row + n, out = panel_of(a, job, slot) * kPanelWidth + o;
    if (a.partial) {
      const int64_t at = static_cast<int64_t>(job.range) * a.rows + row - a.first_row;
      a.partial[at * a.width + out] = total(shared, slot, n, o);
      return;
    }
    if ((a.halves == 2 && slot % 2) || out >= a.outs) return;
    const float factor = has_norm(a) ? norm_factor(a, shared.square[n]) : 1.0f;
    const float up = a.halves == 2 ? total(shared, slot + 1, n, o) : 0.0f;
    finish(a, row, out, factor, total(shared, slot, n, o), up);
  }
};

/// A block takes one row of x and an element a thread.
struct FinishBody {
  static constexpr int kBlocks = 8;
  using State = Nothing;
  using Team = ardiff::Team<kLinearThreads>;

  struct Shared {
    float square[kSliceWarps];
  };

  ARDIFF_HD static int64_t blocks_of_row(const LinearArgs& a) {
    return (a.outs + kLinearThreads - 1) / kLinearThreads;
  }

  /// The sum with row o of the matrix.
  ARDIFF_DEVICE static float total(const LinearArgs& a, int64_t row, int64_t o) {
    const float* p = a.partial + row * a.width + o;
    const int64_t apart = a.rows * a.width;
    float sum = *p;
#pragma unroll 4
    for (int range = 1; range < a.ranges; ++range) sum += p[range * apart];
    return sum;
  }

  ARDIFF_DEVICE static void flow(const LinearArgs& a, Shared& shared, const Team& team) {
    const int64_t block = team.number(), row = divide(block, blocks_of_row(a));
    const int64_t first = (block - row * blocks_of_row(a)) * kLinearThreads;
    if (has_norm(a)) {
      team.warps([&](const Warp& warp) {
        const float part = square_part(warp, a, a.first_row + row);
        warp.each([&](int lane) {
          if (lane == 0) shared.square[warp.index] = part;
        });
      });
    }
    team.threads([&](int thread) {
      const int64_t o = first + thread;
      if (o >= a.outs) return;
      const float factor = has_norm(a) ? norm_factor(a, shared.square) : 1.0f;
      const bool gated = a.activation == LinearActivation::swiglu;
      const float up = gated ? total(a, row, a.outs + o) : 0.0f;
      finish(a, a.first_row + row, o, factor, total(a, row, o), up);
    });
  }
};

}  // namespace ardiff
