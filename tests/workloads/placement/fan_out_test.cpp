// fan_out against slow, obvious code and against closed forms; deal_tokens.

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "core/error.hpp"
#include "routings.hpp"
#include "workloads/plan/fan_out.hpp"
#include "workloads/plan/plan.hpp"

namespace coterie {
namespace {

using testing::RoutingShape;
using testing::uniform_routing;

Placement place(const Routing& routing, const std::string& strategy, std::uint32_t num_ranks,
                std::uint32_t num_replicas = 0) {
  PlacementRequest request;
  request.strategy = strategy;
  request.num_ranks = num_ranks;
  request.seed = 7;
  request.num_replicas = num_replicas;
  return make_placement(routing, request);
}

// The definitions of fan_out.hpp with sets, one token at a time; experts have one host.
FanOut slow_fan_out(const Routing& routing, std::size_t layer_idx, const LayerPlacement& placement,
                    std::uint32_t ranks_per_node, const RankTokens& tokens) {
  std::map<ExpertIdx, std::uint32_t> host;
  for (std::uint32_t rank = 0; rank < placement.rank_experts.size(); ++rank) {
    for (const ExpertIdx expert : placement.rank_experts[rank]) host[expert] = rank;
  }
  FanOut sum;
  std::vector<double> load(placement.rank_experts.size(), 0.0);
  for (std::uint32_t own = 0; own + 1 < tokens.token_begin.size(); ++own) {
    for (std::uint64_t t = tokens.token_begin[own]; t < tokens.token_begin[own + 1]; ++t) {
      std::set<std::uint32_t> ranks;
      std::set<std::uint32_t> nodes;
      for (std::uint32_t j = 0; j < routing.num_topk; ++j) {
        const std::uint32_t rank =
            host[routing.layer_experts(layer_idx)[tokens.trace_token[t] * routing.num_topk + j]];
        ranks.insert(rank);
        nodes.insert(rank / ranks_per_node);
        load[rank] += 1;
        sum.copies += 1;
        (rank == own                                     ? sum.standard.local
         : rank / ranks_per_node == own / ranks_per_node ? sum.standard.scale_up
                                                         : sum.standard.network) += 1;
      }
      const auto own_node = own / ranks_per_node;
      for (std::uint32_t j = 0; j < routing.num_topk; ++j) {
        const std::uint32_t rank =
            host[routing.layer_experts(layer_idx)[tokens.trace_token[t] * routing.num_topk + j]];
        (rank / ranks_per_node == own_node ? sum.hierarchical_copies.local
                                           : sum.hierarchical_copies.network) += 1;
        (rank % ranks_per_node == own % ranks_per_node ? sum.hierarchical_copies.local
                                                       : sum.hierarchical_copies.scale_up) += 1;
      }
      for (const auto rank : ranks) {
        sum.fanout_ranks += 1;
        sum.remote_fanout_ranks += rank != own ? 1 : 0;
        (rank == own                         ? sum.dedup.local
         : rank / ranks_per_node == own_node ? sum.dedup.scale_up
                                             : sum.dedup.network) += 1;
        // Second hop of hierarchical: from the rank of the own local index in that node.
        const auto peer = rank / ranks_per_node * ranks_per_node + own % ranks_per_node;
        (rank == peer ? sum.hierarchical.local : sum.hierarchical.scale_up) += 1;
      }
      for (const auto node : nodes) {
        sum.fanout_nodes += 1;
        sum.remote_fanout_nodes += node != own_node ? 1 : 0;
        (node == own_node ? sum.hierarchical.local : sum.hierarchical.network) += 1;
      }
    }
  }
  const auto n = static_cast<double>(tokens.trace_token.size());
  double total = 0.0;
  for (const double l : load) total += l;
  sum.rank_load_max_over_mean =
      *std::max_element(load.begin(), load.end()) / (total / static_cast<double>(load.size()));
  for (double* const value :
       {&sum.copies, &sum.fanout_ranks, &sum.remote_fanout_ranks, &sum.fanout_nodes,
        &sum.remote_fanout_nodes, &sum.standard.local, &sum.standard.scale_up,
        &sum.standard.network, &sum.dedup.local, &sum.dedup.scale_up, &sum.dedup.network,
        &sum.hierarchical.local, &sum.hierarchical.scale_up, &sum.hierarchical.network,
        &sum.hierarchical_copies.local, &sum.hierarchical_copies.scale_up,
        &sum.hierarchical_copies.network}) {
    *value /= n;
  }
  return sum;
}

void expect_equal(const FanOut& a, const FanOut& b) {
  EXPECT_DOUBLE_EQ(a.copies, b.copies);
  EXPECT_DOUBLE_EQ(a.fanout_ranks, b.fanout_ranks);
  EXPECT_DOUBLE_EQ(a.remote_fanout_ranks, b.remote_fanout_ranks);
  EXPECT_DOUBLE_EQ(a.fanout_nodes, b.fanout_nodes);
  EXPECT_DOUBLE_EQ(a.remote_fanout_nodes, b.remote_fanout_nodes);
  EXPECT_DOUBLE_EQ(a.rank_load_max_over_mean, b.rank_load_max_over_mean);
  for (const auto& [x, y] : {std::pair{&a.standard, &b.standard}, std::pair{&a.dedup, &b.dedup},
                             std::pair{&a.hierarchical, &b.hierarchical},
                             std::pair{&a.hierarchical_copies, &b.hierarchical_copies}}) {
    EXPECT_DOUBLE_EQ(x->local, y->local);
    EXPECT_DOUBLE_EQ(x->scale_up, y->scale_up);
    EXPECT_DOUBLE_EQ(x->network, y->network);
  }
}

struct FanOutCase {
  std::uint32_t num_experts, num_topk, num_ranks, ranks_per_node;
};

class FanOutReference : public ::testing::TestWithParam<FanOutCase> {};

// Masks (up to 64 ranks), stamps (beyond), uneven nodes, ranks that hold unequal counts.
TEST_P(FanOutReference, EqualsSlowCode) {
  const FanOutCase c = GetParam();
  const Routing routing = uniform_routing({c.num_experts, c.num_topk, 500, 13, 2}, 11);
  const Placement placement = place(routing, "random", c.num_ranks);
  const RankTokens tokens =
      deal_tokens(routing, c.num_ranks, std::nullopt, SequenceDeal::kRoundRobin);
  for (std::size_t layer = 0; layer < 2; ++layer) {
    expect_equal(fan_out(routing, layer, placement.layers[layer], c.ranks_per_node, tokens),
                 slow_fan_out(routing, layer, placement.layers[layer], c.ranks_per_node, tokens));
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, FanOutReference,
                         ::testing::Values(FanOutCase{64, 8, 8, 8}, FanOutCase{64, 6, 16, 8},
                                           FanOutCase{60, 4, 8, 4}, FanOutCase{256, 8, 64, 8},
                                           FanOutCase{256, 8, 65, 8}, FanOutCase{384, 8, 128, 8},
                                           FanOutCase{1024, 8, 1024, 8}, FanOutCase{32, 2, 5, 2},
                                           FanOutCase{16, 1, 4, 4}, FanOutCase{40, 20, 10, 3},
                                           FanOutCase{8, 3, 1, 1}));

// All replicated experts stand on the own rank: nothing is remote.
TEST(FanOut, ReplicaOnTheOwnRankIsPreferred) {
  const Routing routing = uniform_routing({4, 2, 100, 4, 1}, 1);
  const LayerPlacement everywhere{1, {{0, 1, 2, 3}, {0, 1, 2, 3}}};
  const RankTokens tokens = deal_tokens(routing, 2, std::nullopt, SequenceDeal::kRoundRobin);
  const FanOut result = fan_out(routing, 0, everywhere, 2, tokens);
  EXPECT_DOUBLE_EQ(result.fanout_ranks, 1.0);
  EXPECT_DOUBLE_EQ(result.remote_fanout_ranks, 0.0);
}

// P (1 - C(E - E/P, k) / C(E, k)) with E=64, k=8 is 3.66 / 5.43 / 6.75 at 4 / 8 / 16 ranks; the counted value of 200,000
// uniform tokens lies within 0.01 (ten standard errors: the fan-out of a token varies by < 1).
TEST(FanOut, HypergeometricKnownAnswers) {
  const Routing routing = uniform_routing({64, 8, 200'000, 64, 1}, 3);
  for (const auto& [ranks, expected] : {std::pair{4u, 3.66}, {8u, 5.43}, {16u, 6.75}}) {
    EXPECT_NEAR(uniform_fan_out(64, ranks, 8), expected, 0.005);
    const FanOut counted =
        fan_out(routing, 0, place(routing, "contiguous", ranks).layers[0], 8,
                deal_tokens(routing, ranks, std::nullopt, SequenceDeal::kRoundRobin));
    EXPECT_NEAR(counted.fanout_ranks, uniform_fan_out(64, ranks, 8), 0.01);
  }
}

// The closed form under DeepSeek-V3's rule: 256 experts on nodes of 8 GPUs, one group of experts per
// node, a token limited to 4 groups (drawn uniformly here; it binds at 8 nodes only).
TEST(FanOut, GroupLimitedKnownAnswers) {
  struct Answer {
    std::uint32_t ranks;
    double fanout_ranks, fanout_nodes;
  };
  for (const Answer& answer : {Answer{8, 5.295, 1.0}, Answer{16, 6.523, 1.993},
                               Answer{32, 7.267, 3.614}, Answer{64, 7.359, 3.629}}) {
    const std::uint32_t num_nodes = answer.ranks / 8;
    const std::uint32_t group_size = 256 / num_nodes;
    const std::uint32_t limit = std::min(4u, num_nodes);
    const RoutingShape shape{256, 8, 100'000, 64, 1};
    Routing routing = testing::empty_routing(shape);
    Random random(answer.ranks);
    std::vector<std::uint32_t> groups(num_nodes);
    std::iota(groups.begin(), groups.end(), 0u);
    for (std::uint64_t t = 0; t < shape.num_tokens; ++t) {
      random.shuffle(std::span(groups));
      std::vector<ExpertIdx> pool;
      for (std::uint32_t g = 0; g < limit; ++g) {
        for (std::uint32_t i = 0; i < group_size; ++i) {
          pool.push_back(static_cast<ExpertIdx>(groups[g] * group_size + i));
        }
      }
      for (std::uint32_t j = 0; j < 8; ++j) {
        std::swap(pool[j], pool[j + random.index(pool.size() - j)]);
        routing.experts.push_back(pool[j]);
      }
    }
    const FanOut counted =
        fan_out(routing, 0, place(routing, "contiguous", answer.ranks).layers[0], 8,
                deal_tokens(routing, answer.ranks, std::nullopt, SequenceDeal::kRoundRobin));
    EXPECT_NEAR(counted.fanout_ranks, answer.fanout_ranks, 0.015) << answer.ranks;
    EXPECT_NEAR(counted.fanout_nodes, answer.fanout_nodes, 0.01) << answer.ranks;
  }
}

// A token's experts fill ceil(k P / E) ranks at least: ceil(k P / E) <= fan-out <= min(k, P), remote <= fan-out <= copies.
TEST(FanOut, StaysWithinItsBounds) {
  const Routing routing = uniform_routing({32, 12, 2000, 10, 1}, 5);
  for (const std::uint32_t ranks : {1u, 2u, 4u, 8u, 16u, 32u}) {
    const FanOut counted =
        fan_out(routing, 0, place(routing, "random", ranks).layers[0], 4,
                deal_tokens(routing, ranks, std::nullopt, SequenceDeal::kInOrder));
    EXPECT_GE(counted.fanout_ranks, std::ceil(12.0 * ranks / 32.0));
    EXPECT_LE(counted.fanout_ranks, std::min(12.0, double{static_cast<double>(ranks)}));
    EXPECT_LE(counted.remote_fanout_ranks, counted.fanout_ranks);
    EXPECT_LE(counted.fanout_nodes, counted.fanout_ranks);
  }
}

// The planner and the counter share nothing but the host choice: their rows, pairs and loads agree,
// replicated experts included.
TEST(FanOut, AgreesWithThePlans) {
  const Routing routing = uniform_routing({32, 4, 600, 16, 1}, 8);
  for (const std::uint32_t replicas : {0u, 16u}) {
    const LayerPlacement layer = place(routing, "load_balanced", 16, replicas).layers[0];
    const RankTokens tokens = deal_tokens(routing, 16, std::nullopt, SequenceDeal::kRoundRobin);
    const FanOut counted = fan_out(routing, 0, layer, 4, tokens);
    for (const DispatchPolicy policy :
         {DispatchPolicy::kStandard, DispatchPolicy::kDedup, DispatchPolicy::kHierarchical}) {
      const LayerPlan plan = make_plan(routing, 0, layer, tokens, {policy, 4, PlanDetail::kCounts});
      TierRows rows;
      TierRows copies;
      for (const Stage& stage : plan.stages) {
        for (std::size_t i = 0; i < stage.num_transfers(); ++i) {
          const std::uint32_t src = stage.src[i];
          const std::uint32_t dst = stage.dst[i];
          double TierRows::*const tier = src == dst           ? &TierRows::local
                                         : src / 4 == dst / 4 ? &TierRows::scale_up
                                                              : &TierRows::network;
          rows.*tier += stage.num_rows[i] / 600.0;
          copies.*tier += stage.num_copies[i] / 600.0;
        }
      }
      const bool hierarchical = policy == DispatchPolicy::kHierarchical;
      const TierRows& expected = policy == DispatchPolicy::kStandard ? counted.standard
                                 : hierarchical                      ? counted.hierarchical
                                                                     : counted.dedup;
      const TierRows& pairs = hierarchical ? counted.hierarchical_copies : counted.standard;
      for (double TierRows::*const tier :
           {&TierRows::local, &TierRows::scale_up, &TierRows::network}) {
        EXPECT_NEAR(rows.*tier, expected.*tier, 1e-9) << to_string(policy) << replicas;
        EXPECT_NEAR(copies.*tier, pairs.*tier, 1e-9) << to_string(policy) << replicas;
      }
    }
  }
}

TEST(FanOut, RefusesRanksThatDoNotFit) {
  const Routing routing = uniform_routing({8, 2, 10, 2, 1}, 1);
  const RankTokens tokens = deal_tokens(routing, 2, std::nullopt, SequenceDeal::kRoundRobin);
  EXPECT_THROW(fan_out(routing, 0, place(routing, "contiguous", 4).layers[0], 4, tokens),
               InputError);
}

Routing three_sequences() {  // tokens 0-1, 2-4, 5-8
  Routing routing = testing::empty_routing({4, 1, 9, 1, 1});
  routing.sequence_begin = {0, 2, 5, 9};
  routing.experts.assign(9, 0);
  return routing;
}

using Tokens = std::vector<std::uint64_t>;

TEST(DealTokens, RoundRobinGivesEverySequenceOnce) {
  const RankTokens dealt =
      deal_tokens(three_sequences(), 2, std::nullopt, SequenceDeal::kRoundRobin);
  EXPECT_EQ(dealt.token_begin, (Tokens{0, 6, 9}));
  EXPECT_EQ(dealt.trace_token, (Tokens{0, 1, 5, 6, 7, 8, 2, 3, 4}));
}

TEST(DealTokens, InOrderGivesConsecutiveShares) {
  const RankTokens dealt = deal_tokens(three_sequences(), 2, std::nullopt, SequenceDeal::kInOrder);
  EXPECT_EQ(dealt.token_begin, (Tokens{0, 2, 9}));
  EXPECT_EQ(dealt.trace_token, (Tokens{0, 1, 2, 3, 4, 5, 6, 7, 8}));
}

TEST(DealTokens, MoreRanksThanSequencesLeavesSomeEmpty) {
  const RankTokens dealt =
      deal_tokens(three_sequences(), 5, std::nullopt, SequenceDeal::kRoundRobin);
  EXPECT_EQ(dealt.token_begin, (Tokens{0, 2, 5, 9, 9, 9}));
}

// Rank 0 is dealt sequences 0, 2, 1, ...; rank 1 sequences 1, 0, ...; the last one is cut.
TEST(DealTokens, FixedCountStartsOverAndCuts) {
  const RankTokens dealt = deal_tokens(three_sequences(), 2, 7, SequenceDeal::kRoundRobin);
  EXPECT_EQ(dealt.token_begin, (Tokens{0, 7, 14}));
  EXPECT_EQ(dealt.trace_token, (Tokens{0, 1, 5, 6, 7, 8, 2, 2, 3, 4, 0, 1, 5, 6}));
}

// P and S share a factor: a rank would see every third sequence only, were the walk not moved on.
TEST(DealTokens, FixedCountSeesTheWholeTraceBeforeItRepeats) {
  const RankTokens dealt = deal_tokens(three_sequences(), 3, 9, SequenceDeal::kRoundRobin);
  EXPECT_EQ(Tokens(dealt.trace_token.begin(), dealt.trace_token.begin() + 9),
            (Tokens{0, 1, 2, 3, 4, 5, 6, 7, 8}));
}

TEST(DealTokens, FirstSequenceRotates) {
  const RankTokens dealt =
      deal_tokens(three_sequences(), 1, std::nullopt, SequenceDeal::kRoundRobin, 4);
  EXPECT_EQ(dealt.trace_token, (Tokens{2, 3, 4, 5, 6, 7, 8, 0, 1}));
}

TEST(DealTokens, RefusesAnEmptyTrace) {
  Routing routing = three_sequences();
  routing.sequence_begin = {0};
  EXPECT_THROW(deal_tokens(routing, 1, std::nullopt, SequenceDeal::kRoundRobin), InputError);
}

}  // namespace
}  // namespace coterie
