// Tensors for the tests of the C++ kernels: heap blocks of exactly the bytes a tensor has, the gaps
// between its rows forbidden, so that AddressSanitizer sees every access beside an element.
#pragma once

#include <sanitizer/asan_interface.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../../../csrc/math/args.h"

namespace ardiff_test {

using ardiff::In;
using ardiff::Out;
using ardiff::PerSample;
using ardiff::Type;

/// Ends the program with what went wrong.
[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
  std::exit(1);
}

/// Deterministic values; a test needs variety, not randomness.
class Values {
 public:
  explicit Values(uint32_t seed) : state_(seed * 2654435761u + 12345u) {}
  uint32_t word() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 17;
    state_ ^= state_ << 5;
    return state_;
  }
  /// In [-1, 1).
  float value() { return static_cast<float>(word() >> 8) / 8388608.0f - 1.0f; }

 private:
  uint32_t state_;
};

/// A [B, d] tensor with rows `stride` elements apart; outputs begin as NaN.
class Matrix {
 public:
  Matrix(int64_t B, int64_t d, int64_t stride, Type type)
      : B_(B), d_(d), stride_(stride), type_(type), bytes_(((B - 1) * stride + d) * size_of(type)) {
    data_ = std::malloc(bytes_);
    std::memset(data_, 0xff, bytes_);  // NaN in all three types
    poison(true);
  }
  Matrix(const Matrix&) = delete;
  Matrix& operator=(const Matrix&) = delete;
  ~Matrix() {
    poison(false);
    std::free(data_);
  }

  void fill(Values& values) {
    for (int64_t b = 0; b < B_; ++b) {
      for (int64_t i = 0; i < d_; ++i) set(b, i, values.value());
    }
  }
  In in() const { return {data_, B_ > 1 ? stride_ : 0, type_}; }
  Out out() { return {data_, B_ > 1 ? stride_ : 0, type_}; }

  /// The elements, row after row.
  std::vector<char> contents() const {
    std::vector<char> all;
    for (int64_t b = 0; b < B_; ++b) {
      const char* p = static_cast<const char*>(data_) + b * stride_ * size_of(type_);
      all.insert(all.end(), p, p + d_ * size_of(type_));
    }
    return all;
  }
  /// Whether an element is still the NaN that a fresh tensor holds.
  bool has_unwritten() const {
    const std::vector<char> all = contents();
    const int64_t n = size_of(type_);
    for (size_t i = 0; i < all.size(); i += n) {
      bool fresh = true;
      for (int64_t k = 0; k < n; ++k) fresh = fresh && all[i + k] == '\xff';
      if (fresh) return true;
    }
    return false;
  }

 private:
  void set(int64_t b, int64_t i, float value) {
    char* p = static_cast<char*>(data_) + (b * stride_ + i) * size_of(type_);
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (type_ == Type::float32) {
      std::memcpy(p, &value, 4);
    } else if (type_ == Type::bfloat16) {
      const uint16_t half = static_cast<uint16_t>(bits >> 16);
      std::memcpy(p, &half, 2);
    } else {
      // Truncated; the exponents of values() are those of normal numbers or far below.
      const int exponent = static_cast<int>((bits >> 23) & 0xff) - 112;
      const uint32_t kept = exponent <= 0 ? 0 : (exponent << 10) | ((bits >> 13) & 0x3ff);
      const uint16_t half = static_cast<uint16_t>((bits >> 16 & 0x8000u) | kept);
      std::memcpy(p, &half, 2);
    }
  }
  void poison(bool on) {
    for (int64_t b = 0; b + 1 < B_; ++b) {
      char* gap = static_cast<char*>(data_) + (b * stride_ + d_) * size_of(type_);
      const size_t n = (stride_ - d_) * size_of(type_);
      if (on) {
        ASAN_POISON_MEMORY_REGION(gap, n);
      } else {
        ASAN_UNPOISON_MEMORY_REGION(gap, n);
      }
    }
  }

  int64_t B_, d_, stride_;
  Type type_;
  size_t bytes_;
  void* data_;
};

/// A [B] or [1] tensor on the heap.
template <class T>
class Vector {
 public:
  explicit Vector(int64_t n) : n_(n), data_(new T[n]) {}
  T& operator[](int64_t i) { return data_[i]; }
  T* data() const { return data_.get(); }
  PerSample<T> per_sample() const { return {data_.get(), n_ == 1 ? 0 : 1}; }

 private:
  int64_t n_;
  std::unique_ptr<T[]> data_;
};

/// Makes and keeps the tensors of one call.
class Call {
 public:
  Call(int64_t B, int64_t d, int64_t gap, uint32_t seed) : B(B), d(d), gap(gap), values(seed) {}

  /// A filled tensor of `columns` columns (0: d).
  In input(Type type, int64_t columns = 0) {
    Matrix& m = fresh(type, columns);
    m.fill(values);
    return m.in();
  }
  Out output(Type type, int64_t columns = 0) {
    Matrix& m = fresh(type, columns);
    outputs.push_back(&m);
    return m.out();
  }
  /// A tensor that is read and written: an Out whose In has the same data.
  Out state(Type type, int64_t columns = 0) {
    Matrix& m = fresh(type, columns);
    m.fill(values);
    outputs.push_back(&m);
    return m.out();
  }
  PerSample<float> floats(int64_t n) {
    vectors_.push_back(std::make_unique<Vector<float>>(n));
    for (int64_t i = 0; i < n; ++i) (*vectors_.back())[i] = values.value();
    return vectors_.back()->per_sample();
  }
  PerSample<int32_t> rows(int64_t n, int64_t T) {
    indices_.push_back(std::make_unique<Vector<int32_t>>(n));
    // Finished rows among live ones: -1 and T.
    for (int64_t i = 0; i < n; ++i) {
      (*indices_.back())[i] = n == 1 ? 0 : static_cast<int32_t>(i / 3 % (T + 2)) - 1;
    }
    return indices_.back()->per_sample();
  }
  const int64_t* streams() {
    stream_ = std::make_unique<Vector<int64_t>>(B);
    for (int64_t b = 0; b < B; ++b) (*stream_)[b] = (b << 40) - 3 * b;
    return stream_->data();
  }

  const int64_t B, d, gap;
  const int64_t key = -0x61c8864680b583eb;
  Values values;
  std::vector<Matrix*> outputs;

  /// An output of n values, beside the matrices.
  template <class T>
  T* flat_output(int64_t n) {
    flat_.emplace_back(new char[n * sizeof(T)], n * sizeof(T));
    std::memset(flat_.back().first.get(), 0, n * sizeof(T));
    return reinterpret_cast<T*>(flat_.back().first.get());
  }

  /// All outputs, for comparison.
  std::vector<char> results() const {
    std::vector<char> all;
    for (const Matrix* m : outputs) {
      const std::vector<char> one = m->contents();
      all.insert(all.end(), one.begin(), one.end());
    }
    for (const auto& [data, bytes] : flat_) all.insert(all.end(), data.get(), data.get() + bytes);
    return all;
  }
  bool has_unwritten() const {
    for (const Matrix* m : outputs) {
      if (m->has_unwritten()) return true;
    }
    return false;
  }

 private:
  Matrix& fresh(Type type, int64_t columns) {
    const int64_t n = columns ? columns : d;
    matrices_.push_back(std::make_unique<Matrix>(B, n, n + gap, type));
    return *matrices_.back();
  }

  std::vector<std::unique_ptr<Matrix>> matrices_;
  std::vector<std::unique_ptr<Vector<float>>> vectors_;
  std::vector<std::unique_ptr<Vector<int32_t>>> indices_;
  std::vector<std::pair<std::unique_ptr<char[]>, int64_t>> flat_;
  std::unique_ptr<Vector<int64_t>> stream_;
};

}  // namespace ardiff_test
