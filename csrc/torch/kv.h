// What kv_append and kv_attention have in common as torch calls them, on every backend: tensors,
// checks, which repeat ardiff_kernels/ops/_shared/kv_cache.py in order and wording, and the
// arguments of a kernel.
#pragma once

#include "../math/kv.h"
#include "checks.h"
#include "operands.h"

namespace ardiff {

/// The arguments that both ops have; `tokens` is k or q, `norm` k_norm or q_norm.
struct KvTensors {
  Arg tokens, v, k_cache, v_cache, length;
  Arg count, block_table, position, cos, sin, norm, k_scale, v_scale;
};

inline void check_tokens(const char* op, const Arg& a) {
  if (a.dim != 4) {
    fail(op, ": ", a.name, " must be [B, T, H, D], got ", a.dim, " dimensions");
  }
  if (a.dtype != ScalarType::Float && a.dtype != ScalarType::BFloat16) {
    fail(op, ": ", a.name, " must be float32 or bfloat16, got ", name_of(a.dtype));
  }
}

inline void check_unit_stride(const char* op, const Arg& a) {
  if (a.sizes[0] * a.sizes[1] * a.sizes[2] * a.sizes[3] > 0 && a.strides[3] != 1) {
    fail(op, ": ", a.name, " must have unit stride in its last dimension, got strides ",
         list_of(a.strides, a.dim), "; call .contiguous() first");
  }
}

inline bool is_quantized(ScalarType dtype) {
  return dtype == ScalarType::Char || dtype == ScalarType::Float8_e4m3fn;
}

inline void check_cache(const char* op, const KvTensors& t) {
  const Arg& k = t.k_cache;
  if (k.dim != 4) fail(op, ": k_cache must be [N, H, S, D], got ", k.dim, " dimensions");
  const bool quantized = is_quantized(k.dtype);
  if (k.dtype != ScalarType::Float && k.dtype != ScalarType::BFloat16 && !quantized) {
    fail(op, ": k_cache must be float32, bfloat16, int8 or float8_e4m3fn, got ", name_of(k.dtype));
  }
  const int64_t d = k.sizes[3];
  if (k.sizes[1] < 1 || k.sizes[2] < 1 || d < 32 || d > 256 || d % 8) {
    fail(op,
         ": k_cache must be [N, H, S, D] with H and S at least 1 and D a multiple of 8 from 32 to "
         "256, got ",
         shape_of(k));
  }
  check_exact(op, k, k.dtype, k.sizes, 4);
  check_exact(op, t.v_cache, k.dtype, k.sizes, 4);
  if (t.k_scale.given() != quantized || t.v_scale.given() != quantized) {
    fail(op,
         ": k_scale and v_scale go with an int8 or float8_e4m3fn cache and with no other, and the "
         "cache is ",
         name_of(k.dtype));
  }
  check_exact(op, t.k_scale, ScalarType::Float, k.sizes, 3);
  check_exact(op, t.v_scale, ScalarType::Float, k.sizes, 3);
}

/// What belongs to the rows of a batch, and the rotary tables.
inline void check_rows(const char* op, const KvTensors& t) {
  const int64_t rows = t.tokens.sizes[0], d = t.k_cache.sizes[3];
  check_vector(op, t.length, ScalarType::Int, rows);
  check_vector(op, t.count, ScalarType::Int, rows);
  const Arg& table = t.block_table;
  if (!table.given()) {
    if (t.k_cache.sizes[0] < rows) {
      fail(op, ": without block_table the cache needs a block for each of the ", rows,
           " rows, got k_cache ", shape_of(t.k_cache));
    }
  } else if (table.dim != 2 || table.dtype != ScalarType::Int || table.sizes[0] != rows ||
             table.sizes[1] < 1 || !table.contiguous()) {
    fail(op, ": block_table must be a contiguous int32 [", rows, ", M] with M >= 1, ", got(table));
  }
  if (t.cos.given() != t.sin.given()) {
    fail(op, ": cos and sin go together: pass both or neither");
  }
  if (t.position.given() && !t.cos.given()) {
    fail(op, ": position selects rows of cos and sin: pass them too");
  }
  const Arg& cos = t.cos;
  if (cos.given()) {
    if (cos.dim != 2 || cos.dtype != ScalarType::Float || cos.sizes[0] < 1 || cos.sizes[1] < 1 ||
        2 * cos.sizes[1] > d || !cos.contiguous()) {
      fail(op, ": cos must be a contiguous float32 [P, R / 2] with P >= 1 and 2 <= R <= ", d, ", ",
           got(cos));
    }
    check_exact(op, t.sin, ScalarType::Float, cos.sizes, 2);
  }
  check_exact(op, t.position, ScalarType::Int, t.tokens.sizes, 2);
}

inline void check_norm(const char* op, const Arg& weight, double eps, int64_t d) {
  check_vector(op, weight, ScalarType::Float, d);
  if (weight.given() && !(eps >= 0)) {
    fail(op, ": norm_eps must be at least 0, got ", python_float(eps));
  }
}

inline void check_kv_placement(const char* op, const KvTensors& t, bool in_place) {
  const std::initializer_list<const Arg*> all = {
      &t.tokens,   &t.v,   &t.k_cache, &t.v_cache, &t.length,  &t.count,  &t.block_table,
      &t.position, &t.cos, &t.sin,     &t.norm,    &t.k_scale, &t.v_scale};
  if (in_place) {
    check_placement(op, all, {&t.k_cache, &t.v_cache, &t.k_scale, &t.v_scale});
  } else {
    check_placement(op, all, {});
  }
}

/// Whether a tensor begins at a multiple of `bytes`.
inline bool aligned(const Arg& a, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(a.tensor->const_data_ptr()) % bytes == 0;
}

inline KvRows rows_of(const KvTensors& t) {
  const int64_t* cache = t.k_cache.sizes;
  return {pointer<int32_t>(t.length),
          pointer<int32_t>(t.count),
          pointer<int32_t>(t.block_table),
          pointer<int32_t>(t.position),
          t.tokens.sizes[1],
          cache[0],
          cache[2],
          t.block_table.given() ? t.block_table.sizes[1] : 1,
          t.cos.given() ? t.cos.sizes[0] : 0};
}

inline KvCache cache_of(const KvTensors& t) {
  const Arg& k = t.k_cache;
  return {const_cast<void*>(k.tensor->const_data_ptr()),
          const_cast<void*>(t.v_cache.tensor->const_data_ptr()),
          const_cast<float*>(pointer<float>(t.k_scale)),
          const_cast<float*>(pointer<float>(t.v_scale)),
          k.sizes[1],
          static_cast<int>(k.sizes[3]),
          k.dtype == ScalarType::Float      ? CacheType::float32
          : k.dtype == ScalarType::BFloat16 ? CacheType::bfloat16
          : k.dtype == ScalarType::Char     ? CacheType::int8
                                            : CacheType::float8};
}

inline KvHead head_of(const KvTensors& t, double eps) {
  return {pointer<float>(t.norm), pointer<float>(t.cos), pointer<float>(t.sin),
          static_cast<float>(eps), t.cos.given() ? static_cast<int>(t.cos.sizes[1]) : 0};
}

inline KvTokens tokens_of(const Arg& a) {
  bool vector = aligned(a, 16);
  int64_t strides[3];
  for (int i = 0; i < 3; ++i) {
    strides[i] = a.sizes[i] == 1 ? 0 : a.strides[i];
    vector = vector && strides[i] % 8 == 0;
  }
  return {a.tensor->const_data_ptr(),      strides[0], strides[1], strides[2],
          a.dtype == ScalarType::BFloat16, vector};
}

}  // namespace ardiff
