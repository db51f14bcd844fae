// Costs of operations come back out of times that were made with them.

#include "sim/calibrate/operation_fit.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/error.hpp"
#include "tests/sim/scratch.hpp"

namespace coterie {
namespace {

// A table made with launch 4 us, 75 percent of the peak, 80 percent of the memory and q = 2.
TEST(OperationFit, RecoversTheCostsOfAMadeTable) {
  GpuModel gpu = load_cluster("h100_node").gpu;
  gpu.operations.clear();
  std::string text = "machine,gemm_dtype,m,n,k,latency_us\n";
  for (const double m : {1.0, 64.0, 512.0, 2048.0, 8192.0}) {
    for (const double n : {512.0, 2048.0, 8192.0}) {
      for (const double k : {512.0, 4096.0}) {
        const double compute = 2.0 * m * n * k / (0.75 * 989e12);
        const double memory = 2.0 * (k * (m + n) + m * n) / (0.8 * 3.35e12);
        text += fmt::format("made,bfloat16,{},{},{},{:.6f}\n", m, n, k,
                            1e6 * (4e-6 + std::hypot(compute, memory)));
      }
    }
  }
  const Scratch scratch("operation_fit");
  OperationTableFiles files;
  files.machine = "made";
  files.gemm = scratch.write("gemm.csv", text);
  const std::vector<OperationFit> fits = fit_operations(gpu, files);
  ASSERT_EQ(fits.size(), 1U);
  EXPECT_EQ(fits[0].kind, "product_bf16");
  EXPECT_NEAR(fits[0].costs.launch.value, 4e-6, 0.1e-6);
  EXPECT_NEAR(fits[0].costs.compute, 0.75, 0.01);
  EXPECT_NEAR(fits[0].costs.memory, 0.8, 0.01);
  EXPECT_NEAR(fits[0].costs.sharpness, 2.0, 0.1);
  // Priors hold the parameters of a fit to four folds a little off.
  for (const double error : fits[0].held_out) EXPECT_LT(std::abs(error), 0.02);
}

TEST(OperationFit, WantsEnoughPoints) {
  const Scratch scratch("operation_fit");
  OperationTableFiles files;
  files.machine = "made";
  files.gemm =
      scratch.write("gemm.csv", "machine,gemm_dtype,m,n,k,latency_us\nmade,bfloat16,8,8,8,4\n");
  try {
    (void)fit_operations(load_cluster("h100_node").gpu, files);
    FAIL() << "accepted";
  } catch (const InputError& error) {
    EXPECT_STREQ(error.what(),
                 "calibrate fit: found 1 measured times of product_bf16, expected at least 8");
  }
}

}  // namespace
}  // namespace coterie
