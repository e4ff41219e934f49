// Tests of the C++ CPU kernels under sanitizers; `make sanitize` builds and runs them. They need
// torch's headers but not its libraries: the threads are std::thread's, which ThreadSanitizer
// knows.
#include "brownian_increment.h"
#include "diffusion_step.h"
#include "diffusion_step_backward.h"
#include "head_step.h"
#include "kv_append.h"
#include "kv_attention.h"
#include "lookahead_draft.h"
#include "lookahead_verify.h"
#include "mala_accept.h"
#include "packed_linear.h"
#include "philox_normal.h"
#include "uld_step.h"
#include "uld_step_backward.h"

extern "C" {

/// Each thread takes an equal part, as at::parallel_for gives it.
AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t, ParallelFunc function,
                                  void* context) {
  const int64_t n = std::min<int64_t>(end - begin, ardiff_test::threads);
  std::vector<std::thread> workers;
  for (int64_t i = 0; i < n; ++i) {
    workers.emplace_back(function, begin + (end - begin) * i / n,
                         begin + (end - begin) * (i + 1) / n, context);
  }
  for (std::thread& worker : workers) worker.join();
  return 0;
}

AOTITorchError torch_get_num_threads(uint32_t* count) {
  *count = ardiff_test::threads;
  return 0;
}
}

int main() {
  ardiff_test::test_philox_normal();
  ardiff_test::test_brownian_increment();
  ardiff_test::test_uld_step();
  ardiff_test::test_diffusion_step();
  ardiff_test::test_uld_step_backward();
  ardiff_test::test_diffusion_step_backward();
  ardiff_test::test_mala_accept();
  ardiff_test::test_lookahead_draft();
  ardiff_test::test_lookahead_verify();
  ardiff_test::test_head_step();
  ardiff_test::test_packed_linear();
  ardiff_test::test_kv_append();
  ardiff_test::test_kv_attention();
  std::printf("ok:");
  for (const auto& kernel : ardiff_test::uld_step_tiles()) std::printf(" %s", kernel.isa);
  std::printf("\n");
  return 0;
}
