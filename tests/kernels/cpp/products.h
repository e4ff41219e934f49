// The ways to multiply packed weights that are linked; the calls are in packed_linear.h and
// head_step.h.
#pragma once

#include "../../../csrc/cpu/products/args.h"
#include "harness.h"

#define ARDIFF_TEST_PRODUCTS(name)                      \
  namespace ardiff {                                    \
  namespace name {                                      \
  extern const Products products __attribute__((weak)); \
  }                                                     \
  }
ARDIFF_TEST_PRODUCTS(scalar)
ARDIFF_TEST_PRODUCTS(avx2)
ARDIFF_TEST_PRODUCTS(avx512)
ARDIFF_TEST_PRODUCTS(emulated_avx512_bf16)
ARDIFF_TEST_PRODUCTS(emulated_amx)

namespace ardiff_test {

struct Way {
  const char* name;
  const ardiff::Products* products;
};

/// Ways that give the same bits, then the emulations, which may give others.
inline std::vector<Way> common_ways() {
  std::vector<Way> found;
  for (const Way& way :
       {Way{"scalar", &ardiff::scalar::products}, Way{"avx2", &ardiff::avx2::products},
        Way{"avx512", &ardiff::avx512::products}}) {
    const bool here = has_avx2() || std::string(way.name) == "scalar";
    if (way.products && here) found.push_back(way);
  }
  return found;
}
inline std::vector<Way> emulated_ways() {
  return {{"emulated_avx512_bf16", &ardiff::emulated_avx512_bf16::products},
          {"emulated_amx", &ardiff::emulated_amx::products}};
}

}  // namespace ardiff_test
