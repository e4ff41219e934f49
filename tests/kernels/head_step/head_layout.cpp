// How the kernel of a head divides work and shared memory (csrc/cuda/head/args.cuh): every row of
// a matrix has one owner, a block has what it uses, and MAR-B in bfloat16 stays on an H200.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../../csrc/cuda/head/args.cuh"

using namespace ardiff;

void expect(bool ok, const char* what) {
  if (ok) return;
  std::printf("failed: %s\n", what);
  std::exit(1);
}

/// A head of the MAR form, or with `gated` of VibeVoice's; `bytes` an element of a block's matrix.
HeadArgs head(int rows, int width, int inner, int depth, int d, bool gated, int bytes) {
  HeadArgs a{};
  a.N = a.R = rows;
  a.ways = 1;
  a.width = width;
  a.depth = depth;
  a.gated = gated;
  for (int i = 0; i < a.layers(); ++i) {
    const bool outside = i == 0 || i == a.layers() - 1;
    HeadLayer& l = a.layer[i];
    l.rows = i == a.layers() - 1 ? d : i % 2 ? (gated ? 2 : 1) * inner : width;
    l.columns = i == 0 ? d : i % 2 ? width : inner;
    l.slice = kLanes * kLaneBytes / (outside ? 4 : bytes);
    l.vector = true;
  }
  return a;
}

int main() {
  for (int blocks : {1, 3, 108, 132}) {
    for (int groups : {1, 2, 108, 131, 256, 1152}) {
      std::vector<int> owners(groups, 0);
      for (int b = 0; b < blocks; ++b) {
        const int owned = groups_of_block(groups, b, blocks);
        for (int g = 0; g < owned; ++g) {
          expect(b + g * blocks < groups, "a group beyond the matrix");
          ++owners[b + g * blocks];
        }
      }
      for (int n : owners) expect(n == 1, "each group has one owner");
    }
  }
  constexpr int64_t kH200 = (227 << 10) - 1024;  // less what CUDA keeps
  for (int rows : {1, 2, 8, 16, 64}) {
    HeadArgs a = head(rows, 1024, 1024, 6, 16, false, 2);
    const int64_t used = divide_memory(a, kH200, blocks_of(a, 132), true);
    expect(used > 0 && used <= kH200, "MAR-B has memory");
    for (int i = 1; i + 1 < a.layers(); ++i) expect(a.layer[i].resident >= 0, "MAR-B stays");
    expect(a.resident_bytes >= 192 << 10, "192 KiB of weights");
  }
  for (int64_t bytes : {48 << 10, 99 << 10, 163 << 10, 227 << 10}) {
    for (bool keep : {false, true}) {
      HeadArgs a = head(40, 1536, 4608, 4, 64, true, 2);
      const int64_t used = divide_memory(a, bytes, blocks_of(a, 108), keep);
      expect(used > 0 && used <= bytes && a.tile >= 1, "VibeVoice has memory");
      expect(keep || a.resident_bytes == 0, "nothing is kept unasked");
      int64_t end = 0;
      for (int i = 1; i < a.layers(); ++i) {
        if (a.layer[i].resident < 0) continue;
        expect(a.layer[i].resident == end, "matrices lie one after the other");
        end += bytes_of_block(a, i, blocks_of(a, 108));
      }
      expect(end == a.resident_bytes, "all of them");
    }
  }
  HeadArgs a = head(1, 1 << 16, 4, 1, 4, false, 4);
  expect(divide_memory(a, 227 << 10, 132, false) == 0, "a row that does not fit is refused");
}
