#include "products.h"

#include <cstring>
#include <vector>

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

#if defined(ARDIFF_HAS_AMX)
namespace {

/// A float whose bfloat16 is itself, of either sign and of a size between 2^-16 and 2^15, so that
/// sums in another order round otherwise.
float value_of(uint32_t& state) {
  state = state * 1664525u + 1013904223u;
  const uint32_t exponent = 111 + (state >> 24) % 32;
  const uint32_t word = (state & 0x80000000u) | exponent << 23 | (state & 0x007f0000u);
  float x;
  std::memcpy(&x, &word, sizeof x);
  return x;
}

/// Products of 17 rows, a full tile and one more, with three panels.
std::vector<float> sample_products(const Products& products, WeightType type) {
  constexpr int64_t kRows = 17, kColumns = 256, kPanels = 3, kWidth = kPanels * kPanel;
  uint32_t state = 1;
  const PackedMatrix shape{nullptr, kColumns, type};
  std::vector<uint32_t> words(kPanels * shape.words_of_panel());
  for (uint32_t& word : words) {
    const float even = value_of(state), odd = value_of(state);
    uint32_t low, high;
    std::memcpy(&low, &even, sizeof low);
    std::memcpy(&high, &odd, sizeof high);
    word = low >> 16 | high;  // as int8 any bits will do
  }
  const int64_t stride = products.row_bytes(type, kColumns);
  std::vector<char> data(kRows * stride);
  std::vector<float> scale(kRows), x(kColumns), out(kRows * kWidth);
  const PackedRows rows{data.data(), stride, scale.data()};
  for (int64_t n = 0; n < kRows; ++n) {
    for (float& value : x) value = value_of(state);
    products.pack_row(type, x.data(), kColumns, rows, n);
  }
  const PackedMatrix matrix{words.data(), kColumns, type};
  products.multiply(matrix, 0, kPanels, rows, kRows, out.data(), kWidth);
  return out;
}

}  // namespace

bool tiles_equal_their_emulation() {
  for (WeightType type : {WeightType::bfloat16, WeightType::int8}) {
    const std::vector<float> found = sample_products(amx::products, type);
    const std::vector<float> expected = sample_products(emulated_amx::products, type);
    if (std::memcmp(found.data(), expected.data(), sizeof(float) * found.size())) return false;
  }
  return true;
}
#endif

}  // namespace ardiff
