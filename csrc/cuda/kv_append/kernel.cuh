// The kernel of kv_append: a block takes kHeads heads of new tokens of one row, keys and values.
// A row that does not fit is left alone, which every block of it finds out for itself.
#pragma once

#include "../kv/rows.cuh"
#include "../phases.cuh"

namespace ardiff {

struct AppendArgs {
  KvRows rows;
  KvHead head;
  KvTokens k, v;
  KvCache cache;
  bool vector;  // eight elements of the caches lie on 16 bytes (codes: 8)
  int64_t blocks_of_row;
};

struct AppendBody {
  static constexpr int kThreads = 128, kBlocks = 8, kHeads = 8, kHeadThreads = kThreads / kHeads;

  struct Shared {
    alignas(16) float x[2][kHeads][kMostDims];
    float squares[kHeads][kSumOfLanes];
    uint32_t largest[2][kHeads]
                    [kHeadThreads];  // |x| in the order of their bits: NaN above infinity
    int wrong;
  };
  using State = Nothing;
  using Team = ardiff::Team<kThreads>;

  /// Eight bytes at `p`, aligned to them, in one access.
  ARDIFF_HD static void store_codes(uint8_t* p, const uint8_t* code) {
    uint32_t word[2] = {};
    for (int i = 0; i < kEight; ++i) word[i / 4] |= static_cast<uint32_t>(code[i]) << 8 * (i % 4);
#ifdef __CUDA_ARCH__
    *reinterpret_cast<uint2*>(p) = make_uint2(word[0], word[1]);
#else
    std::memcpy(p, word, sizeof word);
#endif
  }

  ARDIFF_HD static void store_bfloat16(uint16_t* p, const float* x, bool vector) {
    Unit unit;
    for (int i = 0; i < 4; ++i) {
      const uint32_t low = to_bfloat16(x[2 * i]).bits, high = to_bfloat16(x[2 * i + 1]).bits;
      unit.w[i] = low | high << 16;
      if (vector) continue;
      p[2 * i] = static_cast<uint16_t>(low);
      p[2 * i + 1] = static_cast<uint16_t>(high);
    }
    if (vector) store_unit(p, unit);
  }

  template <class Code>
  ARDIFF_HD static void store_quantized(uint8_t* p, const float* x, float scale, bool vector) {
    uint8_t code[kEight];
    for (int i = 0; i < kEight; ++i) {
      Code each;
      to_code(unrounded_code(x[i], scale, Code::kLargest), each);
      code[i] = static_cast<uint8_t>(each.bits);
      if (!vector) p[i] = code[i];
    }
    if (vector) store_codes(p, code);
  }

  /// Elements [i, i + 8) of a prepared head to element `at` of a cache.
  ARDIFF_HD static void store(const AppendArgs& a, void* cache, int64_t at, const float* x,
                              float scale) {
    if (a.cache.type == CacheType::float32) {
      float* p = static_cast<float*>(cache) + at;
      for (int i = 0; i < kEight; i += 4) {
        if (a.vector) {
          store_four(p + i, x[i], x[i + 1], x[i + 2], x[i + 3]);
        } else {
          for (int k = i; k < i + 4; ++k) p[k] = x[k];
        }
      }
    } else if (a.cache.type == CacheType::bfloat16) {
      store_bfloat16(static_cast<uint16_t*>(cache) + at, x, a.vector);
    } else if (a.cache.type == CacheType::int8) {
      store_quantized<Int8>(static_cast<uint8_t*>(cache) + at, x, scale, a.vector);
    } else {
      store_quantized<Float8>(static_cast<uint8_t*>(cache) + at, x, scale, a.vector);
    }
  }

  ARDIFF_DEVICE static void flow(const AppendArgs& a, Shared& shared, const Team& team) {
    const int64_t block = team.number(), b = divide(block, a.blocks_of_row);
    const KvRow row = kv_row(a.rows, b);
    const int first = static_cast<int>(block - b * a.blocks_of_row) * kHeads;
    const int heads = static_cast<int>(a.cache.heads);
    if (!has_room(a.rows, row) || first / heads >= row.count) return;
    // Head thread / kHeadThreads of the block, of token t; `real` if there is such a one to write.
    const auto with_head = [&](int thread, auto act) {
      const int index = thread / kHeadThreads, t = (first + index) / heads;
      if (t < row.count) act(index, t, (first + index) % heads, thread % kHeadThreads);
    };

    team.threads([&](int thread) {
      if (thread == 0) shared.wrong = 0;
    });
    team.threads([&](int thread) {
      if (names_wrong(a.rows, b, row, thread, kThreads)) shared.wrong = 1;
      with_head(thread, [&](int index, int t, int h, int lane) {
        const int64_t k = start_of(a.k, b, t, h), v = start_of(a.v, b, t, h);
        for (int i = kEight * lane; i < a.cache.D; i += kEight * kHeadThreads) {
          read_eight(a.k, k + i, shared.x[0][index] + i);
          read_eight(a.v, v + i, shared.x[1][index] + i);
        }
      });
    });
    if (shared.wrong) return;
    if (a.head.norm) {
      team.threads([&](int thread) {
        const int index = thread / kSumOfLanes, lane = thread % kSumOfLanes;
        if (index >= kHeads || (first + index) / heads >= row.count) return;
        shared.squares[index][lane] = square_sum(shared.x[0][index], a.cache.D, lane);
      });
    }
    team.threads([&](int thread) {
      with_head(thread, [&](int index, int t, int, int lane) {
        prepare_head(a.head, a.cache.D, shared.squares[index], rotary_row(a.rows, row, b, t), 1.0f,
                     shared.x[0][index], lane, kHeadThreads);
      });
    });
    if (a.cache.k_scale) {
      team.threads([&](int thread) {
        with_head(thread, [&](int index, int, int, int lane) {
          for (int way = 0; way < 2; ++way) {
            uint32_t largest = 0;
            for (int i = lane; i < a.cache.D; i += kHeadThreads) {
              const uint32_t magnitude = bits(shared.x[way][index][i]) & 0x7fffffffu;
              largest = magnitude > largest ? magnitude : largest;
            }
            shared.largest[way][index][lane] = largest;
          }
        });
      });
    }
    team.threads([&](int thread) {
      with_head(thread, [&](int index, int t, int h, int lane) {
        const int64_t place = place_of_token(a.rows, b, h, a.cache.heads, row.length + t);
        for (int way = 0; way < 2; ++way) {
          float scale = 0.0f;
          if (a.cache.k_scale) {
            uint32_t largest = 0;
            for (int l = 0; l < kHeadThreads; ++l) {
              const uint32_t part = shared.largest[way][index][l];
              largest = part > largest ? part : largest;
            }
            const float most = a.cache.type == CacheType::int8 ? Int8::kLargest : Float8::kLargest;
            scale = quantization_scale(largest, most);
            if (lane == 0) (way == 0 ? a.cache.k_scale : a.cache.v_scale)[place] = scale;
          }
          void* cache = way == 0 ? a.cache.k : a.cache.v;
          for (int i = kEight * lane; i < a.cache.D; i += kEight * kHeadThreads) {
            store(a, cache, place * a.cache.D + i, shared.x[way][index] + i, scale);
          }
        }
      });
    });
  }
};

}  // namespace ardiff
