#pragma once

#include "../../../csrc/cpu/head_step/launch.h"
#include "products.h"

ARDIFF_TEST_KERNEL(head_step_shares, HeadStepArgs)

namespace ardiff_test {

using ardiff::HeadMatrix;
using ardiff::WeightType;

struct HeadCase {
  int64_t N, ways, d, width, inner, out, depth;
  bool rms_norm, gated, shared, half;  // half: bfloat16 modulations
};

/// Ways to multiply packed matrices, null where they are not packed: of float32 and of the others.
struct Packing {
  const ardiff::Products *floats = nullptr, *others = nullptr;
};

/// One call's tensors, each a heap block of exactly its bytes.
class HeadTensorsOf {
 public:
  HeadTensorsOf(const HeadCase& c, WeightType type, Packing packing = {})
      : c_(c), packing_(packing), values_(5) {
    add(c.width, c.d, WeightType::float32);
    for (int64_t block = 0; block < c.depth; ++block) {
      add(c.inner * (c.gated ? 2 : 1), c.width, type);
      add(c.width, c.inner, type);
    }
    add(c.out, c.width, type);
  }

  ardiff::HeadStepArgs args() {
    ardiff::HeadStepArgs a{};
    a.N = c_.N;
    a.ways = c_.ways;
    a.R = c_.ways * c_.N;
    a.width = c_.width;
    a.depth = c_.depth;
    a.rms_norm = c_.rms_norm;
    a.gated = c_.gated;
    a.eps = 1e-6f;
    a.matrix = matrices_.data();
    a.modulation_rows = c_.shared ? a.ways : a.R;
    a.modulation_bfloat16 = c_.half;
    a.modulation = values(a.modulation_rows * (3 * c_.depth + 2) * c_.width,
                          c_.half ? WeightType::bfloat16 : WeightType::float32);
    a.out = static_cast<float*>(values(a.R * c_.out, WeightType::float32));
    a.out_stride = c_.out;
    const float* x = static_cast<float*>(values(c_.N * c_.d, WeightType::float32));
    ardiff::fill_activations(a, x, c_.d, memory_);
    return a;
  }

 private:
  void add(int64_t rows, int64_t columns, WeightType type) {
    const float* bias = static_cast<float*>(values(rows, WeightType::float32));
    const float* scale = static_cast<float*>(values(rows, WeightType::float32));
    matrices_.push_back({values(rows * columns, type), c_.gated ? nullptr : bias,
                         type == WeightType::int8 ? scale : nullptr, rows, columns, type,
                         type == WeightType::float32 ? packing_.floats : packing_.others});
  }
  void* values(int64_t n, WeightType type) {
    const int64_t size = type == WeightType::float32 ? 4 : type == WeightType::bfloat16 ? 2 : 1;
    blocks_.emplace_back(new char[n * size]);
    char* p = blocks_.back().get();
    for (int64_t i = 0; i < n; ++i) {
      const float x = values_.value();
      if (type == WeightType::int8) {
        p[i] = static_cast<char>(static_cast<int>(127 * x));
      } else {
        // The upper half of a float is a bfloat16.
        std::memcpy(p + i * size, reinterpret_cast<const char*>(&x) + 4 - size, size);
      }
    }
    return p;
  }

  HeadCase c_;
  Packing packing_;
  Values values_;
  std::vector<HeadMatrix> matrices_;
  std::vector<std::unique_ptr<char[]>> blocks_;
  std::vector<float> memory_;
};

inline std::vector<HeadCase> head_cases() {
  std::vector<HeadCase> found{
      {2, 2, 5, 160, 120, 7, 2, false, false, false, false},
      {11, 1, 16, 67, 61, 33, 2, true, true, true, true},
  };
#ifndef __SANITIZE_THREAD__
  found.push_back({1, 1, 1, 1, 1, 1, 1, true, true, false, false});
  found.push_back({1, 1, 3, 130, 131, 2, 1, false, false, false, true});
  found.push_back({70, 1, 3, 19, 523, 5, 1, true, false, true, false});
  found.push_back({5, 3, 9, 24, 16, 16, 2, false, true, false, true});
#endif
  return found;
}

/// The results with as many threads as asked and with fewer, since each of them alone must get
/// through: all the same, and those of `expected`, which is filled where it is empty.
template <class Run>
void check_head(const HeadCase& c, WeightType type, Packing packing, Run run,
                const std::string& where, std::vector<float>& expected) {
  for (const auto& [asked, given] :
       std::initializer_list<std::pair<int64_t, uint32_t>>{{1, 1}, {4, 4}, {4, 1}, {3, 2}}) {
    HeadTensorsOf tensors(c, type, packing);
    ardiff::HeadStepArgs a = tensors.args();
    threads = given;
    ardiff::run_head(run, a, asked);
    const std::vector<float> results(a.out, a.out + a.R * a.out_stride);
    if (expected.empty()) expected = results;
    if (std::memcmp(results.data(), expected.data(), sizeof(float) * results.size())) {
      fail("head_step, " + where + ", " + std::to_string(given) +
           " threads: not the bits of the first run");
    }
  }
}

/// Every type of weights on every kernel, and packed in every way.
inline void test_head_step() {
  const auto kernels = head_step_shares();
  int index = 0;
  for (const HeadCase& c : head_cases()) {
    const std::string name = "case " + std::to_string(++index) + " ";
    for (WeightType type : {WeightType::float32, WeightType::bfloat16, WeightType::int8}) {
      std::vector<float> expected;
      for (const auto& kernel : kernels) {
        check_head(c, type, {}, kernel.run, name + kernel.isa, expected);
      }
    }
  }
  const HeadCase whole{5, 2, 64, 64, 128, 64, 2, true, true, false, true};
  for (WeightType type : {WeightType::float32, WeightType::bfloat16, WeightType::int8}) {
    std::vector<float> expected;
    const std::vector<Way> ways = common_ways();
    for (size_t i = 0; i < ways.size(); ++i) {
      const Packing packing{ways[i].products, ways[i].products};
      check_head(whole, type, packing, kernels[i].run, ways[i].name, expected);
    }
    for (const Way& way : emulated_ways()) {
      std::vector<float> own;
      check_head(whole, type, {ways[0].products, way.products}, kernels[0].run, way.name, own);
    }
  }
}

}  // namespace ardiff_test
