// For tests of Philox words on every instruction set: plain data.
#pragma once

#include <cstdint>

namespace ardiff {

/// Four words per quad into `out`.
struct WordsArgs {
  int64_t key, stream;
  uint32_t counter;
  uint32_t* out;
};

}  // namespace ardiff
