#pragma once

#include "../../../csrc/cpu/packed_linear/launch.h"
#include "products.h"

ARDIFF_TEST_KERNEL(packed_linear_rows, PackedLinearArgs)
ARDIFF_TEST_KERNEL(packed_linear_tiles, PackedLinearArgs)

namespace ardiff_test {

using ardiff::Activation;
using ardiff::WeightType;

struct LinearCase {
  int64_t N, columns, rows;
  Activation activation;
  bool bfloat16, norm;
};

/// Blocks of exactly their bytes.
class Blocks {
 public:
  void* bytes(int64_t n) {
    blocks_.emplace_back(new char[n]);
    return blocks_.back().get();
  }
  /// Floats, or their upper halves, which are bfloat16.
  void* values(int64_t n, bool half = false) {
    const int64_t size = half ? 2 : 4;
    char* p = static_cast<char*>(bytes(n * size));
    for (int64_t i = 0; i < n; ++i) {
      const float x = values_.value();
      std::memcpy(p + i * size, reinterpret_cast<const char*>(&x) + 4 - size, size);
    }
    return p;
  }
  const float* floats(int64_t n) { return static_cast<const float*>(values(n)); }

 private:
  Values values_{11};
  std::vector<std::unique_ptr<char[]>> blocks_;
};

inline std::vector<char> run_linear(const LinearCase& c, WeightType type, const Way& way,
                                    decltype(ardiff::packed_linear_rows())::value_type rows,
                                    decltype(ardiff::packed_linear_tiles())::value_type tiles) {
  Blocks blocks;
  ardiff::PackedLinearArgs a{};
  a.N = c.N;
  a.columns = c.columns;
  a.rows = c.rows;
  a.outs = c.activation == Activation::swiglu ? c.rows / 2 : c.rows;
  a.bfloat16 = c.bfloat16;
  a.x = blocks.values(c.N * c.columns, c.bfloat16);
  a.x_stride = c.columns;
  a.scale = type == WeightType::int8 ? blocks.floats(c.rows) : nullptr;
  a.bias = blocks.floats(c.rows);
  a.norm = c.norm ? blocks.floats(c.columns) : nullptr;
  a.eps = 1e-6f;
  a.activation = c.activation;
  a.gate = blocks.floats(a.outs);
  a.residual = blocks.values(c.N * a.outs, c.bfloat16);
  a.residual_stride = a.outs;
  const int64_t bytes = c.N * a.outs * (c.bfloat16 ? 2 : 4);
  a.out = blocks.bytes(bytes);
  const int64_t columns = ardiff::padded_columns(type, c.columns);
  const int64_t words = columns / ardiff::columns_of_word(type);
  const int64_t panels = (c.rows + ardiff::kPanel - 1) / ardiff::kPanel;
  const int64_t count = panels * words * ardiff::kPanel;
  // Two bfloat16 of a word are both in [-1, 1) where a float's halves are.
  void* data = type == WeightType::bfloat16 ? blocks.values(2 * count, true) : blocks.values(count);
  a.matrix = {static_cast<const uint32_t*>(data), columns, type};
  a.products = way.products;
  std::unique_ptr<char[]> memory;
  ardiff::make_room(a, memory);
  ardiff::run_packed_linear(rows.run, tiles.run, a);
  const char* out = static_cast<const char*>(a.out);
  return {out, out + bytes};
}

/// Every type of weights, all ways to multiply, with one thread and with several.
inline void test_packed_linear() {
  std::vector<LinearCase> cases{{37, 203, 150, Activation::swiglu, false, true},
                                {5, 520, 70, Activation::silu, true, true}};
#ifndef __SANITIZE_THREAD__
  cases.push_back({1, 1, 1, Activation::none, false, false});
  cases.push_back({2, 65, 17, Activation::none, true, true});
  cases.push_back({9, 130, 34, Activation::swiglu, false, false});
  cases.push_back({100, 33, 80, Activation::none, false, true});
#endif
  const auto rows = ardiff::packed_linear_rows();
  const auto tiles = ardiff::packed_linear_tiles();
  for (const LinearCase& c : cases) {
    for (WeightType type : {WeightType::float32, WeightType::bfloat16, WeightType::int8}) {
      const auto compare = [&](const Way& way, size_t kernel, std::vector<char>& expected) {
        for (uint32_t count : {1u, 4u}) {
          threads = count;
          const std::vector<char> found = run_linear(c, type, way, rows[kernel], tiles[kernel]);
          if (expected.empty()) expected = found;
          if (found != expected) {
            fail("packed_linear [" + std::to_string(c.N) + ", " + std::to_string(c.columns) +
                 "] by " + way.name + ", " + std::to_string(count) +
                 " threads: not the bits of the first run");
          }
        }
      };
      std::vector<char> expected;
      const std::vector<Way> ways = common_ways();
      for (size_t i = 0; i < ways.size(); ++i) compare(ways[i], i, expected);
      if (type == WeightType::float32) continue;
      for (const Way& way : emulated_ways()) {
        std::vector<char> own;
        compare(way, 0, own);
      }
    }
  }
}

}  // namespace ardiff_test
