// The rates of layers, counted by hand on small machines, and placements that are learnt by them.

#include "sim/experiment/layer_times.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "tests/sim/engines/networks.hpp"
#include "tests/sim/program/small_layers.hpp"
#include "tests/workloads/placement/routings.hpp"
#include "workloads/placement/time_search.hpp"

namespace coterie {
namespace {

using ::testing::DoubleNear;
using ::testing::Each;
using ::testing::ElementsAre;

// Rows of 500 values in BF16: 1000 B, in the dispatch with 4 B of their own. small_layers.hpp has
// the hardware: 1 B/ns over a NIC, 2 B/ns over NVLink.
LayerTimesSetup small_setup(std::uint32_t num_nodes, std::uint32_t gpus_per_node) {
  LayerTimesSetup setup;
  setup.cluster = testing::small_cluster(num_nodes, gpus_per_node);
  setup.model = testing::small_model();
  setup.num_ranks = num_nodes * gpus_per_node;
  setup.transport.name = "ideal";
  setup.tokens_per_rank = 2000;
  return setup;
}

constexpr double kNs = 1e-9;

// Four ranks, each a node. A row for rank r comes from one of 4 ranks, in 1 of 4 cases from r
// itself: 3/4 of 1004 ns at the NIC of r. The NIC of every sender has 1/4 of each row for another
// rank, 251 ns. Results are 1000 B.
TEST(LayerRates, OfAStar) {
  const auto times = make_layer_times(small_setup(4, 1));
  const LayerCost& cost = times->cost();
  EXPECT_FALSE(cost.rows_are_copies);
  EXPECT_FALSE(cost.relayed);
  EXPECT_EQ(cost.group_tokens, 8000.0);
  EXPECT_THAT(cost.out.own_row_s, Each(DoubleNear(753.0 * kNs, 0.01 * kNs)));
  EXPECT_THAT(cost.back.own_row_s, Each(DoubleNear(750.0 * kNs, 0.01 * kNs)));
  ASSERT_EQ(cost.out.channels.size(), 4u);
  for (const LayerCost::Channel& channel : cost.out.channels) {
    std::vector<double> rates = channel.row_s;
    std::sort(rates.begin(), rates.end());
    EXPECT_THAT(rates, ElementsAre(0.0, DoubleNear(251.0 * kNs, 0.01 * kNs),
                                   DoubleNear(251.0 * kNs, 0.01 * kNs),
                                   DoubleNear(251.0 * kNs, 0.01 * kNs)));
  }
}

// The rank that serves a row expands it, reading 1000 B, and merges it, writing 1000 B, over a
// memory of 10 B/ns: 200 ns. A copy is written and read, 1000 B each, another 200 ns, and its expert
// computes 2500 ns per token where there are many (small_layers.hpp).
TEST(LayerRates, OfTheServingRank) {
  const LayerCost cost = make_layer_times(small_setup(4, 1))->cost();
  EXPECT_NEAR(cost.row_s, 200.0 * kNs, 0.01 * kNs);
  EXPECT_NEAR(cost.expert_s(1000.0), 1000 * 2700.0 * kNs, 1.0 * kNs);
}

// Two ranks on a GPU: the same 200 ns per row and 2700 per token are what the two take turns with.
// One rank's kernels, two copies of each of 4000 tokens in the mean over 4 ranks, are 2000 tokens'
// work; the layer is predicted longer than where each has a GPU by another rank's turns, and the
// rates say so too.
TEST(LayerRates, OfRanksThatTakeTurns) {
  LayerTimesSetup setup = small_setup(2, 2);
  const LayerCost alone = make_layer_times(setup)->cost();
  setup.cluster.ranks_per_gpu = 2;
  const LayerCost cost = make_layer_times(setup)->cost();
  EXPECT_EQ(alone.ranks_per_gpu, 1u);
  EXPECT_NEAR(alone.row_s, 200.0 * kNs, 0.01 * kNs);
  EXPECT_EQ(alone.turn_row_s, 0.0);
  EXPECT_EQ(cost.ranks_per_gpu, 2u);
  EXPECT_NEAR(cost.row_s, 0.0, 0.01 * kNs);
  EXPECT_NEAR(cost.turn_row_s, 200.0 * kNs, 0.01 * kNs);
  EXPECT_NEAR(cost.expert_s(1000.0), 1000 * 2700.0 * kNs, 1.0 * kNs);
}

// A row per copy: what counts is copies, which carry 8 B more each.
TEST(LayerRates, OfStandardDispatchCountCopies) {
  LayerTimesSetup setup = small_setup(4, 1);
  setup.policy = DispatchPolicy::kStandard;
  EXPECT_TRUE(make_layer_times(setup)->cost().rows_are_copies);
}

// Two nodes of two ranks. A row for node n comes from the other node in 2 of 4 cases, to the one of
// two relays that has its source's index: each relay's NIC has 1/4 of 1004 ns per row for its node.
// A relay passes half of the rows of its node on, to itself in half of the cases: rank r receives
// 1/2 of its rows over NVLink, 1/2 of 502 ns.
TEST(LayerRates, OfRelays) {
  LayerTimesSetup setup = small_setup(2, 2);
  setup.policy = DispatchPolicy::kHierarchical;
  const LayerCost cost = make_layer_times(setup)->cost();
  EXPECT_TRUE(cost.relayed);
  EXPECT_EQ(cost.ranks_per_node, 2u);
  EXPECT_GT(cost.num_rounds, 1u);
  EXPECT_THAT(cost.out.own_row_s, Each(DoubleNear(251.0 * kNs, 0.01 * kNs)));
  const auto slowest_relay = [&](std::size_t node) {
    double most = 0.0;
    for (const LayerCost::Channel& channel : cost.out.channels) {
      if (channel.relay_s[1 - node] <= 0.0) most = std::max(most, channel.relay_s[node]);
    }
    return most;
  };
  EXPECT_NEAR(slowest_relay(0), 251.0 * kNs, 0.01 * kNs);
  EXPECT_NEAR(slowest_relay(1), 251.0 * kNs, 0.01 * kNs);
}

TEST(LayerTimes, AreKeptApartByWhatTheyDependOn) {
  LayerTimesSetup setup = small_setup(4, 1);
  const std::string key = make_layer_times(setup)->key();
  EXPECT_EQ(make_layer_times(setup)->key(), key);
  LayerTimesSetup other = setup;
  other.cluster.nic->bandwidth = Bandwidth{2e9};
  EXPECT_NE(make_layer_times(other)->key(), key);
  other = setup;
  other.policy = DispatchPolicy::kStandard;
  EXPECT_NE(make_layer_times(other)->key(), key);
  other = setup;
  other.tokens_per_rank = 2001;
  EXPECT_NE(make_layer_times(other)->key(), key);
  other = setup;
  other.num_ranks = 5;
  EXPECT_THROW(make_layer_times(other), InputError);
}

// Four sequences on four ranks, each token once: the times are the mean over every rotation of the
// deal, so that a trace which begins with another of its sequences has the same. One deal alone
// depends on it, by what it finds on the sender's own rank.
TEST(LayerTimes, DoNotDependOnWhichRankTheFirstSequenceIsDealt) {
  LayerTimesSetup setup = small_setup(4, 1);
  setup.tokens_per_rank.reset();
  const Routing routing = testing::planted_routing({4, 2, 160, 4, 1}, 2, 0.7, 7);
  setup.training_tokens = routing.num_tokens();
  const auto times = make_layer_times(setup);
  const LayerPlacement layer{1, {{0}, {1}, {2}, {3}}};
  const double predicted_s = times->predict_s(routing, 0, layer, ReplicaChoice::kLocality);
  Routing rotated = routing;
  std::rotate(rotated.experts.begin(), rotated.experts.begin() + 40 * 2, rotated.experts.end());
  EXPECT_NE(rotated.experts, routing.experts);
  EXPECT_NEAR(times->predict_s(rotated, 0, layer, ReplicaChoice::kLocality), predicted_s,
              1e-9 * predicted_s);
  EXPECT_THAT(times->occurrences(routing), Each(1u));
}

// A step of 2 tokens per rank from four sequences of four: every deal gives each rank the first two of
// one sequence, whichever it begins with, and four such steps are timed.
TEST(LayerTimes, SeeTheBeginningsOfSequences) {
  LayerTimesSetup setup = small_setup(4, 1);
  setup.tokens_per_rank = 2;
  const Routing routing = testing::planted_routing({4, 2, 16, 4, 1}, 2, 0.7, 7);
  const std::vector<std::uint64_t> count = make_layer_times(setup)->occurrences(routing);
  EXPECT_THAT(count, ElementsAre(4u, 4u, 0u, 0u, 4u, 4u, 0u, 0u, 4u, 4u, 0u, 0u, 4u, 4u, 0u, 0u));
}

// All ways to put 4 experts on the ranks of small machines, with tokens that choose two of them: none
// is predicted below the bound, quick or tight. Nor is the bound idle (measured: the least is 0.48 of
// the best, with an expert per rank, where the hottest expert sets the time and the bound sees the
// mean).
TEST(TimeBound, IsBelowEveryPlacement) {
  struct Machine {
    std::uint32_t num_nodes, gpus_per_node;
    DispatchPolicy policy;
    std::uint32_t ranks_per_gpu = 1;
  };
  for (const Machine& machine :
       {Machine{2, 1, DispatchPolicy::kDedup}, Machine{2, 1, DispatchPolicy::kStandard},
        Machine{4, 1, DispatchPolicy::kDedup}, Machine{1, 2, DispatchPolicy::kDedup},
        Machine{2, 2, DispatchPolicy::kDedup}, Machine{2, 2, DispatchPolicy::kHierarchical},
        Machine{1, 2, DispatchPolicy::kDedup, 2}, Machine{2, 2, DispatchPolicy::kDedup, 2}}) {
    LayerTimesSetup setup = small_setup(machine.num_nodes, machine.gpus_per_node);
    setup.policy = machine.policy;
    setup.cluster.ranks_per_gpu = machine.ranks_per_gpu;
    setup.tokens_per_rank.reset();
    const Routing routing = testing::planted_routing({4, 2, 160, 16, 1}, 2, 0.7, 7);
    setup.training_tokens = routing.num_tokens();
    const auto times = make_layer_times(setup);
    const std::uint32_t capacity = 4 / setup.num_ranks;
    std::vector<std::uint32_t> parts;
    for (std::uint32_t e = 0; e < 4; ++e) parts.push_back(e / capacity);
    double best_s = 1.0;
    do {
      LayerPlacement layer;
      layer.layer = 1;
      layer.rank_experts.resize(setup.num_ranks);
      for (std::uint32_t e = 0; e < 4; ++e) {
        layer.rank_experts[parts[e]].push_back(static_cast<ExpertIdx>(e));
      }
      best_s = std::min(best_s, times->predict_s(routing, 0, layer, ReplicaChoice::kLocality));
    } while (std::next_permutation(parts.begin(), parts.end()));
    for (const BoundEffort effort : {BoundEffort::kQuick, BoundEffort::kTight}) {
      const double bound_s = times->bound_s(routing, 0, capacity, 0, effort);
      EXPECT_LE(bound_s, best_s);
      EXPECT_GE(bound_s, 0.45 * best_s) << setup.num_ranks << " ranks";
    }
  }
}

struct Kind {
  std::string name, topology, transport;
  std::uint32_t num_ranks;
  DispatchPolicy policy;
};

class OnMachines : public ::testing::TestWithParam<Kind> {
 protected:
  OnMachines() {
    setup_.cluster = load_cluster(GetParam().topology, {}, GetParam().num_ranks);
    setup_.model = load_model("deepseek_v2_lite");
    setup_.num_ranks = GetParam().num_ranks;
    setup_.policy = GetParam().policy;
    setup_.transport.name = GetParam().transport;
    setup_.tokens_per_rank = 1024;
    times_ = make_layer_times(setup_);
    request_.num_ranks = GetParam().num_ranks;
    request_.ranks_per_node = times_->cost().ranks_per_node;
    request_.strategy = "time_aware";
    request_.times = times_;
  }
  LayerTimesSetup setup_;
  std::shared_ptr<const LayerTimes> times_;
  PlacementRequest request_;
  // Sequences of 40 tokens: each rank is dealt many.
  Routing routing_ = testing::planted_routing({64, 6, 8000, 200, 2}, 16, 0.6, 4);
};

// What the search follows is the prediction, but for how tokens happen to be dealt.
TEST_P(OnMachines, RatesFollowThePrediction) {
  const TokenSample sample(routing_.layer_experts(0), 6, 64);
  std::vector<std::uint64_t> load(64, 0);
  for (const ExpertIdx expert : routing_.layer_experts(0)) ++load[expert];
  const TimeTask task{sample, load, times_->cost()};
  for (const std::string strategy : {"contiguous", "load_balanced", "collaboration"}) {
    PlacementRequest request = request_;
    request.strategy = strategy;
    const LayerPlacement layer = make_placement(routing_, request).layers[0];
    std::vector<std::uint32_t> parts(64, 0);
    for (std::uint32_t rank = 0; rank < request.num_ranks; ++rank) {
      for (const ExpertIdx expert : layer.rank_experts[rank]) parts[expert] = rank;
    }
    const double predicted_s = times_->predict_s(routing_, 0, layer, ReplicaChoice::kLocality);
    EXPECT_NEAR(layer_cost_s(task, parts), predicted_s, 0.15 * predicted_s) << strategy;
  }
}

// On the training part, where its candidates are judged, nothing is faster by more than a percent.
TEST_P(OnMachines, NothingElseIsFasterInTraining) {
  const Placement placed = make_placement(routing_, request_);
  EXPECT_TRUE(check(placed).empty());
  EXPECT_EQ(placed.strategy, "time_aware");
  for (std::size_t i = 0; i < routing_.num_layers(); ++i) {
    const double placed_s =
        times_->predict_s(routing_, i, placed.layers[i], ReplicaChoice::kLocality);
    for (const std::string strategy :
         {"contiguous", "load_balanced", "collaboration", "collaboration_refined"}) {
      PlacementRequest request = request_;
      request.strategy = strategy;
      const LayerPlacement other = make_placement(routing_, request).layers[i];
      EXPECT_LE(placed_s, 1.01 * times_->predict_s(routing_, i, other, ReplicaChoice::kLocality))
          << strategy;
    }
  }
}

TEST_P(OnMachines, IsDeterministicAndTakesLayersOneByOne) {
  request_.num_jobs = 2;
  const Placement placed = make_placement(routing_, request_);
  request_.num_jobs = 1;
  EXPECT_EQ(make_placement(routing_, request_).layers[1].rank_experts,
            placed.layers[1].rank_experts);
  const std::size_t last[]{1};
  EXPECT_EQ(make_placement(select_layers(routing_, last), request_).layers[0].rank_experts,
            placed.layers[1].rank_experts);
}

INSTANTIATE_TEST_SUITE_P(
    Machines, OnMachines,
    ::testing::Values(
        Kind{"pcie", "a6000_pcie_4", "nccl", 4, DispatchPolicy::kDedup},
        Kind{"nvlink", "h200_node_calibrated", "deepep_normal", 8, DispatchPolicy::kDedup},
        Kind{"puts", "h200_node_calibrated", "deepep_low_latency", 8, DispatchPolicy::kDedup},
        Kind{"rails", "h100_rail_8x8", "nccl", 16, DispatchPolicy::kDedup},
        Kind{"relays", "h100_rail_8x8", "nccl", 16, DispatchPolicy::kHierarchical},
        Kind{"pairs", "h100_direct_2x2_calibrated", "direct", 4, DispatchPolicy::kDedup},
        Kind{"fours", "h100_direct_2x4_calibrated", "direct", 8, DispatchPolicy::kDedup}),
    [](const auto& test) { return test.param.name; });

TEST(TimeAware, RefusesTimesOfOtherRanks) {
  PlacementRequest request;
  request.strategy = "time_aware";
  request.num_ranks = 2;
  request.ranks_per_node = 2;
  request.times = make_layer_times(small_setup(4, 1));
  const Routing routing = testing::planted_routing({4, 2, 100, 10, 1}, 2, 0.6, 4);
  try {
    make_placement(routing, request);
    FAIL() << "times of other ranks";
  } catch (const InputError& error) {
    EXPECT_EQ(std::string(error.what()),
              "2 ranks, 2 per node: found times predicted for 4 ranks, 1 per node, expected the "
              "same ranks");
  }
}

}  // namespace
}  // namespace coterie
