// Pieces of the step kernels: tiles, runs of samples that share a row, model outputs as float32.
#pragma once

#include <initializer_list>

#include "../math/step_args.h"
#include "../math/step_backward.h"
#include "noise.h"

namespace ARDIFF_NS {

/// Elements [i0, i0 + length) of samples [b, b + samples).
struct Tile {
  int64_t b, samples, i0, length;
};

ARDIFF_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

ARDIFF_INLINE Tile tile_at(const Tiling& tiling, int64_t B, int64_t d, int64_t index) {
  if (tiling.samples_per_tile > 1) {
    const int64_t b = index * tiling.samples_per_tile;
    return {b, smaller(tiling.samples_per_tile, B - b), 0, d};
  }
  const int64_t b = index / tiling.tiles_per_sample;
  const int64_t i0 = (index % tiling.tiles_per_sample) * kTile;
  return {b, 1, i0, smaller(kTile, d - i0)};
}

/// Moves the samples' normals together where their slots are wider than d.
inline void close_gaps(float* values, int64_t samples, int64_t d, int64_t slot) {
  for (int64_t s = 1; s < samples; ++s) {
    for (int64_t i = 0; i < d; ++i) values[s * d + i] = values[s * slot + i];
  }
}

/// Normals of a tile, those of sample s at s * d; meanwhile fetches what `ahead` names.
template <int kPerQuad>
inline void fill_noise(NoiseTile<kPerQuad>& noise, const NoiseAddress& address, int64_t d,
                       const Tile& tile, const Fetch& ahead) {
  if (tile.samples == 1) {
    const int64_t quads = (tile.length + kPerQuad - 1) / kPerQuad;
    fill_one_sample(noise, address, tile.b, tile.i0 / kPerQuad, quads, ahead);
    return;
  }
  const int64_t quads = (d + kPerQuad - 1) / kPerQuad;
  fill_samples(noise, address, tile.b, tile.samples, quads, ahead);
  if (quads * kPerQuad == d) return;
  close_gaps(noise.n1, tile.samples, d, quads * kPerQuad);
  if (kPerQuad == 2) close_gaps(noise.n2, tile.samples, d, quads * kPerQuad);
}

/// What a step reads of a tile that is one run of memory in each tensor, else nothing.
template <class Args>
Fetch fetch_of(const Tiled<Args>& a, const Tile& tile, std::initializer_list<const In*> state) {
  Fetch ahead;
  if (tile.samples > 1 && !a.packed) return ahead;
  for (const In* in : state) ahead.add(in->data, in->stride, size_of(in->type), tile.b, tile.i0);
  for (const In* in : {&a.model_out, &a.uncond_out, &a.uncond_out2}) {
    ahead.add(in->data, in->stride, size_of(in->type), tile.b, tile.i0);
  }
  return ahead;
}

ARDIFF_INLINE float scale_of(const StepArgs& a, int64_t b) {
  return a.noise_scale.data ? at(a.noise_scale, b) : 1.0f;
}
ARDIFF_INLINE bool is_live(const StepArgs& a, int64_t b) {
  const int32_t row = at(a.row, b);
  return row >= 0 && row < a.T;
}
ARDIFF_INLINE const float* row_of(const StepArgs& a, int64_t b) {
  return a.coef + kColumns * static_cast<int64_t>(at(a.row, b));
}

ARDIFF_INLINE uint32_t bits_of(float x) { return bits(x); }
ARDIFF_INLINE uint32_t bits_of(int32_t x) { return static_cast<uint32_t>(x); }

template <class T>
ARDIFF_INLINE bool alike(const PerSample<T>& p, int64_t b, int64_t c) {
  return p.step == 0 || !p.data || bits_of(p.data[b]) == bits_of(p.data[c]);
}

#define ARDIFF_ALIKE(name) &&alike(a.name, b, b + n)
/// How many samples from b on (at most `limit`) have equal rows and options and lie side by side.
inline int64_t run_length(const StepArgs& a, int64_t b, int64_t limit) {
  int64_t n = 1;
  while (n < limit && alike(a.row, b, b + n)
                          ARDIFF_STEP_OPTIONS(ARDIFF_NO_OPTION, ARDIFF_ALIKE, ARDIFF_NO_OPTION)) {
    ++n;
  }
  return n;
}
#undef ARDIFF_ALIKE

/// Address of element i0 of sample b.
template <class T>
ARDIFF_INLINE const T* address(const In& in, int64_t b, int64_t i0) {
  return static_cast<const T*>(in.data) + b * in.stride + i0;
}
template <class T>
ARDIFF_INLINE T* address(const Out& out, int64_t b, int64_t i0) {
  return static_cast<T*>(out.data) + b * out.stride + i0;
}

/// Calls f(i, lane, row) for i in [0, n), whole vectors with a VFloat lane and then floats for the
/// rest; row is make(lane), made only where it is used.
template <class Make, class Function>
ARDIFF_INLINE void for_each_lane(int64_t n, Make make, Function f) {
  int64_t i = 0;
  if (n >= kLanes) {
    const auto row = make(VFloat());
    for (; i + kLanes <= n; i += kLanes) f(i, VFloat(), row);
  }
  if (kLanes > 1 && i < n) {
    const auto row = make(float());
    for (; i < n; ++i) f(i, float(), row);
  }
}

template <class Function>
ARDIFF_INLINE void for_each_lane(int64_t n, Function f) {
  for_each_lane(n, [](auto) { return 0; }, [&](int64_t i, auto lane, int) { f(i, lane); });
}

template <class F, class T>
ARDIFF_INLINE F load_as(const T* p) {
  if constexpr (sizeof(F) == sizeof(float)) {
    return to_float(*p);
  } else {
    return load(p);
  }
}
ARDIFF_INLINE void store_as(float* p, float x) { *p = x; }
ARDIFF_INLINE void store_as(BFloat16* p, float x) { *p = to_bfloat16(x); }
ARDIFF_INLINE void store_as(Float16* p, float x) { *p = to_float16(x); }
#if ARDIFF_LANES > 1
template <class T>
ARDIFF_INLINE void store_as(T* p, VFloat x) {
  store(p, x);
}
#endif

template <class T>
struct Tag {
  using type = T;
};

/// Calls f with the tag of the element type.
template <class Function>
ARDIFF_INLINE void with_type(Type type, Function f) {
  switch (type) {
    case Type::float32:
      return f(Tag<float>());
    case Type::float16:
      return f(Tag<Float16>());
    case Type::bfloat16:
      return f(Tag<BFloat16>());
  }
}

/// n elements from element i0 of sample b as float32: in place where they are, else in `scratch`.
inline const float* as_float(const In& in, int64_t b, int64_t i0, int64_t n, float* scratch) {
  if (in.type == Type::float32) return address<float>(in, b, i0);
  with_type(in.type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* p = address<T>(in, b, i0);
    for_each_lane(
        n, [&](int64_t i, auto lane) { store_as(scratch + i, load_as<decltype(lane)>(p + i)); });
  });
  return scratch;
}

/// The (guided) model output as float32.
inline const float* guided_output(const StepArgs& a, int64_t b, int64_t i0, int64_t n,
                                  float* scratch) {
  if (!a.uncond_out.data) return as_float(a.model_out, b, i0, n, scratch);
  const float w = at(a.guidance, b);
  const float w2 = a.uncond_out2.data ? at(a.guidance2, b) : 0.0f;
  with_type(a.model_out.type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* c = address<T>(a.model_out, b, i0);
    const T* u = address<T>(a.uncond_out, b, i0);
    if (a.uncond_out2.data) {
      const T* u2 = address<T>(a.uncond_out2, b, i0);
      for_each_lane(n, [&](int64_t i, auto lane) {
        using F = decltype(lane);
        store_as(scratch + i,
                 guide(load_as<F>(c + i), load_as<F>(u + i), load_as<F>(u2 + i), F(w), F(w2)));
      });
    } else {
      for_each_lane(n, [&](int64_t i, auto lane) {
        using F = decltype(lane);
        store_as(scratch + i, guide(load_as<F>(c + i), load_as<F>(u + i), F(w)));
      });
    }
  });
  return scratch;
}

/// n elements of a gradient as float32: `zeros` where it is absent.
inline const float* gradient(const In& in, int64_t b, int64_t i0, int64_t n, float* scratch,
                             const float* zeros) {
  return in.data ? as_float(in, b, i0, n, scratch) : zeros;
}

/// Learned deviations times the noise scale, from the second half of the model output.
inline void fill_deviation(const StepArgs& a, const float* coef, float scale, int64_t b, int64_t i0,
                           int64_t n, float* deviation) {
  const float* range = as_float(a.model_out, b, a.d + i0, n, deviation);
  for_each_lane(
      n, [&](auto lane) { return diffusion_row<decltype(lane)>(coef); },
      [&](int64_t i, auto lane, const auto& row) {
        using F = decltype(lane);
        store_as(deviation + i, learned_deviation(row, load_as<F>(range + i)) * F(scale));
      });
}

/// Writes n float32 values to element i0 of sample b in the tensor's own type.
inline void write(const Out& out, int64_t b, int64_t i0, int64_t n, const float* values) {
  if (!out.data) return;
  if (out.type == Type::float32) {
    float* p = address<float>(out, b, i0);
    if (p != values) std::memcpy(p, values, sizeof(float) * n);
    return;
  }
  with_type(out.type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* p = address<T>(out, b, i0);
    for_each_lane(
        n, [&](int64_t i, auto lane) { store_as(p + i, load_as<decltype(lane)>(values + i)); });
  });
}

/// The same, multiplied by `factor`, and with `more` (null: nothing) added.
inline void write_scaled(const Out& out, int64_t b, int64_t i0, int64_t n, const float* values,
                         float factor, const float* more = nullptr) {
  if (!out.data) return;
  with_type(out.type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* p = address<T>(out, b, i0);
    for_each_lane(n, [&](int64_t i, auto lane) {
      using F = decltype(lane);
      const F value = load_as<F>(values + i);
      store_as(p + i, more ? fma(value, F(factor), load_as<F>(more + i)) : value * F(factor));
    });
  });
}

/// Spreads the gradient of the guided output over the model outputs; `uncond` (null: nothing) is
/// added to that of the first unconditional one.
inline void write_outputs(const StepArgs& a, const OutputGradients& to, int64_t b, int64_t i0,
                          int64_t n, const float* values, const float* uncond = nullptr) {
  const OutputWeights w = output_weights(to.ways, a.guidance.data ? at(a.guidance, b) : 0.0f,
                                         a.guidance2.data ? at(a.guidance2, b) : 0.0f);
  write_scaled(to.cond, b, i0, n, values, w.cond);
  write_scaled(to.uncond, b, i0, n, values, w.uncond, uncond);
  write_scaled(to.uncond2, b, i0, n, values, w.uncond2);
}

/// Where a kernel writes float32 results: the tensor itself, or scratch when it has another type.
ARDIFF_INLINE float* float_target(const Out& out, int64_t b, int64_t i0, float* scratch) {
  return out.data && out.type == Type::float32 ? address<float>(out, b, i0) : scratch;
}

}  // namespace ARDIFF_NS
