// From measured times to reports, with numbers that can be checked by hand.

#include "runtime/session/measure.hpp"

#include <gtest/gtest.h>

#include "core/yaml.hpp"
#include "runtime/session/probe.hpp"
#include "topologies/cluster.hpp"

namespace coterie {
namespace {

LayerTimes layer(double dispatch_s, double combine_s) {
  return {
      {{Phase::kDispatch, 0.0, dispatch_s}, {Phase::kCombine, dispatch_s, dispatch_s + combine_s}}};
}

// Two ranks, three iterations. Slowest rank per iteration: 3, 5, 4; the median is 4 (iteration 2).
TEST(Measure, TheSlowestRankCountsInEveryIteration) {
  const std::vector<RankTimes> ranks{{{layer(1.0, 1.0)}, {layer(4.0, 1.0)}, {layer(1.0, 1.0)}},
                                     {{layer(2.0, 1.0)}, {layer(1.0, 1.0)}, {layer(3.0, 1.0)}}};
  LayerReport report;
  fill_times(ranks, 0, report);
  EXPECT_EQ(report.samples_s, (std::vector<double>{3.0, 5.0, 4.0}));
  EXPECT_EQ(report.time_s, 4.0);
  ASSERT_EQ(report.phases.size(), 2U);
  EXPECT_EQ(report.phases[0].end_s, (std::vector<double>{1.0, 3.0}));
  EXPECT_EQ(report.phases[0].samples_s, (std::vector<double>{2.0, 4.0, 3.0}));
  EXPECT_EQ(report.phases[1].begin_s, (std::vector<double>{1.0, 3.0}));
}

TEST(Measure, TimesSurviveTheirMessage) {
  const RankTimes times{{layer(0.25, 0.5), layer(1.0, 2.0)}, {layer(3.0, 4.0), layer(5.0, 6.0)}};
  const RankTimes back = unpack_times(pack_times(times));
  ASSERT_EQ(back.size(), 2U);
  ASSERT_EQ(back[1].size(), 2U);
  EXPECT_EQ(back[1][0].phases[1].phase, Phase::kCombine);
  EXPECT_EQ(back[1][0].phases[1].end_s, 7.0);
  EXPECT_EQ(back[0][0].time_s(), 0.75);
}

TEST(Probe, SizesAscendByFours) {
  const auto sizes = curve_sizes(std::uint64_t{64} << 20);
  EXPECT_EQ(sizes.front(), 1U);
  EXPECT_EQ(sizes.back(), std::uint64_t{64} << 20);
  EXPECT_EQ(sizes.size(), 14U);
}

// What the probe writes is what the topology reader takes, on one node and on several.
TEST(Probe, TheSkeletonIsATopology) {
  ProbeFacts facts;
  facts.machine = "a";
  facts.device = "NVIDIA H200";
  facts.driver = "580.1";
  facts.nccl = "2.28.3";
  facts.num_sms = 132;
  facts.ranks_per_node = 8;
  facts.ranks_per_gpu = 8;
  facts.link_kind = "socket";
  facts.copy_bytes_per_s = 4.2e12;
  facts.gemm_flop_per_s = 783e12;
  facts.launch_s = 1e-6;
  facts.pair_bytes_per_s = 4.2e9;
  facts.pair_latency_s = 30e-6;
  facts.all_to_all_bytes_per_s = 17e9;
  const Cluster one = read_cluster(parse_yaml(topology_skeleton(facts), "skeleton"));
  EXPECT_EQ(one.num_gpus(), 8U);
  EXPECT_EQ(one.name, "a_ep8");
  // An eighth of 4.2 TB/s, for eight ranks share the GPU.
  EXPECT_DOUBLE_EQ(one.gpu.memory_bandwidth.value, 4.2e12 / 8);
  ASSERT_TRUE(one.scale_up.has_value());
  EXPECT_EQ(one.scale_up->kind, ScaleUpKind::kSocket);
  EXPECT_DOUBLE_EQ(one.scale_up->bandwidth.value, 4.2e9);
  ASSERT_TRUE(one.scale_up->shared_bandwidth.has_value());
  ASSERT_EQ(one.transports.size(), 1U);
  const auto& nccl = std::get<NcclParameters>(one.transports[0]);
  EXPECT_DOUBLE_EQ(nccl.scale_up.value().segments[0].alpha.value, 30e-6);
  EXPECT_FALSE(nccl.network.has_value());

  facts.num_nodes = 2;
  facts.link_kind = "nvlink";
  facts.far_bytes_per_s = 40e9;
  facts.far_latency_s = 20e-6;
  const Cluster two = read_cluster(parse_yaml(topology_skeleton(facts), "skeleton"));
  EXPECT_EQ(two.num_gpus(), 16U);
  ASSERT_TRUE(two.nic.has_value());
  EXPECT_DOUBLE_EQ(two.nic->bandwidth.value, 40e9);
  EXPECT_DOUBLE_EQ(
      std::get<NcclParameters>(two.transports.at(0)).network.value().segments[0].alpha.value,
      20e-6);
}

}  // namespace
}  // namespace coterie
