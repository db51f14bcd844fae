// Collaboration pruning: hand-computed cases and Occult's bound on the fan-out.

#include "workloads/plan/prune.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.hpp"
#include "routings.hpp"
#include "tests/message_of.hpp"

namespace coterie {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatEq;
using testing::uniform_routing;

// Six experts on three ranks {0,1} {2,3} {4,5}; the training part has two tokens of top-3.
Placement three_ranks() {
  Placement placement;
  placement.num_experts = 6;
  placement.num_ranks = 3;
  placement.layers = {{1, {{0, 1}, {2, 3}, {4, 5}}}};
  return placement;
}
Routing one_layer(std::vector<ExpertIdx> experts, std::vector<float> weights) {
  Routing routing = testing::empty_routing({6, 3, experts.size() / 3, 1, 1});
  routing.experts = std::move(experts);
  routing.weights = std::move(weights);
  return routing;
}

// Mean weights over the two training tokens: 0: .3, 1: .1, 2: .2, 3: .25, 5: .15, 4: 0.
// Cosines with 4 are all 0; of 5 (only in token 1): with 0 (weights .4, .2): .2/sqrt(.2) = .447,
// with 3 (only in token 1): 1, with 1 and 2 (only in token 0): 0.
Routing training() {
  Routing routing = one_layer({0, 2, 1, 3, 5, 0}, {0.4f, 0.4f, 0.2f, 0.5f, 0.3f, 0.2f});
  return routing;
}

// The token 4 (.5), 0 (.3), 2 (.2): a budget of 2 ranks allows ranks 2 and 0 in score order, so
// that 2 is lost (.2 of 1.0). Free in those ranks are 1 (mean .1) and 5 (mean .15): 5 comes in at
// weight min(.15, .2).
TEST(Prune, ByRouterScoreByHand) {
  const PruneResult result = prune(one_layer({4, 0, 2}, {0.5f, 0.3f, 0.2f}), training(),
                                   three_ranks(), {PruneMethod::kRouterScore, 2});
  EXPECT_THAT(result.routing.experts, ElementsAre(4, 0, 5));
  EXPECT_THAT(result.routing.weights, ElementsAre(FloatEq(0.5f), FloatEq(0.3f), FloatEq(0.15f)));
  EXPECT_NEAR(result.weight_lost, 0.2, 1e-6);
  EXPECT_DOUBLE_EQ(result.top1_changed, 0.0);
}

// The mean weight of a newcomer is capped by the lowest recorded weight: the router preferred every
// recorded expert to it.
TEST(Prune, CapsTheWeightOfNewcomers) {
  const PruneResult result = prune(one_layer({4, 0, 2}, {0.9f, 0.06f, 0.04f}), training(),
                                   three_ranks(), {PruneMethod::kRouterScore, 2});
  EXPECT_THAT(result.routing.weights, ElementsAre(FloatEq(0.9f), FloatEq(0.06f), FloatEq(0.04f)));
}

// The scores rule the walk, not the recorded order: 2 (.5) and 4 (.3) come first, 0 (.2) is lost.
// Free are 3 (cosine with 0: .5*.2 / (.5 * sqrt(.2)) = .447) and 5 (.447 too); equal, so the higher
// mean weight decides for 3. Under kSimilarity it stands in with the weight of 0.
TEST(Prune, BySimilarityByHand) {
  const PruneResult result = prune(one_layer({0, 2, 4}, {0.2f, 0.5f, 0.3f}), training(),
                                   three_ranks(), {PruneMethod::kSimilarity, 2});
  EXPECT_THAT(result.routing.experts, ElementsAre(3, 2, 4));
  EXPECT_THAT(result.routing.weights, ElementsAre(FloatEq(0.2f), FloatEq(0.5f), FloatEq(0.3f)));
  EXPECT_NEAR(result.weight_lost, 0.2, 1e-6);
}

// 3 (.5), 1 (.3), 5 (.2) with ranks 1 and 0 allowed: 5 resembles 0 (.447) more than 2 (0).
TEST(Prune, PrefersTheMostSimilarExpert) {
  const PruneResult result = prune(one_layer({3, 1, 5}, {0.5f, 0.3f, 0.2f}), training(),
                                   three_ranks(), {PruneMethod::kSimilarity, 2});
  EXPECT_THAT(result.routing.experts, ElementsAre(3, 1, 0));
}

TEST(Prune, LeavesTokensWithinTheBudgetAlone) {
  const Routing routing = one_layer({0, 1, 2}, {0.5f, 0.3f, 0.2f});
  const PruneResult result =
      prune(routing, training(), three_ranks(), {PruneMethod::kRouterScore, 2});
  EXPECT_EQ(result.routing.experts, routing.experts);
  EXPECT_EQ(result.routing.weights, routing.weights);
  EXPECT_DOUBLE_EQ(result.weight_lost, 0.0);
}

TEST(Prune, RefusesWhatItCannotDo) {
  const Routing routing = one_layer({4, 0, 2}, {0.5f, 0.3f, 0.2f});
  EXPECT_EQ(message_of([&] {
              prune(routing, training(), three_ranks(), {PruneMethod::kRouterScore, 1});
            }),
            "prune: found a budget of 1 device, whose experts in layer 1 are fewer than the top-3 "
            "of a token; expected more devices, or fewer ranks with more experts each");
  EXPECT_EQ(message_of([&] {
              prune(routing, training(), three_ranks(), {PruneMethod::kRouterScore, 0});
            }),
            "prune: found a budget of 0 devices, expected at least 1");
  Routing bare = routing;
  bare.weights.clear();
  EXPECT_EQ(message_of([&] { prune(bare, training(), three_ranks(), {}); }),
            "trace: found no router weights, expected them for pruning, which ranks a token's "
            "experts by them");
  Placement replicated = three_ranks();
  replicated.layers[0].rank_experts[0] = {0, 1, 2};
  EXPECT_EQ(message_of([&] { prune(routing, training(), replicated, {}); }),
            "prune: found replicated experts in layer 1, expected one rank per expert, because the "
            "budget counts ranks");
  Placement other = three_ranks();
  other.layers[0].layer = 9;
  EXPECT_EQ(message_of([&] { prune(routing, training(), other, {}); }),
            "pruning: found no layer 9 in the evaluated part of the trace, expected every layer of "
            "the placement");
}

class PruneBudget : public ::testing::TestWithParam<PruneMethod> {};

// Occult: after pruning to d devices C_T <= d for every token. The routing stays sound, unpruned
// layers stay as they are, and a smaller budget loses more.
TEST_P(PruneBudget, BoundsTheFanOutOfEveryToken) {
  const Routing routing = uniform_routing({64, 6, 400, 8, 2}, 5);
  const Routing train = uniform_routing({64, 6, 600, 8, 2}, 6);
  PlacementRequest request;
  request.strategy = "collaboration";
  request.num_ranks = 8;
  Placement placement = make_placement(train, request);
  placement.layers.pop_back();  // only the first layer is pruned
  double previous_loss = 0.0;
  for (std::uint32_t budget = 6; budget >= 1; --budget) {
    const PruneResult result = prune(routing, train, placement, {GetParam(), budget});
    EXPECT_THAT(check(result.routing), ::testing::IsEmpty());
    const ExpertHosts hosts = expert_hosts(placement.layers[0], 64);
    const auto experts = result.routing.layer_experts(0);
    for (std::size_t begin = 0; begin < experts.size(); begin += 6) {
      std::uint64_t ranks = 0;
      for (std::size_t j = 0; j < 6; ++j) ranks |= 1u << hosts.ranks[experts[begin + j]];
      ASSERT_LE(std::popcount(ranks), static_cast<int>(budget));
    }
    EXPECT_TRUE(std::equal(result.routing.layer_experts(1).begin(),
                           result.routing.layer_experts(1).end(),
                           routing.layer_experts(1).begin()));
    EXPECT_GE(result.weight_lost, previous_loss);
    previous_loss = result.weight_lost;
  }
  EXPECT_GT(previous_loss, 0.3);
}

INSTANTIATE_TEST_SUITE_P(Methods, PruneBudget,
                         ::testing::Values(PruneMethod::kRouterScore, PruneMethod::kSimilarity),
                         [](const auto& test) {
                           return test.param == PruneMethod::kSimilarity ? "Similarity"
                                                                         : "RouterScore";
                         });

}  // namespace
}  // namespace coterie
