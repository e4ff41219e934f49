// What the torch side hands to the kernels of one instruction set: plain data, no functions, since
// translation units built for different instruction sets share it.
#pragma once

#include <cstdint>

namespace ardiff {

/// Elements that a kernel works on at once; scratch for all of them stays in the first-level cache.
constexpr int64_t kTile = 512;

enum class Type { float32, float16, bfloat16 };

/// A [B, d] tensor with unit inner stride; `stride` is in elements. Absent: data is null.
struct In {
  const void* data;
  int64_t stride;
  Type type;
};
struct Out {
  void* data;
  int64_t stride;
  Type type;
};

/// A [B] (step 1) or [1] (step 0) tensor. Absent: data is null.
template <class T>
struct PerSample {
  const T* data;
  int64_t step;
};

/// Tiles of a [B, d] problem: whole samples, several to a tile, or one sample in several tiles.
struct Tiling {
  int64_t samples_per_tile;
  int64_t tiles_per_sample;
  int64_t count;
};

/// The address of the noise; counter word 1 is 4 * draw, or `counter` where draw is absent.
struct NoiseAddress {
  uint64_t key;
  const int64_t* stream;
  PerSample<int32_t> draw;
  uint32_t counter;
};

struct NormalArgs {
  int64_t B, d;
  Tiling tiling;
  NoiseAddress address;
  Out out;
};

/// Four words a quad into `out`, for tests of the words themselves.
struct WordsArgs {
  int64_t key, stream;
  uint32_t counter;
  uint32_t* out;
};

struct StepArgs {
  int64_t B, d, T;
  Tiling tiling;
  bool packed;  // every row stride equals d, so neighbouring samples are one run of elements
  const float* coef;
  PerSample<int32_t> row;
  NoiseAddress address;
  In model_out, uncond_out, uncond_out2;
  PerSample<float> guidance, guidance2, noise_scale;
  In noise, noise2;
  Out z_model;
};

struct UldArgs : StepArgs {
  In z, v, anchor;
  Out z_new, v_new, anchor_new;
};

struct DiffusionArgs : StepArgs {
  bool learned_range;  // model_out is [B, 2d]
  bool clamped;
  float x0_clamp;
  In x, memory, memory2;  // memory2: the second half of a [B, 2d] memory
  Out x_new, memory_new, memory2_new, x0;
};

/// Gradients of uld_step's results (null: zero) and of its inputs (null: not wanted). Of the step's
/// own tensors only the row and the per-sample options are there.
struct UldBackwardArgs : StepArgs {
  int ways;  // of guidance: 0, 1 or 2 unconditional outputs
  In grad_z, grad_v, grad_anchor;
  Out z, v, out, anchor, uncond, uncond2, n1, n2;
};

/// The same for diffusion_step; `memory2` is the second half of a [B, 2d] memory.
struct DiffusionBackwardArgs : StepArgs {
  int ways;
  bool learned_range, clamped, second_memory;
  float x0_clamp;
  In x, grad_x, grad_memory, grad_memory2, grad_x0;
  Out new_x, memory, memory2, out, uncond, uncond2, n;
};

}  // namespace ardiff
