// int8 codes as floats.
#pragma once

#include "../math/lane.h"

namespace ardiff {

/// Code `i` of the four in a word: the code in the low bits of 2^23, instead of a slow conversion.
ARDIFF_HD float code_of(uint32_t word, int i) {
  const uint32_t shifted = word ^ 0x80808080u;
#ifdef __CUDA_ARCH__
  return from_bits(__byte_perm(shifted, 0x4b000000u, 0x7440u + i)) - 8388736.0f;
#else
  return from_bits(((shifted >> 8 * i) & 0xffu) | 0x4b000000u) - 8388736.0f;
#endif
}

}  // namespace ardiff
