#include "topologies/network.hpp"

#include <gtest/gtest.h>

#include "core/error.hpp"

namespace coterie {
namespace {

std::vector<std::string> route(const Network& network, std::uint32_t src, std::uint32_t dst,
                               std::uint64_t key = 0) {
  std::vector<LinkId> ids;
  network.append_route(GpuId{src}, GpuId{dst}, key, ids);
  std::vector<std::string> names;
  for (const LinkId id : ids) names.push_back(network.links()[id.value].name);
  return names;
}

using Names = std::vector<std::string>;

// DESIGN section 8: star is one 400 Gb/s link per rank and direction, 500 ns each; so a route has
// two links and 1 us of latency.
TEST(Network, StarIsTwoLinksOf500Ns) {
  const Network network(load_cluster("star", {}, 16));
  ASSERT_EQ(network.num_gpus(), 16U);
  EXPECT_EQ(route(network, 3, 9), (Names{"gpu 3 nic out", "gpu 9 nic in"}));
  std::vector<LinkId> ids;
  network.append_route(GpuId{3}, GpuId{9}, 0, ids);
  EXPECT_DOUBLE_EQ(network.route_latency(ids).value, 1e-6);
  EXPECT_DOUBLE_EQ(network.links()[ids[0].value].bandwidth.value, 50e9);  // 400 / 8
  EXPECT_EQ(network.injection(Tier::kNetwork).sends_in_flight, kUnlimitedSends);
  EXPECT_TRUE(route(network, 5, 5).empty());
}

// A transfer inside a node: cap, out port, in port, cap (h100_node has a rank cap).
TEST(Network, ScaleUpRouteCrossesThePortsAndTheCaps) {
  const Network network(load_cluster("h200_node"));
  EXPECT_EQ(network.tier(GpuId{0}, GpuId{7}), Tier::kScaleUp);
  EXPECT_EQ(route(network, 1, 6), (Names{"gpu 1 scale_up cap out", "gpu 1 scale-up out",
                                         "gpu 6 scale-up in", "gpu 6 scale_up cap in"}));
}

// Rail-optimised, 8 nodes x 8: same rail stays on its leaf; another rail is changed over scale-up.
TEST(Network, RailOptimisedChangesRailsOverScaleUp) {
  const Network network(load_cluster("h100_rail_8x8"));
  EXPECT_EQ(route(network, 3, 11), (Names{"gpu 3 network cap out", "gpu 3 nic out", "gpu 11 nic in",
                                          "gpu 11 network cap in"}));
  EXPECT_EQ(route(network, 3, 12),
            (Names{"gpu 3 network cap out", "gpu 3 scale-up out", "gpu 4 scale-up in",
                   "gpu 4 nic out", "gpu 12 nic in", "gpu 12 network cap in"}));
}

}  // namespace
}  // namespace coterie
