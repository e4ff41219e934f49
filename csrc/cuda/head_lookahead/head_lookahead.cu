// head_lookahead on CUDA: all rounds of a token on a diffusion head in one cooperative launch. A
// round is the phases of the head (head/phase.cuh) at the rows that all patches have drafted, and
// one more, in which a block verifies and drafts a patch of its own (window.cuh). The blocks keep
// their weights in shared memory as in head_loop, and agree on the end, since all read how many
// rows the windows have.
#include "../../torch/head_lookahead.h"
#include "../head/launch.cuh"
#include "window.cuh"

namespace ardiff {
namespace {

/// Divides scratch memory, of which it has `floats`.
struct Divided {
  float* next;
  int64_t floats = 0;

  template <class T>
  void take(T*& to, int64_t n) {
    constexpr int64_t kWords = sizeof(T) / sizeof(float);
    if (next) to = reinterpret_cast<T*>(next + floats);
    floats += n * kWords;
  }
};

/// Gives each array its place from `begin` on; returns how many floats they take.
int64_t divide(LookaheadRounds& k, float* begin, int64_t d, bool velocity) {
  const int64_t N = k.patches, L = k.rows;
  Divided memory{begin};
  memory.take(k.sums, N * L * kLookaheadSums);  // first: on eight bytes
  memory.take(k.kept_memory, 2 * N * (L + 1) * d);
  memory.take(k.drafted_memory, 2 * N * (L + 1) * d);
  for (int i = 0; i < 2; ++i) {
    memory.take(k.states[i], N * (L + 1) * d);
    memory.take(k.data[i], N * L * d);
    memory.take(k.gain[i], N * L);
    memory.take(k.row[i], N);
    memory.take(k.count[i], N);
  }
  if (velocity) memory.take(k.velocities, N * (L + 1) * d);
  memory.take(k.drafts, N * L * d);
  memory.take(k.normals, 2 * N * L * d);
  memory.take(k.factor, N * L);
  memory.take(k.place, N * L);
  return memory.floats;
}

void run(const char* op, const HeadTensors& t, const HeadLoopTensors& l, const HeadOptions& o,
         const HeadLookaheadOptions& more, const HeadLookaheadResults& to) {
  HeadLookaheadArgs a{};
  fill_head(a, op, t, o);
  constexpr int64_t kMost = int64_t{1} << 30;
  const int64_t steps = l.coef.sizes[0], sets = t.modulation.sizes[0];
  if (steps > kMost || sets * t.modulation.sizes[1] > kMost) {
    fail(op, ": the CUDA kernel takes at most ", kMost, " steps and rows of modulations");
  }
  const int64_t rows = std::min(more.rows, steps), d = a.inputs;
  if (rows * a.R > kMost) {
    fail(op, ": the CUDA kernel takes at most ", kMost, " rows of all patches and ways; split x");
  }
  if (a.N == 0) return;
  HeadSolver& s = a.solver;
  s.steps = static_cast<int>(steps);
  s.sets = static_cast<int>(sets);
  s.set = pointer<int32_t>(l.set);
  s.op = pointer<int32_t>(l.op);
  s.coef = pointer<float>(l.coef);
  s.draw = per_sample<int32_t>(l.draw);
  s.key = pointer<int64_t>(l.key);
  s.stream = pointer<int64_t>(l.stream);
  s.guidance = per_sample<float>(l.guidance);
  s.guidance2 = per_sample<float>(l.guidance2);
  s.noise_scale = per_sample<float>(l.noise_scale);
  const Arg* const from[kStates] = {&t.x, &l.memory, &l.v};
  for (int i = 0; i < kStates; ++i) {
    if (!from[i]->given()) continue;
    s.given[i] = {from[i]->tensor->const_data_ptr(), from[i]->row_stride()};
    s.result[i] = {to.states[i].tensor->mutable_data_ptr(), to.states[i].row_stride()};
  }
  LookaheadRounds& k = a.look;
  k.patches = a.N;
  k.rows = static_cast<int>(rows);
  k.two_memories = l.memory.sizes[1] != d;
  k.by_law = !more.tolerance.has_value();
  const double tolerance = more.tolerance.value_or(0.0);
  k.bound = tolerance * tolerance * static_cast<double>(d);
  k.plan = pointer<float>(more.plan);
  k.rounds = to.rounds;
  k.accepted = to.accepted;
  k.evaluated = to.evaluated;
  a.N *= k.rows;
  a.R *= k.rows;
  const int64_t outs = static_cast<int64_t>(a.R) * a.outs, even = 1;
  const int64_t size = divide(k, nullptr, d, l.v.given());
  const Tensor scratch = head_scratch(a, t.x, outs + even + size);
  a.out = a.u + static_cast<int64_t>(a.R) * a.u_stride;
  a.out_stride = a.outs;
  divide(k, a.out + outs + outs % 2, d, l.v.given());  // h and u have rows of four
  const int64_t set_size = a.modulation_columns() * a.modulation_rows;
  a.modulation_vector = a.modulation_vector && (s.sets == 1 || set_size % 8 == 0);
  launch_head<HeadLookaheadBody>(a, op, t.weights[2].dtype, t.x.device_index, true);
}

}  // namespace
}  // namespace ardiff

STABLE_TORCH_LIBRARY_IMPL(ARDIFF_CUDA_NAMESPACE, ARDIFF_CUDA_KEY, m) {
  ARDIFF_IMPL(m, "head_lookahead", &ardiff::HeadLookahead<ardiff::run>::functional);
}
