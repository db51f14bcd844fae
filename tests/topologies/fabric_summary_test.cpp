// Known answers of graph theory. All cables are 1 GB/s unless said otherwise; a diameter counts the
// two NIC links, so it is the switch graph's diameter plus two.

#include "topologies/fabric_summary.hpp"

#include <gtest/gtest.h>

#include "tests/topologies/small_clusters.hpp"

namespace coterie {
namespace {

double bisection_gb(const FabricSummary& summary) {
  return summary.network_bisection->value / 1e9;
}

std::uint64_t num_cables(const FabricSummary& summary, const std::string& name) {
  std::uint64_t sum = 0;
  for (const CableGroup& group : summary.cables) sum += group.name == name ? group.num_cables : 0;
  return sum;
}

TEST(FabricSummary, StarIsNonBlocking) {
  const FabricSummary summary = summarize(plain_cluster(7, 1, "kind: star"));
  EXPECT_EQ(summary.diameter, 2U);
  EXPECT_DOUBLE_EQ(bisection_gb(summary), 3.0);  // floor(7 / 2) NICs
  EXPECT_DOUBLE_EQ(*summary.oversubscription, 1.0);
  EXPECT_TRUE(summary.reachable);
}

// Al-Fares et al. 2008: k = 4 has 16 hosts, 8 + 8 pod switches, 4 cores, full bisection; the
// farthest hosts are edge-aggregation-core-aggregation-edge apart.
TEST(FabricSummary, FatTreeOfFour) {
  const FabricSummary summary = summarize(plain_cluster(16, 1, kFatTree4));
  EXPECT_EQ(summary.num_switches.at("edge"), 8U);
  EXPECT_EQ(summary.num_switches.at("aggregation"), 8U);
  EXPECT_EQ(summary.num_switches.at("core"), 4U);
  EXPECT_EQ(num_cables(summary, "edge - aggregation"), 16U);
  EXPECT_EQ(num_cables(summary, "aggregation - core"), 16U);
  EXPECT_EQ(summary.diameter, 6U);
  EXPECT_DOUBLE_EQ(bisection_gb(summary), 8.0);
  // Every cable halved: half the bisection.
  const FabricSummary thin = summarize(plain_cluster(16, 1, kFatTree4 + ", oversubscription: 2"));
  EXPECT_DOUBLE_EQ(bisection_gb(thin), 4.0);
  EXPECT_DOUBLE_EQ(*thin.oversubscription, 2.0);
}

// Four leaves of four hosts; each leaf's uplinks carry 4/2 GB/s, so two leaves send 4 GB/s to the
// other two although their hosts could send 8.
TEST(FabricSummary, OversubscribedLeafSpine) {
  const FabricSummary summary = summarize(plain_cluster(16, 1, kLeafSpine2));
  EXPECT_EQ(summary.num_switches.at("leaf"), 4U);
  EXPECT_EQ(summary.num_switches.at("spine"), 2U);
  EXPECT_EQ(summary.diameter, 4U);
  EXPECT_DOUBLE_EQ(bisection_gb(summary), 4.0);
  EXPECT_DOUBLE_EQ(*summary.oversubscription, 2.0);
}

// A pod has as many nodes as a leaf has ports, and one leaf per rail.
TEST(FabricSummary, RailOptimisedLeafSpine) {
  const FabricSummary summary = summarize(
      node_cluster(8, 4, "kind: leaf_spine, hop_latency: 1 us, ports_per_leaf: 4, num_spines: 2"));
  EXPECT_EQ(summary.num_switches.at("leaf"), 8U);  // 2 pods of 4 rails
  EXPECT_EQ(num_cables(summary, "leaf - spine"), 16U);
  EXPECT_DOUBLE_EQ(bisection_gb(summary), 16.0);              // 4 nodes x 4 NICs
  EXPECT_DOUBLE_EQ(summary.scale_up_bisection->value, 20e9);  // 2 ports of 10 GB/s
}

TEST(FabricSummary, RailOnlyIsOneSwitchPerRail) {
  const FabricSummary summary = summarize(node_cluster(4, 2, "kind: rail_only"));
  EXPECT_EQ(summary.num_switches.at("leaf"), 2U);
  EXPECT_EQ(summary.diameter, 2U);
  EXPECT_TRUE(summary.reachable);                // over scale-up
  EXPECT_DOUBLE_EQ(bisection_gb(summary), 4.0);  // 2 nodes x 2 NICs
}

// A ring of n: diameter floor(n/2), and halving it cuts two cables.
TEST(FabricSummary, Ring) {
  const FabricSummary summary = summarize(plain_cluster(8, 1, kRing8));
  EXPECT_EQ(num_cables(summary, "router - router"), 8U);
  EXPECT_EQ(summary.diameter, 4U + 2U);
  EXPECT_DOUBLE_EQ(bisection_gb(summary), 2.0);
}

// A torus of side s in d dimensions: d * s^d cables, diameter d * floor(s/2), bisection 2 *
// s^(d-1). Eight NICs per node, so that they do not limit it.
TEST(FabricSummary, Torus) {
  const FabricSummary summary = summarize(plain_cluster(
      64, 8, "kind: torus, hop_latency: 1 us, dimensions: [4, 4, 4], link_bandwidth: 1 GB/s"));
  EXPECT_EQ(num_cables(summary, "router - router"), 192U);
  EXPECT_EQ(summary.diameter, 6U + 2U);
  EXPECT_DOUBLE_EQ(bisection_gb(summary), 32.0);
  EXPECT_DOUBLE_EQ(*summary.oversubscription, 256.0 / 32.0);
}

// Size 2 has one cable, size 1 none: [2, 2, 1] is a square, 4 cables.
TEST(FabricSummary, ThinTorus) {
  const FabricSummary summary = summarize(plain_cluster(
      4, 1, "kind: torus, hop_latency: 1 us, dimensions: [2, 2, 1], link_bandwidth: 1 GB/s"));
  EXPECT_EQ(num_cables(summary, "router - router"), 4U);
  EXPECT_EQ(summary.diameter, 2U + 2U);
}

// Kim et al. 2008: a = 4, h = p = 2 and g = a*h + 1 = 9: 36 routers, 9 * C(4,2) local cables, one
// global cable per pair of groups, diameter local-global-local.
TEST(FabricSummary, Dragonfly) {
  const FabricSummary summary = summarize(plain_cluster(72, 1, kDragonfly72));
  EXPECT_EQ(summary.num_switches.at("router"), 36U);
  EXPECT_EQ(num_cables(summary, "router - router"), 54U + 36U);
  EXPECT_EQ(summary.diameter, 3U + 2U);
}

// Two groups of two routers with two global ports each share all 4 global cables; the 8 hosts of a
// group could send 8 GB/s.
TEST(FabricSummary, DragonflyOfTwoGroupsIsLimitedByItsGlobalCables) {
  const FabricSummary summary = summarize(
      plain_cluster(16, 1,
                    "kind: dragonfly, hop_latency: 1 us, num_groups: auto, routers_per_group: 2, "
                    "ports_per_router: 4, global_links_per_router: 2, local_bandwidth: 9 GB/s, "
                    "global_bandwidth: 1 GB/s"));
  EXPECT_DOUBLE_EQ(bisection_gb(summary), 4.0);
  EXPECT_DOUBLE_EQ(*summary.oversubscription, 2.0);
}

// The broken ring is a path 0-1-2-3: diameter 3, halved by one cable.
TEST(FabricSummary, FailedCableOpensTheRing) {
  const FabricSummary summary = summarize(plain_cluster(4, 1, kBrokenRing));
  EXPECT_TRUE(summary.reachable);
  EXPECT_EQ(summary.diameter, 3U + 2U);
  EXPECT_DOUBLE_EQ(bisection_gb(summary), 1.0);
}

TEST(FabricSummary, SaysWhenNodesAreCutOff) {
  const FabricSummary summary = summarize(
      plain_cluster(4, 1, "kind: custom, num_switches: 2, attach: [0, 0, 1, 1], cables: []"));
  EXPECT_FALSE(summary.reachable);
  EXPECT_DOUBLE_EQ(bisection_gb(summary), 0.0);
  EXPECT_FALSE(summary.oversubscription.has_value());
}

// 72 GPUs of 900 GB/s: 36 of them face the other 36. A shared bottleneck takes the minimum.
TEST(FabricSummary, ScaleUpBisection) {
  EXPECT_DOUBLE_EQ(summarize(load_cluster("gb200_nvl72")).scale_up_bisection->value, 36 * 900e9);
  EXPECT_EQ(summarize(load_cluster("gb200_nvl72")).num_domains, 1U);
  EXPECT_DOUBLE_EQ(summarize(load_cluster("l40s_pcie_8")).scale_up_bisection->value, 72e9);
}

// Stated oversubscription is what the maximum flow finds, at two sizes.
TEST(FabricSummary, PresetsKeepTheirStatedOversubscription) {
  for (const std::uint32_t ranks : {512U, 2048U}) {
    EXPECT_NEAR(*summarize(load_cluster("h100_rail_optimised", {}, ranks)).oversubscription, 1.0,
                1e-9);
    EXPECT_NEAR(*summarize(load_cluster("h100_leaf_spine_2to1", {}, ranks)).oversubscription, 2.0,
                1e-9);
    EXPECT_NEAR(
        *summarize(load_cluster("h100_rail_optimised", {{"fabric.oversubscription", "4"}}, ranks))
             .oversubscription,
        4.0, 1e-9);
  }
}

}  // namespace
}  // namespace coterie
