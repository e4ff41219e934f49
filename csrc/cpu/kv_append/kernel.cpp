// kv_append for one instruction set; free of torch, built once for each. A tile is one token of one
// row: each head is read as float32, prepared, and stored in the cache's type.
#include "../kv/head.h"

namespace ARDIFF_NS {
namespace {

void store_head(const float* x, int64_t D, float* out, float*) {
  std::memcpy(out, x, sizeof(float) * D);
}
void store_head(const float* x, int64_t D, BFloat16* out, float*) {
  for_each_lane(D,
                [&](int64_t i, auto lane) { store_as(out + i, load_as<decltype(lane)>(x + i)); });
}
template <class Code>
void store_head(const float* x, int64_t D, Code* out, float* scale) {
  uint32_t largest = 0;  // |x| in the order of their bits: NaN is above infinity
  for (int64_t i = 0; i < D; ++i) {
    const uint32_t magnitude = bits(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  *scale = quantization_scale(largest, Code::kLargest);
  for (int64_t i = 0; i < D; ++i) to_code(unrounded_code(x[i], *scale, Code::kLargest), out[i]);
}

template <class T>
void append_token(const KvAppendArgs& a, int64_t b, int64_t token) {
  const KvCache& cache = a.cache;
  const int64_t D = cache.D;
  alignas(64) float x[kMostDims];
  for (int64_t h = 0; h < cache.heads; ++h) {
    const int64_t at = cache_offset(a, b, h, a.rows.length[b] + token);
    read_head(a.k, b, token, h, D, x);
    prepare_head(a, b, token, x);
    store_head(x, D, static_cast<T*>(cache.k) + at,
               cache.k_scale ? cache.k_scale + at / D : nullptr);
    read_head(a.v, b, token, h, D, x);
    store_head(x, D, static_cast<T*>(cache.v) + at,
               cache.v_scale ? cache.v_scale + at / D : nullptr);
  }
}

}  // namespace

void kv_append_tiles(const KvAppendArgs& a, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    const int64_t b = i / a.rows.T, token = i % a.rows.T;
    if (token >= new_tokens(a, b)) continue;
    switch (a.cache.type) {
      case CacheType::float32:
        append_token<float>(a, b, token);
        break;
      case CacheType::bfloat16:
        append_token<BFloat16>(a, b, token);
        break;
      case CacheType::int8:
        append_token<Int8>(a, b, token);
        break;
      case CacheType::float8:
        append_token<Float8>(a, b, token);
    }
  }
}

}  // namespace ARDIFF_NS
