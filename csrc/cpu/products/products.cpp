#include "products.h"

namespace ardiff {
#define ARDIFF_PRODUCTS(name)     \
  namespace name {                \
  extern const Products products; \
  }
ARDIFF_PRODUCTS(scalar)
ARDIFF_PRODUCTS(emulated_avx512_bf16)
ARDIFF_PRODUCTS(emulated_amx)
#if defined(__x86_64__)
ARDIFF_PRODUCTS(avx2)
ARDIFF_PRODUCTS(avx512)
#endif
#if defined(ARDIFF_HAS_AVX512_BF16)
ARDIFF_PRODUCTS(avx512_bf16)
#endif
#if defined(ARDIFF_HAS_AMX)
ARDIFF_PRODUCTS(amx)
#endif

namespace {

const Products& common_products() {
#if defined(__x86_64__)
  const Isa chosen = isa();
  if (chosen == Isa::avx512) return avx512::products;
  if (chosen == Isa::avx2) return avx2::products;
#endif
  return scalar::products;
}

/// Up to which sums of products of bytes, 255 by 128, fit into 32 bits.
constexpr int64_t kMostColumnsOfInt8 = 65536;

}  // namespace

const Products& products_of(WeightType type, int64_t columns) {
  if (type == WeightType::float32) return common_products();
  if (type == WeightType::int8 && columns > kMostColumnsOfInt8) return common_products();
  switch (dots()) {
    case Dots::emulated_avx512_bf16:
      return emulated_avx512_bf16::products;
    case Dots::emulated_amx:
      return emulated_amx::products;
    case Dots::avx512_bf16:
#if defined(ARDIFF_HAS_AVX512_BF16)
      return avx512_bf16::products;
#endif
    case Dots::amx:
#if defined(ARDIFF_HAS_AMX)
      return amx::products;
#endif
    case Dots::common:
      break;
  }
  return common_products();
}

}  // namespace ardiff
