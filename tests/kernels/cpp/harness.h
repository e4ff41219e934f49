// Runs a kernel of every instruction set that is linked and that this CPU has, over the tiles as
// csrc/cpu/launch.h shares them among threads, and compares the results to the bit.
#pragma once

#include <string>
#include <thread>
#include <vector>

#include "../../../csrc/cpu/launch.h"
#include "buffers.h"

namespace ardiff_test {

inline uint32_t threads = 1;

template <class Args>
struct Kernel {
  const char* isa;
  void (*run)(const Args&, int64_t, int64_t);  // null: not linked
};

inline bool has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

/// Kernels that can run, at least one.
template <class Args>
std::vector<Kernel<Args>> runnable(std::initializer_list<Kernel<Args>> all) {
  std::vector<Kernel<Args>> found;
  for (const Kernel<Args>& k : all) {
    if (k.run && (has_avx2() || std::string(k.isa) == "scalar")) found.push_back(k);
  }
  if (found.empty()) fail("no kernel is linked that this CPU can run");
  return found;
}

/// A shape and the elements between rows.
struct Shape {
  int64_t B, d, gap;
};

inline bool takes_threads(const Shape& shape) { return shape.B * shape.d >= 16384; }

/// Where ThreadSanitizer watches, only shapes large enough for several threads.
inline std::vector<Shape> shapes() {
  std::vector<Shape> found{{37, 1031, 0}, {2600, 7, 0}, {2600, 7, 1}};
#ifndef __SANITIZE_THREAD__
  for (int64_t gap : {0, 3}) {
    for (const auto& [B, d] : std::initializer_list<std::pair<int64_t, int64_t>>{
             {1, 1}, {3, 5}, {1, 16}, {7, 33}, {5, 64}, {2, 511}, {2, 513}, {1, 1027}, {130, 3}}) {
      found.push_back({B, d, gap});
    }
  }
#endif
  return found;
}

/// Runs what `make` prepares, once for each kernel and number of threads, on fresh tensors.
template <class Args, class Make>
void check(const std::string& name, const std::vector<Kernel<Args>>& kernels, const Shape& shape,
           Make make) {
  std::vector<char> expected;
  for (const Kernel<Args>& kernel : kernels) {
    for (uint32_t count : {1u, 4u}) {
      if (count > 1 && !takes_threads(shape)) continue;
      Call call(shape.B, shape.d, shape.gap, 7);
      const Args args = make(call);
      threads = count;
      ardiff::run_tiles(kernel.run, args);
      const std::string where = name + " [" + std::to_string(shape.B) + ", " +
                                std::to_string(shape.d) + "] on " + kernel.isa + ", " +
                                std::to_string(count) + " threads";
      if (call.has_unwritten()) fail(where + ": an element was not written");
      if (expected.empty()) expected = call.results();
      if (call.results() != expected) fail(where + ": not the bits of the first run");
    }
  }
}

}  // namespace ardiff_test

// Kernel `name` of all instruction sets; those that are not linked stay null.
#define ARDIFF_TEST_KERNEL(name, Args)                                               \
  namespace ardiff {                                                                 \
  namespace scalar {                                                                 \
  __attribute__((weak)) void name(const Args&, int64_t, int64_t);                    \
  }                                                                                  \
  namespace avx2 {                                                                   \
  __attribute__((weak)) void name(const Args&, int64_t, int64_t);                    \
  }                                                                                  \
  namespace avx512 {                                                                 \
  __attribute__((weak)) void name(const Args&, int64_t, int64_t);                    \
  }                                                                                  \
  inline auto name() {                                                               \
    return ardiff_test::runnable<Args>(                                              \
        {{"scalar", scalar::name}, {"avx2", avx2::name}, {"avx512", avx512::name}}); \
  }                                                                                  \
  }                                                                                  \
  namespace ardiff_test {                                                            \
  using ardiff::name;                                                                \
  }
