// Underdamped Langevin steps without torch or Python: samples of N(1, 1/4) in each of 16
// coordinates from their exact score. Usage: cpp_embed OUT, which receives the samples,
// float32 [kSamples, kSize].
#include <ardiff.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <numeric>
#include <vector>

namespace {

constexpr int64_t kSamples = 1000, kSize = 16;
constexpr int kSteps = 200;
constexpr float kMean = 1.0f, kPrecision = 4.0f;

void check(ardiff_status status) {
  if (status == ARDIFF_OK) return;
  std::fprintf(stderr, "ardiff: %s\n", ardiff_last_error());
  std::exit(1);
}

/// One row: a step tau at friction gamma, the model's output being the score.
std::vector<float> row_of(double gamma, double tau) {
  ardiff_uld_coefs c;
  check(ardiff_uld_coefficients(gamma, tau, &c));
  std::vector<float> row(ARDIFF_COEF_COLUMNS, 0.0f);
  row[ARDIFF_Z_Z] = 1.0f;
  row[ARDIFF_Z_V] = static_cast<float>(c.z_from_v);
  row[ARDIFF_Z_O] = static_cast<float>(-c.z_from_grad);  // G is minus the score
  row[ARDIFF_Z_1] = static_cast<float>(c.z_1);
  row[ARDIFF_Z_2] = static_cast<float>(c.z_2);
  row[ARDIFF_V_V] = static_cast<float>(c.v_from_v);
  row[ARDIFF_V_O] = static_cast<float>(-c.v_from_grad);
  row[ARDIFF_V_1] = static_cast<float>(c.v_1);
  return row;
}

ardiff_output matrix(std::vector<float>& values) { return {values.data(), kSize, ARDIFF_FLOAT32}; }

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: cpp_embed OUT\n");
    return 2;
  }
  if (ardiff_abi_version() != ARDIFF_ABI_VERSION) {
    std::fprintf(stderr, "cpp_embed was built for another libardiff\n");
    return 1;
  }
  std::vector<float> z(kSamples * kSize), v(kSamples * kSize), anchor(kSamples * kSize);
  std::vector<float> score(kSamples * kSize);
  std::vector<int64_t> stream(kSamples);
  for (int64_t i = 0; i < kSamples; ++i) stream[i] = i << 20;  // sample i, patch 0
  const std::vector<float> coef = row_of(2.0, 0.05);
  const int32_t row = 0;
  int32_t draw = 0;

  ardiff_step_args args = ARDIFF_STEP_ARGS_INIT;
  args.rows = kSamples;
  args.columns = kSize;
  args.coef = coef.data();
  args.coef_rows = 1;
  args.row = {&row, 1};
  args.draw = {&draw, 1};
  args.key = 7;
  args.stream = stream.data();
  args.model_out = {score.data(), kSize, ARDIFF_FLOAT32};
  args.threads = 2;

  check(ardiff_philox_normal(matrix(z), kSamples, kSize, args.key, 1, stream.data()));
  for (draw = 0; draw < kSteps; ++draw) {
    for (size_t i = 0; i < z.size(); ++i) score[i] = (kMean - z[i]) * kPrecision;
    check(ardiff_uld_step(matrix(z), matrix(v), matrix(anchor), &args));
  }

  const double mean = std::accumulate(z.begin(), z.end(), 0.0) / z.size();
  double variance = 0;
  for (const float x : z) variance += (x - mean) * (x - mean) / z.size();
  std::printf("ardiff %s, %s: mean %.4f, deviation %.4f\n", ardiff_version(), ardiff_cpu_isa(),
              mean, std::sqrt(variance));
  std::ofstream file(argv[1], std::ios::binary);
  file.write(reinterpret_cast<const char*>(z.data()), z.size() * sizeof(float));
  file.close();
  if (!file) {
    std::fprintf(stderr, "cannot write %s\n", argv[1]);
    return 1;
  }
  return 0;
}
