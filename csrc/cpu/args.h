// How the CPU divides the rows of a kernel's arguments: plain data, no functions, since translation
// units built for different instruction sets share it.
#pragma once

#include "../math/args.h"

namespace ardiff {

/// Elements that a kernel works on at once; scratch for all of them stays in the first-level cache.
constexpr int64_t kTile = 512;

/// Tiles of a [B, d] problem: whole samples, several to a tile, or one sample in several tiles.
struct Tiling {
  int64_t samples_per_tile;
  int64_t tiles_per_sample;
  int64_t count;
};

/// The arguments of a kernel and their tiles.
template <class Args>
struct Tiled : Args {
  Tiling tiling;
  bool packed;  // every row stride equals d, so neighbouring samples are one run of elements
};

}  // namespace ardiff
