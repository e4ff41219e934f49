#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace ardiff {
namespace {

constexpr const char* kNames[] = {"scalar", "avx2", "avx512"};
constexpr int kUnknown = -1;

#if defined(__x86_64__)
/// Conversions from float16; older compilers' __builtin_cpu_supports does not know the name.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

bool supported(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  if (isa == Isa::avx2) return avx2;
#ifdef ARDIFF_SPLIT_AVX512
  if (isa == Isa::avx512) return avx2;
#else
  if (isa == Isa::avx512) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  }
#endif
#endif
  return isa == Isa::scalar;
}

int parse(const std::string& name) {
  for (int i = 0; i < 3; ++i) {
    if (name == kNames[i]) return i;
  }
  return kUnknown;
}

Isa best() {
#ifndef ARDIFF_SPLIT_AVX512
  if (supported(Isa::avx512)) return Isa::avx512;
#endif
  return supported(Isa::avx2) ? Isa::avx2 : Isa::scalar;
}

/// From the environment; kUnknown where it asks for what cannot be had.
int initial() {
  const char* name = std::getenv("ARDIFF_CPU_ISA");
  if (!name || !*name) return static_cast<int>(best());
  const int wanted = parse(name);
  return wanted != kUnknown && supported(static_cast<Isa>(wanted)) ? wanted : kUnknown;
}

std::atomic<int> chosen{initial()};

}  // namespace

Isa isa() {
  const int i = chosen.load(std::memory_order_relaxed);
  if (i != kUnknown) return static_cast<Isa>(i);
  const char* name = std::getenv("ARDIFF_CPU_ISA");
  std::string available;
  for (int k = 0; k < 3; ++k) {
    if (!supported(static_cast<Isa>(k))) continue;
    available += (available.empty() ? "" : ", ") + std::string(kNames[k]);
  }
  throw std::runtime_error("ARDIFF_CPU_ISA is \"" + std::string(name ? name : "") +
                           "\", but this CPU can run " + available +
                           "; set one of these or unset it");
}

}  // namespace ardiff

extern "C" {

/// Name of the instruction set in use, or "unavailable" when ARDIFF_CPU_ISA asks for what cannot
/// be had.
__attribute__((visibility("default"))) const char* ardiff_cpu_isa() {
  const int i = ardiff::chosen.load(std::memory_order_relaxed);
  return i == ardiff::kUnknown ? "unavailable" : ardiff::kNames[i];
}

/// Switches the instruction set of all later calls; "" chooses the best one. 0: done; 1: unknown
/// name; 2: this CPU lacks it.
__attribute__((visibility("default"))) int ardiff_set_cpu_isa(const char* name) {
  if (!*name) {
    ardiff::chosen = static_cast<int>(ardiff::best());
    return 0;
  }
  const int i = ardiff::parse(name);
  if (i == ardiff::kUnknown) return 1;
  if (!ardiff::supported(static_cast<ardiff::Isa>(i))) return 2;
  ardiff::chosen = i;
  return 0;
}
}
