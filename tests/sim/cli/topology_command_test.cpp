// The command line of `coterie topology`, run as users run it.

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/file.hpp"
#include "tests/sim/cli/program.hpp"
#include "topologies/cluster.hpp"

namespace coterie {
namespace {

using testing::Outcome;

class TopologyCommand : public testing::ProgramTest {
 protected:
  Outcome run(const std::string& arguments) const {
    return ProgramTest::run("topology " + arguments);
  }
};

TEST_F(TopologyCommand, ListsEveryPreset) {
  const Outcome outcome = run("list --json");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const auto document = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(document["topologies"].size(), topology_presets().size());
}

// 2048 nodes x 8, 32 ports per leaf: 64 pods of 8 leaves. 1024 nodes x 8 NICs x 50 GB/s face the
// other half; oversubscribed 4:1.
TEST_F(TopologyCommand, ShowsCountsAndBisectionAsJson) {
  const Outcome outcome =
      run("show h100_rail_optimised --ranks 16384 --set fabric.oversubscription=4 --json");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_TRUE(outcome.err.empty()) << outcome.err;
  const auto document = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(document["num_gpus"], 16384);
  EXPECT_EQ(document["num_switches"]["leaf"], 512);
  EXPECT_EQ(document["diameter_links"], 4);
  EXPECT_DOUBLE_EQ(document["network_bisection_bytes_per_s"], 1024 * 8 * 50e9 / 4);
  EXPECT_DOUBLE_EQ(document["oversubscription"], 4.0);
}

TEST_F(TopologyCommand, DrawsAnSvgThatStaysSmall) {
  for (const char* preset : {"h100_node", "star", "gb200_nvl72", "h100_rail_optimised",
                             "h100_fat_tree", "h100_dragonfly", "h100_torus", "h100_rail_only"}) {
    const std::string svg = (folder_ / "c.svg").string();
    const std::string name = preset;
    const bool scales = name != "h100_node" && name != "gb200_nvl72";
    const Outcome outcome = run("show " + name + (scales ? " --ranks 2048" : "") + " --svg " + svg);
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    const std::string text = read_file(svg);
    EXPECT_TRUE(text.starts_with("<svg ")) << preset;
    EXPECT_TRUE(text.ends_with("</svg>\n")) << preset;
    EXPECT_NE(text.find(preset), std::string::npos);
    EXPECT_EQ(text.find(" more") != std::string::npos, name != "h100_node") << preset;
    // Repeated parts are collapsed: 2048 GPUs drawn one by one would need far more.
    EXPECT_LT(text.size(), 200000U) << preset;
  }
}

// Two bridges of 20 GB/s, each between groups of two GPUs, and 10 GB/s between the sockets.
TEST_F(TopologyCommand, ShowsAndDrawsWhatADomainShares) {
  const std::string box =
      "'{extends: l40s_pcie_8, scale_up: {shared_bandwidth: 20 GB/s, shared_group: 2, sockets: 2, "
      "socket_bandwidth: 10 GB/s}}'";
  const Outcome outcome = run("show " + box);
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("2 sockets, each with 20 GB/s, shared by traffic between groups of 2 "
                             "GPUs; 10 GB/s between sockets"),
            std::string::npos)
      << outcome.out;
  EXPECT_NE(outcome.out.find("nccl (default)"), std::string::npos) << outcome.out;
  const std::string svg = (folder_ / "c.svg").string();
  ASSERT_EQ(run("show " + box + " --svg " + svg).exit_code, 0);
  const std::string text = read_file(svg);
  for (const char* part : {">socket 0<", ">socket 1<", "20 GB/s shared per socket",
                           "not inside groups of 2 GPUs", "10 GB/s between sockets"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part;
  }
}

// A NIC added by hand to a node whose NCCL costs are known inside only.
TEST_F(TopologyCommand, WarnsOfATierWithoutCosts) {
  const std::string two_nodes =
      "'{extends: h100_node, nodes: 2, nic: {bandwidth: 400 Gb/s, latency: 1 us}, fabric: {kind: "
      "star}}'";
  EXPECT_NE(run("show " + two_nodes).out.find("transport nccl has no costs for \"nic\""),
            std::string::npos);
  EXPECT_EQ(run("show h100_rail_optimised").out.find("has no costs"), std::string::npos);
}

TEST_F(TopologyCommand, BadInputLeavesNothingBehind) {
  const std::string svg = (folder_ / "c.svg").string();
  const Outcome outcome = run("show h100_node --set scale_up.bandwidth=450 --svg " + svg);
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_TRUE(outcome.out.empty());
  EXPECT_NE(outcome.err.find("--set scale_up.bandwidth: found \"450\", expected a bandwidth"),
            std::string::npos)
      << outcome.err;
  EXPECT_FALSE(std::filesystem::exists(svg));
  EXPECT_EQ(run("show nothing_of_that_name").exit_code, 2);
  EXPECT_EQ(run("show h100_node --ranks 9").exit_code, 2);
  EXPECT_EQ(run("show").exit_code, 2);
  EXPECT_EQ(run("show --help").exit_code, 0);
}

// 4 GPUs on 18 NVLinks of 25 GB/s each: the port of the base.
TEST_F(TopologyCommand, ImportsAMachineThatShowReads) {
  const std::string input = (folder_ / "topo.txt").string();
  const std::string output = (folder_ / "mine.yaml").string();
  std::string matrix = "\tGPU0\tGPU1\tGPU2\tGPU3\tCPU Affinity\n";
  for (int a = 0; a < 4; ++a) {
    matrix += "GPU" + std::to_string(a);
    for (int b = 0; b < 4; ++b) matrix += a == b ? "\t X " : "\tNV18";
    matrix += "\t0-55\n";
  }
  write_file(input, matrix);
  const Outcome imported = run("import " + input + " --base h100_node -o " + output);
  ASSERT_EQ(imported.exit_code, 0) << imported.err;
  EXPECT_EQ(imported.out, output + ": 4 GPUs in 1 node\n");
  EXPECT_NE(imported.err.find("warning: not in it: what the GPUs compute"), std::string::npos);
  const Outcome shown = run("show " + output + " --json");
  ASSERT_EQ(shown.exit_code, 0) << shown.err;
  const auto document = nlohmann::json::parse(shown.out);
  EXPECT_EQ(document["name"], "mine");
  EXPECT_EQ(document["num_gpus"], 4);
  const Outcome refused = run("import " + input + " -o " + output);
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_NE(refused.err.find("expected --base"), std::string::npos) << refused.err;
}

}  // namespace
}  // namespace coterie
