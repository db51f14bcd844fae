// What the ranks do with a plan: messages in order, worked out by hand, and their properties.

#include "workloads/plan/schedule.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <tuple>

#include "tests/workloads/plan/plan_samples.hpp"

namespace coterie {
void PrintTo(const PlanMessage& m, std::ostream* out) {
  *out << m.src << "->" << m.dst << " round " << m.round << ": " << m.num_rows << " rows "
       << m.num_copies << " copies, entries " << m.first << "+" << m.count;
}
}  // namespace coterie

namespace coterie::testing {
namespace {

using ::testing::ElementsAre;

// The two rounds of plan_test.cpp. Between nodes every transfer is a message; inside node {2 3} the
// rows that ranks 0 and 2 have for rank 3 travel together.
TEST(Schedule, MessagesOfTwoRounds) {
  const LayerPlan plan = tiny_rounds();
  EXPECT_THAT(stage_messages(plan.stages[0], Direction::kDispatch),
              ElementsAre(PlanMessage{0, 0, 0, 1, 1, 0, 1}, PlanMessage{0, 2, 0, 1, 2, 1, 1},
                          PlanMessage{0, 0, 1, 1, 2, 2, 1}, PlanMessage{0, 2, 1, 1, 1, 3, 1},
                          PlanMessage{2, 2, 1, 1, 2, 4, 1}, PlanMessage{2, 0, 1, 1, 1, 5, 1},
                          PlanMessage{3, 1, 1, 1, 3, 6, 1}));
  EXPECT_THAT(stage_messages(plan.stages[1], Direction::kDispatch),
              ElementsAre(PlanMessage{0, 0, 0, 1, 1, 0, 1}, PlanMessage{0, 0, 1, 1, 1, 1, 1},
                          PlanMessage{0, 1, 1, 1, 2, 2, 1}, PlanMessage{1, 1, 1, 1, 1, 3, 1},
                          PlanMessage{1, 0, 1, 1, 2, 4, 1}, PlanMessage{2, 2, 0, 1, 2, 5, 1},
                          PlanMessage{2, 2, 1, 1, 1, 6, 1}, PlanMessage{2, 3, 1, 2, 2, 7, 2}));
  EXPECT_THAT(stage_messages(plan.stages[1], Direction::kCombine),
              ElementsAre(PlanMessage{0, 0, 0, 1, 1, 0, 1}, PlanMessage{0, 0, 1, 1, 1, 1, 1},
                          PlanMessage{0, 1, 1, 1, 2, 2, 1}, PlanMessage{1, 1, 1, 1, 1, 3, 1},
                          PlanMessage{1, 0, 1, 1, 2, 4, 1}, PlanMessage{2, 2, 0, 1, 2, 5, 1},
                          PlanMessage{2, 2, 1, 1, 1, 6, 1}, PlanMessage{3, 2, 1, 2, 2, 7, 2}));
  EXPECT_THAT(stage_messages(plan.stages[0], Direction::kCombine),
              ElementsAre(PlanMessage{0, 0, 0, 1, 1, 0, 1}, PlanMessage{0, 0, 1, 1, 2, 1, 1},
                          PlanMessage{0, 2, 1, 1, 1, 2, 1}, PlanMessage{1, 3, 1, 1, 3, 3, 1},
                          PlanMessage{2, 0, 0, 1, 2, 4, 1}, PlanMessage{2, 2, 1, 1, 2, 5, 1},
                          PlanMessage{2, 0, 1, 1, 1, 6, 1}));
}

TEST(Schedule, Bytes) {
  const PlanMessage message{0, 1, 0, 3, 5, 0, 1};
  const PayloadSizes sizes{Bytes{100}, Bytes{200}};
  // Three rows with an index of 4 B each, five copies of 8 B; results carry nothing but themselves.
  EXPECT_EQ(message.bytes(Direction::kDispatch, sizes).value, 3 * 104 + 5 * 8);
  EXPECT_EQ(message.bytes(Direction::kCombine, sizes).value, 3 * 200);
}

TEST(Schedule, PeersOfEveryHop) {
  LayerPlan plan;
  plan.num_ranks = 8;
  plan.ranks_per_node = 4;
  // Rank 6 is the third of node 1.
  const HopPeers group = hop_peers(plan, HopKind::kGroup, 6);
  const HopPeers rail = hop_peers(plan, HopKind::kRail, 6);
  const HopPeers node = hop_peers(plan, HopKind::kNode, 6);
  EXPECT_EQ(std::tuple(group.num_peers, group.own, group.rank_of(3)), std::tuple(8u, 6u, 3u));
  EXPECT_EQ(std::tuple(rail.num_peers, rail.own, rail.rank_of(0)), std::tuple(2u, 1u, 2u));
  EXPECT_EQ(std::tuple(node.num_peers, node.own, node.rank_of(0)), std::tuple(4u, 2u, 4u));
  EXPECT_EQ(rail.number_of(2), 0u);
  EXPECT_EQ(rail.number_of(6), 1u);
  EXPECT_EQ(rail.number_of(10), std::nullopt);  // no such node
  EXPECT_EQ(rail.number_of(3), std::nullopt);   // another rail
  EXPECT_EQ(node.number_of(3), std::nullopt);   // another node
  EXPECT_EQ(node.number_of(8), std::nullopt);
}

// Both directions carry the same rows, every transfer in one message, and a rank sends at most one
// message to another per round.
TEST(Schedule, MessagesCoverTheTransfersOnce) {
  for (const DispatchPolicy policy :
       {DispatchPolicy::kStandard, DispatchPolicy::kDedup, DispatchPolicy::kHierarchical}) {
    const Sample sample = random_sample(12, 48, 5, 700, 6, 21);
    const LayerPlan plan = make_plan(sample.routing, 0, sample.placement, sample.tokens,
                                     {policy, 4, PlanDetail::kCounts, 9});
    for (const Stage& stage : plan.stages) {
      std::uint64_t rows = 0;
      for (const std::uint32_t n : stage.num_rows) rows += n;
      std::map<std::tuple<std::uint32_t, std::uint32_t, std::uint32_t>, std::uint32_t> there;
      for (const Direction direction : {Direction::kDispatch, Direction::kCombine}) {
        std::uint64_t sum = 0;
        std::uint32_t next = 0;
        for (const PlanMessage& m : stage_messages(stage, direction)) {
          EXPECT_EQ(m.first, next);
          next += m.count;
          sum += m.num_rows;
          if (direction == Direction::kDispatch) {
            EXPECT_TRUE(there.emplace(std::tuple(m.src, m.dst, m.round), m.num_rows).second);
          } else {
            EXPECT_EQ(there.at({m.dst, m.src, m.round}), m.num_rows);
            there.erase({m.dst, m.src, m.round});
          }
        }
        EXPECT_EQ(next, stage.num_transfers());
        EXPECT_EQ(sum, rows);
      }
      EXPECT_TRUE(there.empty());
    }
  }
}

}  // namespace
}  // namespace coterie::testing
