// The instruction set of the CPU kernels: chosen once, by CPU features or ARDIFF_CPU_ISA.
#pragma once

#include <cstdint>

namespace ardiff {

enum class Isa { scalar, avx2, avx512 };

/// The instruction set in use. Throws std::runtime_error, one clear sentence, when ARDIFF_CPU_ISA
/// names one that is unknown or that this CPU lacks.
Isa isa();

/// How products with bfloat16 and int8 data are computed, where an op has a choice. `common`: from
/// values widened to float32, with the same bits on every instruction set. The others: by the CPU's
/// dot products of bfloat16 pairs and int8 quadruples, or by its matrix tiles, or by plain C++ that
/// rounds as these instructions do, which lets any CPU test them.
enum class Dots { common, avx512_bf16, amx, emulated_avx512_bf16, emulated_amx };

/// The dot products in use: `common` under ARDIFF_CPU_EXACT=1 and wherever isa() is not avx512,
/// unless an emulation was chosen. Throws as isa() does.
Dots dots();

#if defined(ARDIFF_HAS_AMX)
/// Whether the CPU's tiles give the bits of their emulation; without that they are not used.
bool tiles_equal_their_emulation();
#endif

}  // namespace ardiff

// Declares kernel `name(const Args&, int64_t first_tile, int64_t last_tile)` of every instruction
// set and ardiff::name(), which gives the one in use.
#if defined(__x86_64__)
#define ARDIFF_DECLARE_KERNEL(name, Args)         \
  namespace ardiff {                              \
  namespace scalar {                              \
  void name(const Args&, int64_t, int64_t);       \
  }                                               \
  namespace avx2 {                                \
  void name(const Args&, int64_t, int64_t);       \
  }                                               \
  namespace avx512 {                              \
  void name(const Args&, int64_t, int64_t);       \
  }                                               \
  inline auto name() {                            \
    const Isa chosen = isa();                     \
    return chosen == Isa::avx512 ? &avx512::name  \
           : chosen == Isa::avx2 ? &avx2::name    \
                                 : &scalar::name; \
  }                                               \
  }
#else
#define ARDIFF_DECLARE_KERNEL(name, Args)   \
  namespace ardiff {                        \
  namespace scalar {                        \
  void name(const Args&, int64_t, int64_t); \
  }                                         \
  inline auto name() {                      \
    isa();                                  \
    return &scalar::name;                   \
  }                                         \
  }
#endif
