// Times of operations: the roofline by hand, tables at and between their points, and what held-out
// points of published tables say.

#include "sim/step/operation_times.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "core/csv.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/statistics.hpp"
#include "sim/step/operation_tables.hpp"
#include "tests/sim/scratch.hpp"

namespace coterie {
namespace {

namespace fs = std::filesystem;

GpuModel h100() {
  GpuModel gpu = load_cluster("h100_node").gpu;
  gpu.operations.clear();
  return gpu;
}

ModelOperation product(std::uint64_t m, std::uint64_t n, std::uint64_t k,
                       Precision type = Precision::kBf16) {
  ModelOperation op;
  op.kind = OperationKind::kMatrixProduct;
  op.precision = type;
  op.m = m;
  op.n = n;
  op.k = k;
  op.flops = 2.0 * static_cast<double>(m * n * k);
  op.bytes =
      bytes_per_value(type) * static_cast<double>(k * (m + n)) + 2.0 * static_cast<double>(m * n);
  return op;
}

OperationTableFiles gemm_files(const std::string& machine, const fs::path& file) {
  OperationTableFiles files;
  files.machine = machine;
  files.gemm = file;
  return files;
}

// 989 TFLOP/s and 3.35 TB/s (H100 data sheet), 0.7 and 0.85 of them, 3 us per launch.
TEST(Roofline, IsTheLongerOfArithmeticAndMemory) {
  const OperationTimes times(h100());
  const double large = 2.0 * 8192.0 * 8192.0 * 8192.0 / (989e12 * 0.7);
  EXPECT_NEAR(times.time(product(8192, 8192, 8192)).total.value, 3e-6 + large, 1e-12);
  const double fp8 = 2.0 * 8192.0 * 8192.0 * 8192.0 / (1979e12 * 0.7);
  EXPECT_NEAR(times.time(product(8192, 8192, 8192, Precision::kMxfp8)).total.value, 3e-6 + fp8,
              1e-12);
  // One row: the weights are read.
  const double bytes = 2.0 * (8192.0 * 8193.0 + 8192.0);
  EXPECT_NEAR(times.time(product(1, 8192, 8192)).total.value, 3e-6 + bytes / (3.35e12 * 0.85),
              1e-12);
  EXPECT_EQ(times.time(ModelOperation{}).total.value, 0.0);
}

// The two resources never take longer than the whole, and one of them takes all of it.
TEST(Roofline, NamesWhatBindsIt) {
  const GpuModel gpu = h100();
  const OperationTimes times(gpu);
  for (const std::uint64_t m : {1U, 64U, 256U, 512U, 4096U}) {
    const OperationTime time = times.time(product(m, 4096, 4096));
    const double memory = time.memory_bytes / (gpu.memory_bandwidth.value * gpu.memory_efficiency);
    EXPECT_NEAR(std::max(memory, time.compute.value), time.total.value - time.launch.value,
                1e-9 * time.total.value);
  }
}

// Grouped products of a calibrated expert MLP add up to what the MLP's formula says.
TEST(Grouped, AddUpToTheCalibratedMlp) {
  GpuModel gpu = h100();
  gpu.mlp = MlpCosts{{10e-6}, {2e12}, {600e12}, {1e12}, 16.0, 1, 1.5, {}, 0.0, false};
  const OperationTimes times(gpu);
  ModelOperation up, down;
  up.kind = down.kind = OperationKind::kGroupedProduct;
  up.rows = down.rows = {100, 0, 300};
  up.n = 2 * 1408;
  up.k = 2048;
  down.n = 2048;
  down.k = 1408;
  up.flops = down.flops = 1.0;
  double expected = 10e-6;
  for (const double rows : {100.0, 300.0}) {
    const double weights = 3.0 * 2048 * 1408 * 2.0 / 2e12;
    const double arithmetic = (rows + 16.0) * 6.0 * 2048 * 1408 / 600e12;
    expected += std::pow(std::pow(weights, 1.5) + std::pow(arithmetic, 1.5), 1.0 / 1.5);
  }
  const double sum = times.time(up).total.value + times.time(down).total.value;
  EXPECT_NEAR(sum, expected, 1e-9 * expected);
}

TEST(Tables, SayWhatTheyHoldAndInterpolateBetween) {
  const Scratch scratch("operation_tables");
  std::string text = "machine,gemm_dtype,m,n,k,latency_us\nother,bfloat16,8,8,8,1\n";
  const auto measured = [](double m, double n, double k) {
    return 5.0 + 2.0 * m * n * k / 500e12 * 1e6;
  };
  for (const int m : {256, 1024, 4096}) {
    for (const int n : {1024, 4096}) {
      for (const int k : {1024, 4096}) {
        text += fmt::format("here,bfloat16,{},{},{},{}\n", m, n, k, measured(m, n, k));
      }
    }
  }
  const auto tables =
      load_operation_tables(gemm_files("here", scratch.write("gemm.csv", text)), h100());
  const OperationTimes times(h100(), tables);
  const auto us = [&](std::uint64_t m, std::uint64_t n, std::uint64_t k) {
    return 1e6 * times.time(product(m, n, k)).total.value;
  };
  EXPECT_NEAR(us(1024, 4096, 4096), measured(1024, 4096, 4096), 1e-6);
  EXPECT_NEAR(us(2048, 4096, 4096), measured(2048, 4096, 4096), 0.05 * measured(2048, 4096, 4096));
  // Beyond the table the ratio to the roofline stays.
  EXPECT_NEAR(us(16384, 4096, 4096), 4.0 * us(4096, 4096, 4096), 0.06 * us(16384, 4096, 4096));
  // No FP8 there: the roofline.
  EXPECT_EQ(times.time(product(1024, 4096, 4096, Precision::kFp8)).total,
            OperationTimes(h100()).time(product(1024, 4096, 4096, Precision::kFp8)).total);
}

TEST(Tables, AreRefusedWithOneSentence) {
  const Scratch scratch("operation_tables");
  const auto said = [&](const std::string& text) -> std::string {
    try {
      (void)load_operation_tables(gemm_files("here", scratch.write("gemm.csv", text)), h100());
    } catch (const InputError& error) {
      const std::string sentence = error.what();
      return sentence.substr(sentence.find("gemm.csv"));
    }
    return "(nothing was thrown)";
  };
  EXPECT_EQ(said("machine,m,n,k,latency_us\n"),
            "gemm.csv: found the columns machine, m, n, k, latency_us, expected a column "
            "\"gemm_dtype\"");
  EXPECT_EQ(said("machine,gemm_dtype,m,n,k,latency_us\nhere,bfloat16,1,2,3,-4\n"),
            "gemm.csv:2: found latency_us \"-4\", expected a number above zero");
  EXPECT_EQ(said("machine,gemm_dtype,m,n,k,latency_us\nthere,bfloat16,1,2,3,4\n"),
            "gemm.csv: found the machines there, expected products of the machine \"here\"");
}

// Published products (NVIDIA aiconfigurator): every fifth is left out and interpolated from the
// rest.
TEST(Tables, InterpolateHeldOutProducts) {
  const fs::path file = fs::path(COTERIE_DATA) / "measurements/gemm.csv";
  if (!fs::exists(file)) GTEST_SKIP() << "no published products";
  const CsvTable table = parse_csv(read_file(file), "gemm.csv");
  std::string kept = csv_line(table.columns);
  std::vector<std::size_t> held_out;
  for (std::size_t row = 0; row < table.rows.size(); ++row) {
    if (table.text(row, "machine") != "h100_sxm") continue;
    if (row % 5 == 2 && table.text(row, "gemm_dtype") == "bfloat16") {
      held_out.push_back(row);
    } else {
      kept += csv_line(table.rows[row]);
    }
  }
  const Scratch scratch("operation_tables");
  const OperationTimes times(
      h100(),
      load_operation_tables(gemm_files("h100_sxm", scratch.write("kept.csv", kept)), h100()));
  std::vector<double> errors;
  for (const std::size_t row : held_out) {
    const auto size = [&](const char* column) {
      return static_cast<std::uint64_t>(table.number(row, column).value());
    };
    const double predicted = times.time(product(size("m"), size("n"), size("k"))).total.value;
    errors.push_back(std::abs(1e6 * predicted / table.number(row, "latency_us").value() - 1.0));
  }
  ASSERT_GT(errors.size(), 100U);
  const double middle = median(errors);
  RecordProperty("median_error", fmt::format("{:.3f}", middle));
  EXPECT_LT(middle, 0.06) << "median error " << middle;
}

}  // namespace
}  // namespace coterie
