// Moves between placements, counted by hand.

#include "workloads/placement/moves.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "core/error.hpp"
#include "core/random.hpp"

namespace coterie {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

Placement placement_of(std::vector<std::vector<std::vector<ExpertIdx>>> layers,
                       std::uint32_t num_experts, std::uint32_t ranks_per_node) {
  Placement placement;
  placement.num_experts = num_experts;
  placement.num_ranks = static_cast<std::uint32_t>(layers.at(0).size());
  placement.ranks_per_node = ranks_per_node;
  for (auto& ranks : layers) {
    LayerPlacement layer;
    layer.layer = static_cast<std::uint32_t>(placement.layers.size() + 1);
    layer.rank_experts = std::move(ranks);
    placement.layers.push_back(layer);
  }
  return placement;
}

TEST(Moves, OnlyWhatChangesRanksMoves) {
  const Placement before = placement_of({{{0, 1}, {2, 3}}, {{0, 1}, {2, 3}}}, 4, 2);
  const Placement after = placement_of({{{0, 1}, {2, 3}}, {{0, 2}, {1, 3}}}, 4, 2);
  EXPECT_THAT(expert_moves(before, before), IsEmpty());
  EXPECT_THAT(expert_moves(before, after),
              ElementsAre(ExpertMove{1, 2, 1, 0}, ExpertMove{1, 1, 0, 1}));
}

// Expert 0 stands on ranks 0 and 1 and goes to 2 and 3: one copy from each. In the second case expert
// 1 can only come from rank 0, so that rank 1 sends expert 2, which both have.
TEST(Moves, ReplicasShareTheSending) {
  const Placement before = placement_of({{{0}, {0}, {1}, {1}}}, 2, 4);
  const Placement after = placement_of({{{1}, {1}, {0}, {0}}}, 2, 4);
  EXPECT_THAT(expert_moves(before, after),
              ElementsAre(ExpertMove{0, 1, 2, 0}, ExpertMove{0, 1, 3, 1}, ExpertMove{0, 0, 0, 2},
                          ExpertMove{0, 0, 1, 3}));
  const Placement crowded = placement_of({{{0, 1, 2}, {2}, {}, {}}}, 3, 4);
  const Placement spread = placement_of({{{0}, {}, {2}, {1}}}, 3, 4);
  EXPECT_THAT(expert_moves(crowded, spread),
              ElementsAre(ExpertMove{0, 2, 1, 2}, ExpertMove{0, 1, 0, 3}));
}

// Expert 0 stands on rank 0 and, in the other node, on rank 2: rank 3 takes it from its neighbour
// even though that one sends the other move as well.
TEST(Moves, SourcesAreInTheReceiversNode) {
  const Placement before = placement_of({{{0}, {1}, {0, 2}, {3}}}, 4, 2);
  const Placement after = placement_of({{{1}, {1}, {3}, {0, 2}}}, 4, 2);
  const std::vector<ExpertMove> moves = expert_moves(before, after);
  EXPECT_THAT(moves, ElementsAre(ExpertMove{0, 1, 1, 0}, ExpertMove{0, 3, 3, 2},
                                 ExpertMove{0, 0, 2, 3}, ExpertMove{0, 2, 2, 3}));
  const MoveCounts counts = count_moves(moves, 4, 2);
  EXPECT_EQ(counts.total, 4u);
  EXPECT_EQ(counts.between_nodes, 0u);
  EXPECT_EQ(counts.most_sent, 2u);      // rank 2
  EXPECT_EQ(counts.most_received, 2u);  // rank 3
  EXPECT_THAT(counts.pairs, ElementsAre(0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2, 0, 0, 1, 0));
}

TEST(Moves, CountsWhatCrossesNodes) {
  const Placement before = placement_of({{{0}, {1}, {2}, {3}}}, 4, 2);
  const Placement after = placement_of({{{2}, {0}, {1}, {3}}}, 4, 2);
  EXPECT_EQ(count_moves(expert_moves(before, after), 4, 2).between_nodes, 2u);  // 2 and 1
}

// The same sets under other ranks move nothing once the ranks are renumbered; nodes stay together.
TEST(Moves, RenumberingUndoesAPermutation) {
  const Placement before = placement_of({{{0, 1}, {2, 3}, {4, 5}, {6, 7}}}, 8, 2);
  const Placement swapped = placement_of({{{6, 7}, {4, 5}, {0, 1}, {2, 3}}}, 8, 2);
  EXPECT_THAT(expert_moves(before, renumbered_to_stay(before, swapped)), IsEmpty());
  // {0, 1} and {4, 5} share a node now: {2, 3} or {4, 5} has to move, and so has what it replaces.
  const Placement mixed = placement_of({{{0, 1}, {4, 5}, {2, 3}, {6, 7}}}, 8, 2);
  const Placement result = renumbered_to_stay(before, mixed);
  EXPECT_EQ(expert_moves(before, result).size(), 4u);
}

// Against all permutations of five ranks of one node.
TEST(Moves, RenumberingIsOptimal) {
  Random random(7);
  for (int trial = 0; trial < 20; ++trial) {
    const auto draw = [&] {
      std::vector<ExpertIdx> experts(20);
      std::iota(experts.begin(), experts.end(), ExpertIdx{0});
      random.shuffle(std::span(experts));
      std::vector<std::vector<ExpertIdx>> ranks(5);
      for (std::size_t i = 0; i < 20; ++i) ranks[i / 4].push_back(experts[i]);
      for (auto& rank : ranks) std::sort(rank.begin(), rank.end());
      return placement_of({ranks}, 20, 5);
    };
    const Placement before = draw();
    const Placement after = draw();
    std::vector<std::size_t> order(5);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::size_t least = 100;
    do {
      Placement other = after;
      for (std::size_t r = 0; r < 5; ++r) {
        other.layers[0].rank_experts[r] = after.layers[0].rank_experts[order[r]];
      }
      least = std::min(least, expert_moves(before, other).size());
    } while (std::next_permutation(order.begin(), order.end()));
    EXPECT_EQ(expert_moves(before, renumbered_to_stay(before, after)).size(), least);
  }
}

TEST(Moves, RefusesPlacementsOfOtherShapes) {
  const Placement before = placement_of({{{0, 1}, {2, 3}}}, 4, 2);
  EXPECT_THROW(expert_moves(before, placement_of({{{0}, {1}, {2}, {3}}}, 4, 2)), InputError);
  EXPECT_THROW(expert_moves(before, placement_of({{{0, 1}, {2, 3}}, {{0, 1}, {2, 3}}}, 4, 2)),
               InputError);
}

}  // namespace
}  // namespace coterie
