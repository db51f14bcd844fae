// The transport direct without a GPU: where blocks lie in peer memory, and how an experiment asks
// for it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.hpp"
#include "runtime/executor/direct_transport.hpp"
#include "runtime/session/direct_bench.hpp"
#include "runtime/session/transport.hpp"
#include "tests/message_of.hpp"
#include "tests/runtime/fixture.hpp"

namespace coterie {
namespace {

using testing::StartsWith;

constexpr std::uint32_t kDirectRanks = kSmallRanks;

class DirectPlaces : public testing::TestWithParam<DispatchPolicy> {};

// What a rank tells each sender are pieces of its own region that hold exactly the sender's block and
// its results, and no two of them share a byte.
TEST_P(DirectPlaces, AreDisjointPiecesOfTheRegion) {
  const LayerPlan plan = small_plan(GetParam());
  LayerShape shape;
  shape.mlp = {256, 64};
  for (const kernels::RowType type : {kernels::RowType::kBf16, kernels::RowType::kFp8}) {
    shape.dispatch = type;
    for (std::uint32_t rank = 0; rank < kDirectRanks; ++rank) {
      const std::vector<RankLayout> layouts{make_rank_layout(plan, rank)};
      const DirectRegion region = plan_region(shape, layouts);
      std::vector<bool> used(region.num_bytes, false);
      const auto take = [&](std::uint64_t begin, std::size_t size) {
        ASSERT_LE(begin + size, region.num_bytes);
        for (std::size_t i = begin; i < begin + size; ++i) {
          ASSERT_FALSE(used[i]) << "byte " << i << " of rank " << rank;
          used[i] = true;
        }
      };
      for (std::uint32_t peer = 0; peer < kDirectRanks; ++peer) {
        const auto places = places_for(shape, layouts, region, peer);
        // The peer counts its own side of the same hops and rounds.
        const RankLayout theirs = make_rank_layout(plan, peer);
        std::size_t at = 0;
        for (std::size_t h = 0; h < theirs.hops.size(); ++h) {
          const Hop& hop = theirs.hops[h];
          for (std::size_t p = 0; p < hop.send_ranks.size(); ++p) {
            if (hop.send_ranks[p] != rank) continue;
            for (const HopRound& round : hop.rounds) {
              ASSERT_LT(at, places.size());
              const kernels::BlockCounts counts = round.send[p];
              EXPECT_EQ(places[at].recv % kernels::kBlockAlignment, 0U);
              take(places[at].recv, kernels::block_bytes(type, shape.mlp.hidden, counts.num_rows,
                                                         counts.num_copies));
              take(places[at].results, std::size_t{counts.num_rows} * shape.mlp.hidden * 2);
              ++at;
            }
          }
        }
        EXPECT_EQ(at, places.size());
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, DirectPlaces,
                         testing::Values(DispatchPolicy::kStandard, DispatchPolicy::kDedup,
                                         DispatchPolicy::kHierarchical));

TEST(DirectChoice, ComesFromTheExperimentThenTheTopology) {
  Cluster cluster;
  cluster.gpu.num_sms = 132;
  EXPECT_FALSE(chosen_direct(cluster, {}).has_value());
  EXPECT_FALSE(chosen_direct(cluster, {"nccl", {}}).has_value());
  EXPECT_EQ(chosen_direct(cluster, {"direct", {}})->sms, 16U);  // the default of DirectOptions
  EXPECT_EQ(chosen_direct(cluster, {"direct", {{"sms", "24"}}})->sms, 24U);
  DirectParameters known;
  known.sms = 8;
  for (DirectKernel* kernel : {&known.dispatch, &known.combine}) {
    kernel->sm_bandwidth = Bandwidth{100e9};
    kernel->port_bandwidth = Bandwidth{350e9};
  }
  cluster.transports.push_back(known);
  EXPECT_EQ(chosen_direct(cluster, {"direct", {}})->sms, 8U);
  EXPECT_EQ(chosen_direct(cluster, {"direct", {{"sms", "24"}}})->sms, 24U);
  EXPECT_EQ(executed_transport({"direct", {}}), "direct");
  EXPECT_EQ(executed_transport({"deepep_normal", {}}), "nccl");
}

// A misspelt parameter would otherwise run with the default.
TEST(DirectChoice, RefusesUnknownParameters) {
  const auto refusal = [](const Cluster& cluster) {
    return message_of([&] {
      (void)chosen_direct(cluster, {"direct", {{"sm", "24", "transport.", "e.yaml:9:3"}}});
    });
  };
  EXPECT_EQ(refusal(load_cluster("h100_node")),
            "e.yaml:9:3: key \"transport.sm\": found the key \"sm\", expected sms alone, where the "
            "topology does not describe the transport direct");
  EXPECT_THAT(
      refusal(load_cluster("h100_direct_2x2_calibrated")),
      StartsWith("e.yaml:9:3: key \"transport.sm\": found unknown key \"sm\", expected one "));
}

TEST(DirectChoice, RefusesMultiprocessorsThatTheGpuDoesNotHave) {
  Cluster cluster;
  cluster.gpu.name = "H200";
  cluster.gpu.num_sms = 132;
  for (const char* sms : {"0", "133", "-1", "8.5", "many", "", "8 "}) {
    EXPECT_EQ(message_of([&] {
                (void)chosen_direct(cluster, {"direct", {{"sms", sms, "transport."}}});
              }),
              fmt::format("--set transport.sms: found \"{}\", expected 1 to 132, the "
                          "multiprocessors of a H200",
                          sms));
  }
}

TEST(DirectBench, ReadsRings) {
  EXPECT_EQ(parse_ring("5x3").num_warps, 5U);
  EXPECT_EQ(parse_ring("5x3").num_slots, 3U);
  for (const char* text : {"", "5", "x3", "5x", "0x3", "5x0", "5x3x2", "ax3", "-1x3"}) {
    EXPECT_THROW(parse_ring(text), InputError) << text;
  }
}

}  // namespace
}  // namespace coterie
