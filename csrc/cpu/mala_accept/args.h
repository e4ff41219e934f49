// What the torch side hands to the kernel of mala_accept: plain data.
#pragma once

#include "../args.h"

namespace ardiff {

struct AcceptArgs {
  int64_t B, d, T;
  Tiling tiling;
  const float* coef;
  PerSample<int32_t> row, draw;
  int64_t key;
  const int64_t* stream;
  In x, y, out_x, out_y, anchor, v_x, v_y, out_mid;
  const float *energy_x, *energy_y;
  PerSample<float> ball_radius;
  Out x_new, out_new, v_new;
  float* energy_new;
  bool* accepted;
  float* log_alpha;
};

}  // namespace ardiff
