// The division of work over torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "tiling.h"

namespace ardiff {

/// Runs a kernel, which goes over the elements `times` times, over all tiles on torch's threads.
template <class Args>
void run_tiles(void (*kernel)(const Args&, int64_t, int64_t), const Args& args, int64_t times = 1) {
  const auto parallel = [](int64_t threads, auto work) {
    torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) { work(); });
  };
  share_tiles(kernel, args, torch::stable::get_num_threads(), parallel, times);
}

}  // namespace ardiff
