// The phases of a head: a layer each, from the activations of the one before to its own, with the
// norm before it and the activation, gate or residual behind it. All blocks finish a phase before
// any begins the next.
#pragma once

#include "../activation.cuh"
#include "product.cuh"
#include "solver.cuh"

namespace ardiff {

/// What a block has of shared memory.
struct HeadMemory {
  HeadTile tile;
  float* partials;
  char* resident;
};

ARDIFF_DEVICE HeadMemory memory_of(const HeadArgs& a, float* shared) {
  HeadMemory m;
  m.tile = {shared, a.tile_stride};
  m.partials = shared + static_cast<int64_t>(a.tile) * a.tile_stride;
  m.resident = reinterpret_cast<char*>(m.partials + a.partial_sums);
  return m;
}

/// The modulations of a row of activations: row `row` of those from `first` on.
struct ModulationRow {
  const void* first;
  int64_t row;
};

/// Rows of activations as they are given: of all patches, under the modulations of one set.
struct GivenRows {
  const void* set;

  ARDIFF_DEVICE ModulationRow modulation_of(const HeadArgs& a, int64_t row) const {
    return {set, a.modulation_rows == a.R ? row : row / a.N};
  }
  ARDIFF_DEVICE Four<float> input(const HeadArgs& a, int64_t row, int i, int n) const {
    return load<float, false>(a.x, row, i, n);
  }
  ARDIFF_DEVICE bool any(const HeadArgs&, int64_t, int) const { return true; }
};

/// Elements [i, i + n) of vector `index` (shift, scale or gate) of a row's modulation of a block;
/// the final layer is block `depth`.
ARDIFF_DEVICE Four<float> modulation(const HeadArgs& a, const ModulationRow& m, int block,
                                     int index, int i, int n) {
  const int64_t column = (3 * block + index) * static_cast<int64_t>(a.width) + i;
  const int64_t place = m.row * a.modulation_columns() + column;
  const void* set = m.first;
  if (a.modulation_bfloat16) {
    const In from{static_cast<const BFloat16*>(set) + place, 0};
    return widened(a.modulation_vector ? load<BFloat16, true>(from, 0, 0, n)
                                       : load<BFloat16, false>(from, 0, 0, n));
  }
  const In from{static_cast<const float*>(set) + place, 0};
  return a.modulation_vector ? load<float, true>(from, 0, 0, n) : load<float, false>(from, 0, 0, n);
}

/// One layer at one step, for one block of threads. `Rows` knows the rows of activations: their
/// inputs and modulations, and which of them are to be evaluated.
template <class W, bool kLoop, class Rows = GivenRows>
struct HeadLayerPhase {
  const HeadArgs& a;
  const HeadTeam& team;
  const HeadMemory memory;
  const int layer;
  const int64_t step;
  const Rows rows;

  ARDIFF_DEVICE const HeadLayer& l() const { return a.layer[layer]; }
  ARDIFF_DEVICE int block() const { return (layer - 1) / 2; }

  /// Four elements of x, as given or after the step before; zeros past the end of the row.
  ARDIFF_DEVICE Four<float> inputs(int64_t row, int quad) const {
    const int left = a.inputs - 4 * quad;
    if (left <= 0) return {};
    if (kLoop && step > 0) {
      const int groups = groups_of(a, layer);
      const int writers = groups < team.blocks ? groups : team.blocks;
      const bool mine = row % writers == team.block;
      // At the end the result may lie where the state came from, which others must not read.
      if (step == a.solver.steps && !mine) return {};
      return solve(a, step - 1, row, quad, mine);
    }
    return rows.input(a, row, 4 * quad, left < 4 ? left : 4);
  }

  /// Four elements of a row of activations, zeros past its end.
  ARDIFF_DEVICE Four<float> activations(const float* from, int quad) const {
    const int left = l().columns - 4 * quad;
    if (left <= 0) return {};
    Four<float> x = read_fresh_four(from + 4 * quad);
#pragma unroll
    for (int k = 1; k < 4; ++k) {
      if (k >= left) x.v[k] = 0.0f;
    }
    return x;
  }

  /// y = n m + s in the place of h.
  ARDIFF_DEVICE void normalize(const Warp& warp, int row, int64_t whole_row) const {
    const HeadTile& tile = memory.tile;
    const int quads = quotient_up(a.width, 4), slice = l().slice, width = a.width;
    float mean = 0.0f;
    if (!a.rms_norm) {
      const float sum = warp.sum([&](int lane) {
        float part = 0.0f;
#pragma unroll 2
        for (int q = lane; q < quads; q += kLanes) {
          const Four<float> x = read_four(tile.at(row, HeadTile::place(q, slice)));
          part += (x.v[0] + x.v[1]) + (x.v[2] + x.v[3]);
        }
        return part;
      });
      mean = sum / static_cast<float>(width);
    }
    const float square = warp.sum([&](int lane) {
      float part = 0.0f;
#pragma unroll 2
      for (int q = lane; q < quads; q += kLanes) {
        const Four<float> x = read_four(tile.at(row, HeadTile::place(q, slice)));
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const float centred = 4 * q + k < width ? x.v[k] - mean : 0.0f;
          part = fma(centred, centred, part);
        }
      }
      return part;
    });
    const float factor = 1.0f / sqrt(square / static_cast<float>(width) + a.eps);
    const ModulationRow own = rows.modulation_of(a, whole_row);
    warp.lanes([&](int lane) {
#pragma unroll 4
      for (int q = lane; q < quads; q += kLanes) {
        const int n = width - 4 * q < 4 ? width - 4 * q : 4;
        float* p = tile.at(row, HeadTile::place(q, slice));
        Four<float> x = read_four(p);
        const Four<float> shift = modulation(a, own, block(), 0, 4 * q, n);
        const Four<float> scale = modulation(a, own, block(), 1, 4 * q, n);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          x.v[k] = k < n ? fma((x.v[k] - mean) * factor, scale.v[k], shift.v[k]) : 0.0f;
        }
        write_four(p, x);
      }
    });
  }

  /// Rows [first, first + count) of activations into shared memory, a warp per row.
  ARDIFF_DEVICE void fill_tile(HeadPart part, int64_t first, int count) const {
    const int slice = l().slice, quads = slices_of(l()) * slice / 4;
    team.warps([&](const Warp& warp) {
      for (int row = warp.index; row < count; row += HeadTeam::kWarps) {
        if (part == HeadPart::input) {
          warp.lanes([&](int lane) {
#pragma unroll 1
            for (int q = lane; q < quads; q += kLanes) {
              write_four(memory.tile.at(row, HeadTile::place(q, slice)), inputs(first + row, q));
            }
          });
          continue;
        }
        const float* from = part == HeadPart::outer ? a.u + (first + row) * a.u_stride
                                                    : a.h + (first + row) * a.h_stride;
        warp.lanes([&](int lane) {
#pragma unroll 8
          for (int q = lane; q < quads; q += kLanes) {
            write_four(memory.tile.at(row, HeadTile::place(q, slice)), activations(from, q));
          }
        });
        if (part == HeadPart::inner || part == HeadPart::last) normalize(warp, row, first + row);
      }
    });
  }

  /// A sum times scale plus bias.
  ARDIFF_DEVICE float finished(float sum, int row) const {
    if (l().scale) sum *= l().scale[row];
    return l().bias ? sum + l().bias[row] : sum;
  }

  /// Element o of the layer's result for a row of activations.
  ARDIFF_DEVICE void finish(HeadPart part, const HeadPartials& sums, int group, int from,
                            int64_t row, int lane_row, int o) const {
    float x = finished(sums.total(group, 0, lane_row, o % kGroupRows), o);
    switch (part) {
      case HeadPart::input:
        for (int way = 0; way < a.ways; ++way) {
          a.h[(static_cast<int64_t>(way) * a.N + row) * a.h_stride + o] = x;
        }
        return;
      case HeadPart::inner:
        x = silu(x);
        if (a.gated) {
          x *= finished(sums.total(group, 1, lane_row, o % kGroupRows), from + o);
        }
        a.u[row * a.u_stride + o] = x;
        return;
      case HeadPart::outer: {
        float* h = a.h + row * a.h_stride + o;
        const ModulationRow own = rows.modulation_of(a, row);
        const int64_t column = (3 * block() + 2) * static_cast<int64_t>(a.width) + o;
        const int64_t place = own.row * a.modulation_columns() + column;
        const float gate = a.modulation_bfloat16
                               ? widen(static_cast<const BFloat16*>(own.first)[place])
                               : static_cast<const float*>(own.first)[place];
        *h = fma(gate, x, read_fresh(h));
        return;
      }
      case HeadPart::last:
        a.out[row * a.out_stride + o] = x;
        return;
      case HeadPart::norm:
      case HeadPart::pack:
        return;
    }
  }

  ARDIFF_DEVICE void run() const {
    const HeadPart part = part_of(a, layer);
    const int halves = halves_of(a, layer), outs = l().rows / halves;
    const int owned = groups_of_block(groups_of(a, layer), team.block, team.blocks);
    if (owned == 0) return;
    const HeadPartials partials{memory.partials, a.tile, slices_of(l()), halves};
    const int size = partials.slices * halves * a.tile * kGroupRows;
    const int at_once = a.partial_sums / size;
    const int64_t all = part == HeadPart::input ? a.N : a.R;
    for (int64_t begin = 0; begin < all; begin += a.tile) {
      const int count = static_cast<int>(all - begin < a.tile ? all - begin : a.tile);
      if (!rows.any(a, begin, count)) continue;
      fill_tile(part, begin, count);
      if (kLoop && step == a.solver.steps) continue;
      for (int first = 0; first < owned; first += at_once) {
        const int groups = owned - first < at_once ? owned - first : at_once;
        if (l().slice == kSlice<float>) {
          products<float, kLoop>(l(), memory.resident, memory.tile, count, partials, first, groups,
                                 team);
        } else if constexpr (!std::is_same_v<W, float>) {
          products<W, kLoop>(l(), memory.resident, memory.tile, count, partials, first, groups,
                             team);
        }
        team.threads([&](int thread) {
          for (int i = thread; i < groups * count * kGroupRows; i += HeadTeam::kSize) {
            const int group = i / kGroupRows / count, row = i / kGroupRows % count;
            const int o =
                (team.block + (first + group) * team.blocks) * kGroupRows + i % kGroupRows;
            if (o < outs) finish(part, partials, group, outs, begin + row, row, o);
          }
        });
      }
    }
  }
};

/// The kernel of a call: `begin` and the phases of all its blocks (phases.cuh).
template <class W, bool kLoop>
struct HeadBody {
  using Team = HeadTeam;

  ARDIFF_DEVICE static void begin(const HeadArgs& a, const Team& team, float* shared) {
    if constexpr (kLoop) keep_weights(a, memory_of(a, shared).resident, team);
  }

  /// Of the whole call; the loop's last one is the last row of the solver alone.
  ARDIFF_HD static int64_t phases(const HeadArgs& a) {
    return kLoop ? static_cast<int64_t>(a.solver.steps) * a.layers() + 1 : a.layers();
  }

  ARDIFF_DEVICE static bool ended(const HeadArgs&, int64_t) { return false; }

  ARDIFF_DEVICE static void phase(const HeadArgs& a, const Team& team, float* shared,
                                  int64_t phase) {
    const int64_t step = phase / a.layers();
    const int layer = static_cast<int>(phase - step * a.layers());
    const HeadMemory memory = memory_of(a, shared);
    if constexpr (kLoop) {
      const bool chosen = step < a.solver.steps && step_has_set(a.solver, step);
      const int64_t size = a.modulation_columns() * a.modulation_rows;
      const char* set = static_cast<const char*>(a.modulation) +
                        (chosen ? a.solver.set[step] : 0) * size * (a.modulation_bfloat16 ? 2 : 4);
      HeadLayerPhase<W, kLoop>{a, team, memory, layer, step, {set}}.run();
    } else {
      HeadLayerPhase<W, kLoop>{a, team, memory, layer, step, {a.modulation}}.run();
    }
  }
};

}  // namespace ardiff
