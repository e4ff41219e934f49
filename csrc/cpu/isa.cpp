#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(ARDIFF_HAS_AMX)
#include <sys/syscall.h>
#include <unistd.h>
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

constexpr const char* kDotNames[] = {"common", "avx512_bf16", "amx", "emulated_avx512_bf16",
                                     "emulated_amx"};
constexpr int kDots = 5;

bool is_emulated(Dots dots) {
  return dots == Dots::emulated_avx512_bf16 || dots == Dots::emulated_amx;
}

#if defined(ARDIFF_HAS_AMX)
/// Whether the CPU has tiles of bfloat16 and int8 and the system lets this process use them, for
/// which it must ask once.
bool has_tiles() {
  unsigned a, b, c, d;
  constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24, kInt8 = 1u << 25;
  constexpr unsigned kAll = kBfloat16 | kTiles | kInt8;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kAll) != kAll) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

bool supported(Dots dots) {
  switch (dots) {
    case Dots::common:
    case Dots::emulated_avx512_bf16:
    case Dots::emulated_amx:
      return true;
    case Dots::avx512_bf16:
#if defined(ARDIFF_HAS_AVX512_BF16) && !defined(ARDIFF_SPLIT_AVX512)
      return supported(Isa::avx512) && __builtin_cpu_supports("avx512bf16") &&
             __builtin_cpu_supports("avx512vnni");
#else
      return false;
#endif
    case Dots::amx:
#if defined(ARDIFF_HAS_AMX)
    {
      static const bool equal =
          supported(Dots::avx512_bf16) && has_tiles() && tiles_equal_their_emulation();
      return equal;
    }
#else
      return false;
#endif
  }
  return false;
}

Dots best_dots() {
  const char* exact = std::getenv("ARDIFF_CPU_EXACT");
  if (exact && *exact && std::string(exact) != "0") return Dots::common;
  if (supported(Dots::amx)) return Dots::amx;
  return supported(Dots::avx512_bf16) ? Dots::avx512_bf16 : Dots::common;
}

std::atomic<int> chosen_dots{static_cast<int>(best_dots())};

}  // namespace

Dots dots() {
  const Dots wanted = static_cast<Dots>(chosen_dots.load(std::memory_order_relaxed));
  if (isa() == Isa::avx512 || is_emulated(wanted)) return wanted;
  return Dots::common;
}

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

/// Name of the dot products in use.
__attribute__((visibility("default"))) const char* ardiff_cpu_dots() {
  const int i = ardiff::chosen.load(std::memory_order_relaxed);
  return i == ardiff::kUnknown ? "unavailable"
                               : ardiff::kDotNames[static_cast<int>(ardiff::dots())];
}

/// Switches the dot products of all later calls; "" chooses the best ones. 0: done; 1: unknown
/// name; 2: this CPU, or the instruction set in use, lacks them.
__attribute__((visibility("default"))) int ardiff_set_cpu_dots(const char* name) {
  if (!*name) {
    ardiff::chosen_dots = static_cast<int>(ardiff::best_dots());
    return 0;
  }
  for (int i = 0; i < ardiff::kDots; ++i) {
    const ardiff::Dots wanted = static_cast<ardiff::Dots>(i);
    if (std::string(name) != ardiff::kDotNames[i]) continue;
    const bool plain = wanted == ardiff::Dots::common || ardiff::is_emulated(wanted);
    if (!ardiff::supported(wanted)) return 2;
    if (!plain && ardiff::isa() != ardiff::Isa::avx512) return 2;
    ardiff::chosen_dots = i;
    return 0;
  }
  return 1;
}
}
