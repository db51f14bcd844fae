#include "topologies/cluster.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/message_of.hpp"
#include "tests/topologies/small_clusters.hpp"
#include "topologies/network.hpp"

namespace coterie {
namespace {

class EveryPreset : public testing::TestWithParam<std::string> {};

TEST_P(EveryPreset, LoadsAtItsOwnSizeAndRoutes) {
  const Cluster cluster = load_cluster(GetParam());
  EXPECT_EQ(cluster.name, GetParam());
  EXPECT_FALSE(cluster.description.empty());
  const Network network(cluster);
  const GpuId last{cluster.num_gpus() - 1};
  std::vector<LinkId> route;
  network.append_route(GpuId{0}, last, 0, route);
  EXPECT_GE(route.size(), 2U);  // out of one port, into another
}

// Presets with `nodes: auto` hold any number of ranks; the others say what they lack.
TEST_P(EveryPreset, ScalesOrSaysThatItDoesNot) {
  const bool scales =
      load_cluster(GetParam(), {}, 1).num_gpus() != load_cluster(GetParam()).num_gpus();
  for (const std::uint32_t ranks : {200U, 1000U, 16384U}) {
    const std::string said = message_of([&] {
      const Cluster cluster = load_cluster(GetParam(), {}, ranks);
      EXPECT_GE(cluster.num_gpus(), ranks);
      const Network network(cluster);
      std::vector<LinkId> route;
      network.append_route(GpuId{0}, GpuId{ranks - 1}, 0, route);
      EXPECT_GE(route.size(), 2U);
    });
    if (scales) {
      EXPECT_EQ(said, "(nothing was thrown)");
    } else {
      EXPECT_NE(said.find("the number of ranks (set \"nodes\")"), std::string::npos) << said;
    }
  }
}

// Written out and read back, a cluster gives the same links, routes and text.
TEST_P(EveryPreset, SurvivesItsOwnText) {
  const Cluster cluster = load_cluster(GetParam());
  const std::string text = to_yaml(cluster);
  const Cluster again = read_cluster(parse_yaml(text, "again.yaml"));
  EXPECT_EQ(to_yaml(again), text);
  EXPECT_EQ(again.name, cluster.name);
  const Network first(cluster);
  const Network second(again);
  ASSERT_EQ(first.links().size(), second.links().size());
  for (std::size_t i = 0; i < first.links().size(); ++i) {
    ASSERT_EQ(first.links()[i].bandwidth.value, second.links()[i].bandwidth.value);
    ASSERT_EQ(first.links()[i].latency.value, second.links()[i].latency.value);
  }
}

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const Preset& preset : topology_presets()) names.push_back(preset.name);
  return names;
}
INSTANTIATE_TEST_SUITE_P(Presets, EveryPreset, testing::ValuesIn(preset_names()),
                         [](const auto& test) { return test.param; });

// Issue: a 16,384-GPU cluster is one line away. 2048 nodes x 8.
TEST(Cluster, OneLineMakes16384Gpus) {
  const Cluster cluster = load_cluster("{extends: h100_rail_optimised, nodes: 2048}");
  EXPECT_EQ(cluster.num_gpus(), 16384U);
  EXPECT_EQ(cluster.gpu.name, "H100 SXM");  // from h100_node, two steps down
  EXPECT_EQ(load_cluster("h100_rail_optimised", {{"nodes", "2048"}}).num_gpus(), 16384U);
  EXPECT_EQ(load_cluster("h100_rail_optimised", {}, 16384).num_gpus(), 16384U);
}

// Values of the preset files and their datasheets.
TEST(Cluster, ExtendingOverridesKeyByKey) {
  const Cluster h200 = load_cluster("h200_node");
  EXPECT_EQ(h200.gpu.name, "H200 SXM");
  EXPECT_DOUBLE_EQ(h200.gpu.memory_bandwidth.value, 4.8e12);
  EXPECT_DOUBLE_EQ(h200.gpu.bf16_peak.value, 989e12);  // kept from h100_node
  EXPECT_DOUBLE_EQ(h200.scale_up->bandwidth.value, 450e9);
  const Cluster mixed = load_cluster(
      "{extends: h200_node, scale_up: {injection: {sends_in_flight: 4, rank_bandwidth: none}}}");
  EXPECT_EQ(mixed.scale_up->injection.sends_in_flight, 4U);
  EXPECT_FALSE(mixed.scale_up->injection.rank_bandwidth.has_value());
}

// Another `kind` starts from an empty block: the base's keys would be unused ones.
TEST(Cluster, AnotherKindReplacesTheBlock) {
  const Cluster cluster = load_cluster("{extends: h100_dragonfly, nodes: 4, fabric: {kind: star}}");
  EXPECT_TRUE(std::holds_alternative<StarFabric>(cluster.fabric->kind));
  const Cluster alone = load_cluster("{extends: h100_rail_8x8, nodes: 1, nic: none, fabric: none}");
  EXPECT_FALSE(alone.nic.has_value());
  EXPECT_EQ(alone.num_gpus(), 8U);
}

TEST(Cluster, OverridesGetTheChecksOfTheFile) {
  EXPECT_DOUBLE_EQ(
      std::get<LeafSpineFabric>(
          load_cluster("h100_rail_optimised", {{"fabric.oversubscription", "4"}}).fabric->kind)
          .oversubscription,
      4.0);
  EXPECT_EQ(message_of([] {
              (void)load_cluster("h100_node", {{"scale_up.bandwidth", "450"}});
            }),
            "--set scale_up.bandwidth: found \"450\", expected a bandwidth with its unit, such as "
            "\"50 GB/s\" or \"400 Gb/s\"");
  EXPECT_NE(message_of([] {
              (void)load_cluster("h100_node", {{"scale_up.bandwith", "1 GB/s"}});
            }).find("found unknown key \"bandwith\", expected one of bandwidth, injection, kind"),
            std::string::npos);
  EXPECT_NE(message_of([] { (void)load_cluster("h100_nodes"); })
                .find("topology: found \"h100_nodes\", expected a YAML file or one of the presets "
                      "a100_node, "),
            std::string::npos);
}

TEST(Cluster, TextKeepsProvenanceAndFailedCables) {
  Cluster cluster = plain_cluster(4, 1, kBrokenRing);
  cluster.relative_uncertainty = 0.125;
  cluster.provenance = {{"measured", "8 ranks: \"quoted\", \\ and \ttab"}, {"when", "2026"}};
  const Cluster again = read_cluster(parse_yaml(to_yaml(cluster), "again.yaml"));
  EXPECT_EQ(again.provenance, cluster.provenance);
  EXPECT_EQ(again.relative_uncertainty, cluster.relative_uncertainty);
  EXPECT_EQ(to_yaml(again), to_yaml(cluster));
}

TEST(Cluster, TextKeepsEveryTermOfAnExpertMlp) {
  Cluster cluster = plain_cluster(4, 1, kBrokenRing);
  MlpCosts costs;
  costs.launch = Seconds{20e-6};
  costs.weight_bandwidth = Bandwidth{4e12};
  costs.compute_rate = ComputeRate{6e14};
  costs.batch_bandwidth = Bandwidth{2e12};
  costs.tiles = {{16, ComputeRate{2e14}, Seconds{1e-9}, 32},
                 {64, ComputeRate{6e14}, Seconds{3e-9}}};
  costs.expert = Seconds{7e-8};
  costs.row_bandwidth = Bandwidth{5e12};
  cluster.gpu.mlp = costs;
  const Cluster again = read_cluster(parse_yaml(to_yaml(cluster), "again.yaml"));
  ASSERT_TRUE(again.gpu.mlp && again.gpu.mlp->tiles.size() == 2);
  EXPECT_EQ(again.gpu.mlp->tiles[0].up_to_tokens, 32U);
  EXPECT_EQ(again.gpu.mlp->tiles[0].value_time, Seconds{1e-9});
  EXPECT_EQ(again.gpu.mlp->tiles[1].up_to_tokens, std::nullopt);
  EXPECT_EQ(again.gpu.mlp->expert, costs.expert);
  EXPECT_EQ(again.gpu.mlp->row_bandwidth, costs.row_bandwidth);
  EXPECT_EQ(to_yaml(again), to_yaml(cluster));
}

// k^3/4 NIC ports: k = 42 is the smallest even k with 16,384 of them (40: 16,000; 42: 18,522).
TEST(Cluster, AutoParametersGrowWithTheCluster) {
  const auto k = [](std::uint32_t ranks) {
    return std::get<FatTreeFabric>(load_cluster("h100_fat_tree", {}, ranks).fabric->kind).k;
  };
  EXPECT_EQ(k(16), 4U);
  EXPECT_EQ(k(24), 6U);  // 16 ports of k = 4 do not do
  EXPECT_EQ(k(16384), 42U);
  const auto torus = [](std::uint32_t ranks) {
    return std::get<TorusFabric>(load_cluster("h100_torus", {}, ranks).fabric->kind).dimensions;
  };
  EXPECT_EQ(torus(8 * 64), (std::vector<std::uint32_t>{4, 4, 4}));
  EXPECT_EQ(torus(8 * 12), (std::vector<std::uint32_t>{3, 2, 2}));
  EXPECT_EQ(torus(8 * 7), (std::vector<std::uint32_t>{7}));
  EXPECT_EQ(torus(16384), (std::vector<std::uint32_t>{16, 16, 8}));
  // 128 GPUs per group of 16 routers x 8.
  EXPECT_EQ(
      std::get<DragonflyFabric>(load_cluster("h100_dragonfly", {}, 1000).fabric->kind).num_groups,
      8U);
  // Whole racks: 73 GPUs need two of 18 nodes.
  EXPECT_EQ(load_cluster("nvl72_multi_rack", {}, 73).num_nodes, 36U);
}

TEST(Cluster, FilesExtendFilesBesideThem) {
  const auto folder = std::filesystem::temp_directory_path() / "coterie_cluster_test";
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "mine.yaml") << "extends: base.yaml\nnodes: 3\n";
  std::ofstream(folder / "base.yaml") << "extends: h100_rail_only\nnic: {per_gpu: 2}\n";
  const Cluster cluster = load_cluster((folder / "mine.yaml").string());
  EXPECT_EQ(cluster.name, "mine");
  EXPECT_EQ(cluster.num_nodes, 3U);
  EXPECT_EQ(cluster.nic->per_gpu, 2U);
  std::ofstream(folder / "base.yaml") << "extends: mine.yaml\n";
  EXPECT_NE(message_of([&] {
              (void)load_cluster((folder / "mine.yaml").string());
            }).find("found a chain of more than 8 files, expected extends without a circle"),
            std::string::npos);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace coterie
