// The products of a head's layer: weights in 128-bit loads, activations from shared memory.
#pragma once

#include "args.cuh"

namespace ardiff {

/// Element `e` of those that lie in a row in `words`, as a float.
ARDIFF_HD float element_of(const float*, const uint32_t* words, int e) {
  return from_bits(words[e]);
}
ARDIFF_HD float element_of(const BFloat16*, const uint32_t* words, int e) {
  return from_bits(e % 2 ? words[e / 2] & 0xffff0000u : words[e / 2] << 16);
}
ARDIFF_HD float element_of(const Int8*, const uint32_t* words, int e) {
  return static_cast<float>(static_cast<int8_t>(words[e / 4] >> (8 * (e % 4))));
}

/// The activations that a block works on. Within a slice the fours of elements lie so that the
/// lanes of a warp, each of which has `fours` of them in a row, read neighbours at once.
struct HeadTile {
  float* data;
  int stride;

  /// Where the four of elements `quad` of a row lies; `slice` columns a slice.
  ARDIFF_HD static int place(int quad, int slice) {
    const int shift = slice / 256;  // 1, 2 or 4 fours a lane: 0, 1 or 2
    const int within = quad & ((kLanes << shift) - 1);
    const int four = within & ((1 << shift) - 1);
    return quad - within + four * kLanes + (within >> shift);
  }
  ARDIFF_HD float* at(int row, int place) const {
    return data + static_cast<int64_t>(row) * stride + 4 * place;
  }
};

ARDIFF_HD Four<float> read_four(const float* p) { return load<float, true>({p, 0}, 0, 0, 4); }
ARDIFF_HD void write_four(float* p, const Four<float>& x) {
  store<float, true>({p, 0}, 0, 0, 4, x);
}

/// What a lane has of a group, packed: 16 bytes of each row.
struct LaneWeights {
  uint32_t row[kGroupRows][kLaneBytes / 4];
};

/// 16 bytes of a row from column `begin`, zeros behind its end.
template <class W>
ARDIFF_DEVICE void load_lane(const W* p, int begin, int columns, bool vector,
                             uint32_t (&words)[kLaneBytes / 4]) {
  constexpr int kEach = kLaneBytes / static_cast<int>(sizeof(W)), kInWord = kEach / 4;
  if (vector && begin < columns) {
#ifdef __CUDA_ARCH__
    const uint4 word = *reinterpret_cast<const uint4*>(p + begin);
    words[0] = word.x;
    words[1] = word.y;
    words[2] = word.z;
    words[3] = word.w;
#else
    std::memcpy(words, p + begin, kLaneBytes);
#endif
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t word = 0;
#pragma unroll 1
    for (int k = kInWord - 1; k >= 0; --k) {
      const int column = begin + i * kInWord + k;
      uint32_t element = 0;
      if (column < columns) {
        const W value = p[column];
        memcpy(&element, &value, sizeof value);
      }
      word = kInWord == 1 ? element : (word << (32 / kInWord)) | element;
    }
    words[i] = word;
  }
}

/// A group over a slice.
struct HeadUnit {
  int group, half, slice;  // the group counted among the block's
};

/// The weights of a unit, for one lane. kKeep: some matrices may lie in shared memory.
template <class W, bool kKeep>
ARDIFF_DEVICE LaneWeights load_weights(const HeadLayer& l, const char* resident, int halves,
                                       const HeadUnit& u, int block, int blocks, int lane) {
  const int rows = l.rows / halves;
  const int begin = u.slice * l.slice + lane * (kSlice<W> / kLanes);
  LaneWeights w;
#pragma unroll
  for (int o = 0; o < kGroupRows; ++o) {
    const W* p;
    if (kKeep && l.resident >= 0) {
      const int64_t row = (static_cast<int64_t>(u.group) * halves + u.half) * kGroupRows + o;
      p = reinterpret_cast<const W*>(resident + l.resident) + row * l.columns;
    } else {
      const int row = (block + u.group * blocks) * kGroupRows + o;
      const int64_t inside = row < rows ? row : rows - 1;
      p = static_cast<const W*>(l.data) +
          (inside + static_cast<int64_t>(u.half) * rows) * l.columns;
    }
    load_lane(p, begin, l.columns, l.vector, w.row[o]);
  }
  return w;
}

/// A lane's terms of the sums of kRowsAtOnce rows from `first` with the rows of a group.
template <class W>
ARDIFF_DEVICE void lane_terms(const LaneWeights& w, const HeadTile& tile, int first, int count,
                              const HeadUnit& u, int slice, int lane, float (&terms)[kSums]) {
  constexpr int kFours = kSlice<W> / kLanes / 4;
#pragma unroll
  for (int i = 0; i < kSums; ++i) terms[i] = 0.0f;
#pragma unroll
  for (int k = 0; k < kFours; ++k) {
    const int place = u.slice * (slice / 4) + k * kLanes + lane;
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      if (first + r >= count) continue;
      const Four<float> x = read_four(tile.at(first + r, place));
#pragma unroll
      for (int e = 0; e < 4; ++e) {
#pragma unroll
        for (int o = 0; o < kGroupRows; ++o) {
          float& term = terms[r * kGroupRows + o];
          term = fma(element_of(static_cast<const W*>(nullptr), w.row[o], 4 * k + e), x.v[e], term);
        }
      }
    }
  }
}

/// Where the partial sums of a row and a group lie: kGroupRows of them, a slice after the other
/// `slices` apart.
struct HeadPartials {
  float* data;
  int tile, slices, halves;

  ARDIFF_HD float* at(int group, int half, int slice, int row) const {
    return data + (((group * halves + half) * slices + slice) * tile + row) * kGroupRows;
  }
  /// The sum of an element.
  ARDIFF_HD float total(int group, int half, int row, int o) const {
    float sum = at(group, half, 0, row)[o];
#pragma unroll 1
    for (int s = 1; s < slices; ++s) sum += at(group, half, s, row)[o];
    return sum;
  }
};

/// Partial sums of the block's groups [first, first + groups) with `count` rows of activations.
template <class W, bool kKeep>
ARDIFF_DEVICE void products(const HeadLayer& l, const char* resident, const HeadTile& tile,
                            int count, const HeadPartials& partials, int first, int groups,
                            const HeadTeam& team) {
  const int each = partials.halves * partials.slices, units = groups * each;
  const auto unit = [&](int i) {
    return HeadUnit{first + i / each, i % each / partials.slices, i % partials.slices};
  };
  team.warps([&](const Warp& warp) {
    PerLane<LaneWeights> now, next;
    const auto fetch = [&](int i, PerLane<LaneWeights>& to) {
      if (i >= units) return;
      const HeadUnit u = unit(i);
      warp.lanes([&](int lane) {
        to[lane] =
            load_weights<W, kKeep>(l, resident, partials.halves, u, team.block, team.blocks, lane);
      });
    };
    // The weights of a unit are on their way while the one before is worked on.
#pragma unroll 1
    for (int i = warp.index; i < units + HeadTeam::kWarps; i += HeadTeam::kWarps) {
      fetch(i, next);
      const bool any = i >= HeadTeam::kWarps;
      const HeadUnit u = unit(any ? i - HeadTeam::kWarps : 0);
#pragma unroll 1
      for (int r = 0; any && r < count; r += kRowsAtOnce) {
        warp.sums(
            [&](int lane, float (&terms)[kSums]) {
              lane_terms<W>(now[lane], tile, r, count, u, l.slice, lane, terms);
            },
            [&](int which, float sum) {
              const int row = r + which / kGroupRows;
              if (row >= count) return;
              partials.at(u.group - first, u.half, u.slice, row)[which % kGroupRows] = sum;
            });
      }
      warp.lanes([&](int lane) { now[lane] = next[lane]; });
    }
  });
}

/// Copies the block's rows of the matrices that it keeps, a row per warp.
ARDIFF_DEVICE void keep_weights(const HeadArgs& a, char* resident, const HeadTeam& team) {
  team.warps([&](const Warp& warp) {
#pragma unroll 1
    for (int i = 1; i < a.layers(); ++i) {
      const HeadLayer& l = a.layer[i];
      if (l.resident < 0) continue;
      const int halves = halves_of(a, i), rows = l.rows / halves;
      const int owned = groups_of_block(groups_of(a, i), team.block, team.blocks);
      const int words = l.columns / (l.slice / kLanes);  // of 16 bytes in a row
#pragma unroll 1
      for (int row = warp.index; row < owned * halves * kGroupRows; row += HeadTeam::kWarps) {
        const int group = row / kGroupRows / halves, half = row / kGroupRows % halves;
        const int own = (team.block + group * team.blocks) * kGroupRows + row % kGroupRows;
        const int64_t from = (own < rows ? own : rows - 1) + static_cast<int64_t>(half) * rows;
        const float* source = static_cast<const float*>(l.data) + from * words * 4;
        float* target = reinterpret_cast<float*>(resident + l.resident) + int64_t{4} * row * words;
        warp.lanes([&](int lane) {
#pragma unroll 4
          for (int word = lane; word < words; word += kLanes) {
            write_four(target + 4 * word, read_four(source + 4 * word));
          }
        });
      }
    }
  });
}

}  // namespace ardiff
