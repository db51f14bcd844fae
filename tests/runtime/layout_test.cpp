// Layouts against the plan they come from: what one rank sends is what the other expects, the
// blocks hold exactly the plan's bytes, and every copy reaches the rank that hosts its expert.

#include "runtime/executor/layout.hpp"

#include <gtest/gtest.h>

#include "core/error.hpp"
#include "tests/runtime/fixture.hpp"

namespace coterie {
namespace {

constexpr std::uint32_t kLayoutRanks = kSmallRanks;
constexpr std::uint32_t kLayoutHidden = 256;

class Layouts : public testing::TestWithParam<DispatchPolicy> {};

TEST_P(Layouts, SendersAndReceiversAgree) {
  const LayerPlan plan = small_plan(GetParam());
  std::vector<RankLayout> layouts;
  for (std::uint32_t rank = 0; rank < kLayoutRanks; ++rank) {
    layouts.push_back(make_rank_layout(plan, rank));
  }
  for (std::size_t h = 0; h < layouts[0].hops.size(); ++h) {
    for (std::uint32_t rank = 0; rank < kLayoutRanks; ++rank) {
      const Hop& hop = layouts[rank].hops[h];
      EXPECT_EQ(hop.send_ranks[0], rank);
      EXPECT_EQ(hop.recv_ranks[hop.recv_self], rank);
      for (std::size_t p = 0; p < hop.send_ranks.size(); ++p) {
        const Hop& other = layouts[hop.send_ranks[p]].hops[h];
        const auto at = std::find(other.recv_ranks.begin(), other.recv_ranks.end(), rank);
        ASSERT_NE(at, other.recv_ranks.end());
        const auto source = static_cast<std::size_t>(at - other.recv_ranks.begin());
        for (std::size_t r = 0; r < hop.rounds.size(); ++r) {
          const auto& expected = other.rounds[r].recv[source];
          EXPECT_EQ(hop.rounds[r].send[p].num_rows, expected.num_rows);
          EXPECT_EQ(hop.rounds[r].send[p].num_copies, expected.num_copies);
        }
      }
    }
  }
}

// The wire format counts what plans count (payload.hpp): payload, 4 bytes per row, 8 per copy.
TEST_P(Layouts, BlocksHoldThePlansBytes) {
  const LayerPlan plan = small_plan(GetParam());
  for (const auto& [payload, type] : {std::pair{PayloadType::kBf16, kernels::RowType::kBf16},
                                      std::pair{PayloadType::kFp8, kernels::RowType::kFp8}}) {
    const PayloadSizes sizes{row_payload(payload, kLayoutHidden),
                             row_payload(payload, kLayoutHidden)};
    for (std::size_t h = 0; h < plan.stages.size(); ++h) {
      std::int64_t planned = 0;
      for (std::size_t t = 0; t < plan.stages[h].num_transfers(); ++t) {
        planned += dispatch_bytes(plan.stages[h], t, sizes).value;
      }
      std::size_t laid_out = 0;
      for (std::uint32_t rank = 0; rank < kLayoutRanks; ++rank) {
        const RankLayout layout = make_rank_layout(plan, rank);
        for (const HopRound& round : layout.hops[h].rounds) {
          for (const auto& [rows, copies] : round.send) {
            laid_out += kernels::block_bytes(type, kLayoutHidden, rows, copies);
          }
        }
      }
      EXPECT_EQ(laid_out, static_cast<std::size_t>(planned));
    }
  }
}

TEST_P(Layouts, EveryCopyGoesToAHostOfItsExpert) {
  const LayerPlan plan = small_plan(GetParam());
  for (std::uint32_t rank = 0; rank < kLayoutRanks; ++rank) {
    const RankLayout layout = make_rank_layout(plan, rank);
    for (std::size_t i = 0; i < layout.token_slots.size(); ++i) {
      EXPECT_EQ(layout.slot_expert[layout.token_slots[i]],
                plan.experts[plan.token_begin[rank] * plan.num_topk + i]);
    }
    EXPECT_EQ(layout.expert_begin.back(), layout.hops.back().num_recv_copies);
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, Layouts,
                         testing::Values(DispatchPolicy::kStandard, DispatchPolicy::kDedup,
                                         DispatchPolicy::kHierarchical),
                         [](const auto& instance) { return to_string(instance.param); });

// Two replicas of an expert are two slots; which one serves a copy is the plan's choice, and both
// are used where both stand.
TEST(Layout, ReplicasAreSlotsOfTheirOwn) {
  const LayerPlan plan = small_plan(DispatchPolicy::kDedup, "load_balanced", 8);
  const RankLayout layout = make_rank_layout(plan, 3);
  EXPECT_EQ(layout.num_slots(), 24U);
  for (std::size_t i = 0; i < layout.token_slots.size(); ++i) {
    EXPECT_EQ(layout.slot_expert[layout.token_slots[i]],
              plan.experts[plan.token_begin[3] * plan.num_topk + i]);
  }
}

TEST(Layout, ADifferenceBetweenDeviceAndPlanIsFound) {
  const LayerPlan plan = small_plan(DispatchPolicy::kDedup);
  const RankLayout layout = make_rank_layout(plan, 2);
  std::vector<std::uint32_t> items;
  std::vector<std::uint32_t> masks;
  const Stage& stage = plan.stages[0];
  for (const std::uint32_t to : layout.hops[0].send_ranks) {
    for (std::size_t t = 0; t < stage.num_transfers(); ++t) {
      if (stage.src[t] != 2 || stage.dst[t] != to) continue;
      for (std::uint64_t row = stage.row_begin[t]; row < stage.row_begin[t + 1]; ++row) {
        items.push_back(stage.row_token[row] - static_cast<std::uint32_t>(plan.token_begin[2]));
        masks.push_back(stage.row_mask[row]);
      }
    }
  }
  EXPECT_EQ(compare_with_plan(plan, layout, items, masks), std::nullopt);
  masks[items.size() / 2] ^= 1U;
  EXPECT_NE(compare_with_plan(plan, layout, items, masks), std::nullopt);
  masks[items.size() / 2] ^= 1U;
  ++items.back();
  EXPECT_NE(compare_with_plan(plan, layout, items, masks), std::nullopt);
}

TEST(Layout, PlansOfCountsAndHalfNodesAreRefused) {
  const Routing routing = small_routing();
  PlacementRequest request;
  request.strategy = "contiguous";
  request.num_ranks = kLayoutRanks;
  request.ranks_per_node = 4;
  const Placement placement = make_placement(routing, request);
  const RankTokens tokens = deal_tokens(routing, kLayoutRanks, 20, SequenceDeal::kRoundRobin);
  const LayerPlan counts = make_plan(routing, 0, placement.layers[0], tokens,
                                     {DispatchPolicy::kDedup, 4, PlanDetail::kCounts});
  EXPECT_THROW((void)make_rank_layout(counts, 0), InputError);
  LayerPlan half = small_plan(DispatchPolicy::kHierarchical);
  half.ranks_per_node = 3;  // two nodes and a part of one
  EXPECT_THROW((void)make_rank_layout(half, 0), InputError);
}

}  // namespace
}  // namespace coterie
