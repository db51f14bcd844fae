// `coterie predict` as a program: its JSON, known answers on the reference star (400 Gb/s and 500
// ns per link: 50 GB/s and 1 us for a route of two links), and its refusals.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "core/file.hpp"
#include "tests/sim/cli/program.hpp"

namespace coterie {
namespace {

using ::testing::HasSubstr;

class PredictCommand : public testing::ProgramTest {
 protected:
  std::string write(const std::string& text) const {
    const auto path = folder_ / "input.txt";
    write_file(path, text);
    return path.string();
  }
  nlohmann::json predict(const std::string& arguments) const {
    return json_of("predict " + arguments);
  }
};

// A socket transport: 1 GB/s for what a rank sends and receives together. Two ranks that exchange
// 1 MB take 2 ms, one direction alone takes 1 ms.
TEST_F(PredictCommand, ARankTotalIsSharedByBothDirections) {
  const auto topology = folder_ / "socket.yaml";
  std::ofstream(topology)
      << "schema_version: 1\nnodes: 1\ngpus_per_node: 2\n"
         "gpu: {name: G, bf16_peak: 1 TFLOP/s, memory_bandwidth: 1 TB/s, num_sms: 1}\n"
         "scale_up: {kind: socket, bandwidth: 4 GB/s, latency: 0 s,\n"
         "  injection: {rank_total_bandwidth: 1 GB/s}}\n";
  for (const std::string engine : {"flow", "simgrid", "bound"}) {
    const std::string options = " --topology " + topology.string() + " --engine " + engine;
    EXPECT_NEAR(predict(write("0 1000000\n1000000 0\n") + options)["makespan_s"].get<double>(),
                2e-3, 1e-9)
        << engine;
    EXPECT_NEAR(predict(write("0 1000000\n0 0\n") + options)["makespan_s"].get<double>(), 1e-3,
                1e-9)
        << engine;
  }
}

// Rank 0 sends 50,000 B to 1 and 100,000 B to 2: 1 us + 150,000 / 50e9 = 4 us on the shared port;
// the smaller ends when 2 * 50,000 B have left: 1 + 2 = 3 us. Every engine agrees on the first.
TEST_F(PredictCommand, KnownAnswerOnTheStarForEveryEngine) {
  const std::string matrix = write("0 50000 100000\n0 0 0\n0 0 0\n");
  for (const std::string engine : {"flow", "simgrid", "bound"}) {
    const nlohmann::json result = predict(matrix + " --topology star --engine " + engine);
    EXPECT_EQ(result.size(), 5U);
    EXPECT_EQ(result["schema_version"], 1);
    EXPECT_EQ(result["engine"], engine);
    EXPECT_NEAR(result["makespan_s"].get<double>(), 4e-6, 1e-11) << engine;
    EXPECT_NEAR(result["bound_s"].get<double>(), 4e-6, 1e-11) << engine;
    ASSERT_EQ(result["rank_finish_s"].size(), 3U);
    if (engine == "bound") continue;
    EXPECT_NEAR(result["rank_finish_s"][1].get<double>(), 3e-6, 1e-11) << engine;
    EXPECT_NEAR(result["rank_finish_s"][2].get<double>(), 4e-6, 1e-11) << engine;
  }
}

// htsim start times are picoseconds: 10 us later.
TEST_F(PredictCommand, HonoursHtsimStartTimes) {
  const std::string matrix = write(
      "Nodes 3\nConnections 2\n0->1 id 1 start 10000000 size 50000\n2->1 id 2 start 0 size "
      "50000\n");
  const nlohmann::json result = predict(matrix + " --topology star");
  EXPECT_NEAR(result["makespan_s"].get<double>(), 10e-6 + 2e-6, 1e-11);
  EXPECT_NEAR(result["rank_finish_s"][2].get<double>(), 2e-6, 1e-11);
}

// A matrix without any traffic takes no time.
TEST_F(PredictCommand, ZeroMatrixTakesNoTime) {
  const nlohmann::json result = predict(write("0 0\n0 0\n") + " --topology star");
  EXPECT_EQ(result["makespan_s"], 0.0);
  EXPECT_EQ(result["rank_finish_s"], nlohmann::json::array({0.0, 0.0}));
}

// Half the bandwidth: 1 us + 100,000 / 25e9.
TEST_F(PredictCommand, SetOverridesTheTopology) {
  const nlohmann::json result =
      predict(write("0 100000\n0 0\n") + " --topology star --set nic.bandwidth='200 Gb/s'");
  EXPECT_NEAR(result["makespan_s"].get<double>(), 5e-6, 1e-11);
}

// A kernel of 4 multiprocessors, two channels: 50 us, and 1 us + 1000 B / 1 GB/s = 2 us per row and
// channel. 100 rows of rank 0 stay and 300 go: 400 / 2 * 2 us. Combine starts after 80 us.
constexpr const char* kKernels =
    "schema_version: 1\nnodes: 1\ngpus_per_node: 2\n"
    "gpu: {name: G, bf16_peak: 1 TFLOP/s, memory_bandwidth: 1 TB/s, num_sms: 10}\n"
    "scale_up: {kind: nvlink, bandwidth: 100 GB/s, latency: 0 s}\n"
    "transports:\n"
    "  deepep_normal:\n"
    "    sms: 4\n"
    "    dispatch: {fixed: 50 us, row: 1 us, bandwidth: 1 GB/s, pair_gain: 100}\n"
    "    combine: {fixed: 80 us, row: 1 us, bandwidth: 1 GB/s, pair_gain: 100}\n";

TEST_F(PredictCommand, KernelsMoveTheDiagonalToo) {
  const auto topology = folder_ / "kernels.yaml";
  std::ofstream(topology) << kKernels;
  const std::string matrix = write("100000 300000\n0 0\n");
  for (const std::string engine : {"flow", "simgrid", "bound"}) {
    const std::string common = matrix + " --topology " + topology.string() + " --engine " + engine;
    const auto time = [&](const std::string& options) {
      return predict(common + options)["makespan_s"].get<double>();
    };
    EXPECT_NEAR(time(" --row-bytes 1000"), 450e-6, 1e-9) << engine;
    EXPECT_NEAR(time(" --row-bytes 1000 --direction combine"), 480e-6, 1e-9) << engine;
    EXPECT_NEAR(time(" --row-bytes 1000 --set transport.sms=8"), 250e-6, 1e-9) << engine;
    // The wires alone: 300 kB over 100 GB/s.
    EXPECT_NEAR(time(" --transport ideal"), 3e-6, 1e-9) << engine;
  }
}

TEST_F(PredictCommand, RefusesTransportsThatDoNotFit) {
  const auto topology = folder_ / "kernels.yaml";
  std::ofstream(topology) << kKernels;
  const std::string matrix = write("100000 300000\n0 0\n");
  const std::string kernels = matrix + " --topology " + topology.string();
  const struct {
    std::string arguments;
    std::string message;
  } cases[] = {
      {kernels,
       "--row-bytes: found none, expected the bytes of a row, which transport "
       "deepep_normal counts"},
      {kernels + " --row-bytes 0", "--row-bytes: found 0, expected a positive number"},
      {kernels + " --row-bytes 700",
       "found 100000 B from rank 0 to rank 0, expected whole rows of --row-bytes 700 B"},
      {kernels + " --row-bytes 1000 --set transport.sms=12",
       "found 12 multiprocessors (sms), expected at most the 10 of a G"},
      {kernels + " --row-bytes 1000 --set transport.sm=12", "found unknown key \"sm\""},
      {kernels + " --transport nccl", "which topology kernels has no parameters for"},
      {kernels + " --transport deepep", "found \"deepep\", expected one of ideal, nccl"},
      {kernels + " --row-bytes 1000 --direction back", "back"},
  };
  for (const auto& item : cases) {
    const testing::Outcome out = run("predict " + item.arguments);
    EXPECT_EQ(out.exit_code, 2) << item.arguments;
    EXPECT_THAT(out.err, HasSubstr(item.message)) << item.arguments;
  }
}

TEST_F(PredictCommand, RefusesBadInputWithOneSentence) {
  const std::string matrix = write("0 1\n1 0\n");
  const struct {
    std::string arguments;
    std::string message;
  } cases[] = {
      {matrix + " --topology star --engine guess", "expected one of"},
      {matrix + " --topology star --ranks 1", "found 2 ranks"},
      {matrix + " --topology star --ranks 1.5",
       "--ranks: found \"1.5\", expected a whole number of 0 or more"},
      {matrix + " --topology star --ranks 99999999999",
       "--ranks: found \"99999999999\", expected a smaller number"},
      {matrix + " --topology star --set nic.bandwidth='0 Gb/s'", "nic.bandwidth"},
      {matrix + " --topology no_such_preset", "no_such_preset"},
      {(folder_ / "missing").string() + " --topology star", "missing"},
      {matrix, "--topology"},
  };
  for (const auto& item : cases) {
    const testing::Outcome out = run("predict " + item.arguments);
    EXPECT_EQ(out.exit_code, 2) << item.arguments;
    EXPECT_THAT(out.err, HasSubstr(item.message)) << item.arguments;
  }
}

TEST_F(PredictCommand, HelpShowsAnExample) {
  EXPECT_THAT(run("predict --help").out, HasSubstr("Example:\n  coterie predict"));
}

}  // namespace
}  // namespace coterie
