// Caches and tokens for the tests of kv_append and kv_attention.
#pragma once

#include "../../../csrc/cpu/kv/args.h"
#include "harness.h"

namespace ardiff_test {

using ardiff::CacheType;

constexpr CacheType kCacheTypes[] = {CacheType::float32, CacheType::bfloat16, CacheType::int8,
                                     CacheType::float8};

inline int64_t size_of(CacheType type) {
  return type == CacheType::float32 ? 4 : type == CacheType::bfloat16 ? 2 : 1;
}

/// One call's tensors, each a heap block of exactly its bytes.
struct KvCase {
  int64_t rows, T, heads, D, S, M;
  bool paged;
  CacheType type;
};

class KvTensorsOf {
 public:
  explicit KvTensorsOf(const KvCase& c) : c_(c), values_(11) {}

  void fill(ardiff::KvArgs& a) {
    const int64_t blocks = c_.rows * c_.M, vectors = blocks * c_.heads * c_.S;
    a.cache = {bytes(vectors * c_.D * size_of(c_.type)),
               bytes(vectors * c_.D * size_of(c_.type)),
               nullptr,
               nullptr,
               c_.heads,
               static_cast<int>(c_.D),
               c_.type};
    if (size_of(c_.type) == 1) {
      a.cache.k_scale = floats(vectors);
      a.cache.v_scale = floats(vectors);
    }
    int32_t* table = reinterpret_cast<int32_t*>(bytes(4 * blocks));
    int32_t* length = reinterpret_cast<int32_t*>(bytes(4 * c_.rows));
    int32_t* count = reinterpret_cast<int32_t*>(bytes(4 * c_.rows));
    for (int64_t i = 0; i < blocks; ++i) table[i] = static_cast<int32_t>(blocks - 1 - i);
    for (int64_t b = 0; b < c_.rows; ++b) {
      // The first row fills its cache to the last token.
      count[b] = static_cast<int32_t>(b % 2 ? c_.T / 2 : c_.T);
      const int64_t room = c_.S * c_.M - count[b];
      length[b] = static_cast<int32_t>(b ? room * b / (2 * c_.rows) : room);
    }
    a.rows = {length, count,      c_.paged ? table : nullptr, nullptr, c_.T, blocks, c_.S,
              c_.M,   c_.S * c_.M};
    a.head = {floats(c_.D), floats(c_.S * c_.M * c_.D / 2), floats(c_.S * c_.M * c_.D / 2), 1e-6f,
              static_cast<int>(c_.D / 2)};
  }

  ardiff::KvTokens tokens(int64_t heads, bool half) {
    const int64_t n = c_.rows * c_.T * heads * c_.D;
    const int64_t strides[] = {c_.T * heads * c_.D, heads * c_.D, c_.D};
    return {half ? static_cast<void*>(bytes(2 * n)) : floats(n),
            strides[0],
            strides[1],
            strides[2],
            half,
            false};
  }

  /// Bytes of small finite values in every type of cache.
  char* bytes(int64_t n) {
    char* p = raw(n);
    for (int64_t i = 0; i < n; ++i) p[i] = static_cast<char>(values_.word() & 0x3f);
    return p;
  }
  float* floats(int64_t n) {
    float* p = reinterpret_cast<float*>(raw(4 * n));
    for (int64_t i = 0; i < n; ++i) p[i] = values_.value();
    return p;
  }
  std::vector<char> contents() const {
    std::vector<char> all;
    for (const auto& [data, n] : blocks_) all.insert(all.end(), data.get(), data.get() + n);
    return all;
  }

 private:
  char* raw(int64_t n) {
    blocks_.emplace_back(new char[n], n);
    return blocks_.back().first.get();
  }

  KvCase c_;
  Values values_;
  std::vector<std::pair<std::unique_ptr<char[]>, int64_t>> blocks_;
};

inline std::vector<KvCase> kv_cases(int64_t tokens) {
  std::vector<KvCase> found;
  for (CacheType type : kCacheTypes) {
    found.push_back({3, tokens, 2, 40, 17, 17, true, type});
    found.push_back({2, tokens, 1, 64, 530, 1, false, type});
#ifndef __SANITIZE_THREAD__
    found.push_back({1, tokens, 3, 256, 33, 1, false, type});
    found.push_back({2, 1, 1, 72, 7, 1, false, type});
#endif
  }
  return found;
}

/// Runs `run(kernel)`, which returns its results, on each kernel and number of threads; all must be
/// `expected`, or where that is empty those of the first run.
template <class Args, class Run>
void check_kv(const std::string& name, const std::vector<Kernel<Args>>& kernels,
              std::vector<char>& expected, Run run) {
  for (size_t i = 0; i < kernels.size(); ++i) {
    for (uint32_t count : {1u, 4u}) {
      threads = count;
      const std::vector<char> results = run(i);
      if (expected.empty()) expected = results;
      if (results != expected) {
        fail(name + " on " + kernels[i].isa + ", " + std::to_string(count) +
             " threads: not the bits of the first run");
      }
    }
  }
}

}  // namespace ardiff_test
