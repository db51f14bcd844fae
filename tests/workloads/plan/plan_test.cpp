// The planners: answers written out by hand, comparison with slow obvious code, and properties.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <map>

#include "core/error.hpp"

#include "tests/workloads/plan/plan_samples.hpp"
#include "workloads/plan/check.hpp"
#include "workloads/plan/fan_out.hpp"

namespace coterie::testing {
namespace {

using ::testing::ElementsAre;

// A transfer with its rows, to compare with what a test writes down.
struct Transfer {
  std::uint32_t src, dst;
  std::vector<std::pair<std::uint32_t, std::uint32_t>> rows;  // token, mask
  std::uint32_t parent = 0;
  bool operator==(const Transfer&) const = default;
};
void PrintTo(const Transfer& transfer, std::ostream* out) {
  *out << transfer.src << "->" << transfer.dst << " parent " << transfer.parent << ":";
  for (const auto& [token, mask] : transfer.rows) *out << " t" << token << "/" << mask;
}

std::vector<Transfer> transfers_of(const Stage& stage) {
  std::vector<Transfer> result;
  for (std::size_t i = 0; i < stage.num_transfers(); ++i) {
    Transfer transfer{stage.src[i], stage.dst[i], {}, stage.parent.empty() ? 0 : stage.parent[i]};
    for (std::size_t row = stage.row_begin[i]; row < stage.row_begin[i + 1]; ++row) {
      transfer.rows.emplace_back(stage.row_token[row], stage.row_mask[row]);
    }
    result.push_back(std::move(transfer));
  }
  return result;
}

// The example of plan_samples.hpp, worked out on paper. Experts 2r and 2r + 1 are on rank r, so
//   t0 {0 5 4} -> ranks 0 2 2      t2 {6 1 5} -> ranks 3 0 2
//   t1 {2 3 7} -> ranks 1 1 3      t3 {0 1 2} -> ranks 0 0 1
// with t0 and t1 on rank 0, t2 on rank 2 and t3 on rank 3. Bit j of a mask is the j-th expert.

TEST(PlanKnownAnswer, Standard) {
  const LayerPlan plan = tiny_plan(DispatchPolicy::kStandard);
  ASSERT_EQ(plan.stages.size(), 1u);
  EXPECT_THAT(
      transfers_of(plan.stages[0]),
      ElementsAre(Transfer{0, 0, {{0, 1}}}, Transfer{0, 1, {{1, 1}, {1, 2}}},
                  Transfer{0, 2, {{0, 2}, {0, 4}}}, Transfer{0, 3, {{1, 4}}},
                  Transfer{2, 2, {{2, 4}}}, Transfer{2, 3, {{2, 1}}}, Transfer{2, 0, {{2, 2}}},
                  Transfer{3, 0, {{3, 1}, {3, 2}}}, Transfer{3, 1, {{3, 4}}}));
  EXPECT_THAT(plan.stages[0].num_copies, ElementsAre(1, 2, 2, 1, 1, 1, 1, 2, 1));
}

TEST(PlanKnownAnswer, Dedup) {
  const LayerPlan plan = tiny_plan(DispatchPolicy::kDedup);
  ASSERT_EQ(plan.stages.size(), 1u);
  EXPECT_THAT(
      transfers_of(plan.stages[0]),
      ElementsAre(Transfer{0, 0, {{0, 1}}}, Transfer{0, 1, {{1, 3}}}, Transfer{0, 2, {{0, 6}}},
                  Transfer{0, 3, {{1, 4}}}, Transfer{2, 2, {{2, 4}}}, Transfer{2, 3, {{2, 1}}},
                  Transfer{2, 0, {{2, 2}}}, Transfer{3, 0, {{3, 3}}}, Transfer{3, 1, {{3, 4}}}));
  EXPECT_THAT(plan.stages[0].num_rows, ElementsAre(1, 1, 1, 1, 1, 1, 1, 1, 1));
  EXPECT_THAT(plan.stages[0].num_copies, ElementsAre(1, 2, 2, 1, 1, 1, 1, 2, 1));
}

TEST(PlanKnownAnswer, Hierarchical) {  // nodes {0 1} and {2 3}
  const LayerPlan plan = tiny_plan(DispatchPolicy::kHierarchical);
  ASSERT_EQ(plan.stages.size(), 2u);
  EXPECT_THAT(
      transfers_of(plan.stages[0]),
      ElementsAre(Transfer{0, 0, {{0, 1}, {1, 3}}}, Transfer{0, 2, {{0, 6}, {1, 4}}},
                  Transfer{2, 2, {{2, 5}}}, Transfer{2, 0, {{2, 2}}}, Transfer{3, 1, {{3, 7}}}));
  EXPECT_THAT(transfers_of(plan.stages[1]),
              ElementsAre(Transfer{0, 0, {{0, 1}}, 0}, Transfer{0, 0, {{2, 2}}, 3},
                          Transfer{0, 1, {{1, 3}}, 0}, Transfer{1, 1, {{3, 4}}, 4},
                          Transfer{1, 0, {{3, 3}}, 4}, Transfer{2, 2, {{0, 6}}, 1},
                          Transfer{2, 2, {{2, 4}}, 2}, Transfer{2, 3, {{1, 4}}, 1},
                          Transfer{2, 3, {{2, 1}}, 2}));
}

// The same in two rounds of about one row: a source's tokens are halved, [0, T/2) and [T/2, T), so
// that t0 travels in round 0 and t1, t2 and t3 (the only ones of their ranks) in round 1.
TEST(PlanKnownAnswer, HierarchicalInTwoRounds) {
  const LayerPlan plan = tiny_rounds();
  EXPECT_EQ(plan.num_rounds, 2u);
  const Stage& rail = plan.stages[0];
  const Stage& node = plan.stages[1];
  EXPECT_EQ(rail.hop, HopKind::kRail);
  EXPECT_EQ(node.hop, HopKind::kNode);
  EXPECT_EQ(node.out, Phase::kForward);
  EXPECT_EQ(node.back, Phase::kGather);
  EXPECT_THAT(transfers_of(rail), ElementsAre(Transfer{0, 0, {{0, 1}}}, Transfer{0, 2, {{0, 6}}},
                                              Transfer{0, 0, {{1, 3}}}, Transfer{0, 2, {{1, 4}}},
                                              Transfer{2, 2, {{2, 5}}}, Transfer{2, 0, {{2, 2}}},
                                              Transfer{3, 1, {{3, 7}}}));
  EXPECT_THAT(rail.round, ElementsAre(0, 0, 1, 1, 1, 1, 1));
  // Rank 0 answers itself in round 0, itself and rank 2 in round 1; rank 1 answers rank 3; rank 2
  // answers rank 0 in round 0, then itself and rank 0.
  EXPECT_THAT(rail.answer_order, ElementsAre(0, 2, 5, 6, 1, 4, 3));
  EXPECT_THAT(transfers_of(node),
              ElementsAre(Transfer{0, 0, {{0, 1}}, 0}, Transfer{0, 0, {{2, 2}}, 5},
                          Transfer{0, 1, {{1, 3}}, 2}, Transfer{1, 1, {{3, 4}}, 6},
                          Transfer{1, 0, {{3, 3}}, 6}, Transfer{2, 2, {{0, 6}}, 1},
                          Transfer{2, 2, {{2, 4}}, 4}, Transfer{2, 3, {{1, 4}}, 3},
                          Transfer{2, 3, {{2, 1}}, 4}));
  EXPECT_THAT(node.round, ElementsAre(0, 1, 1, 1, 1, 0, 1, 1, 1));
  EXPECT_THAT(node.answer_order, ElementsAre(0, 1, 4, 3, 2, 5, 6, 7, 8));
}

// At most num_topk of the nodes are hit, so that of T tokens T * min(k, nodes) / nodes go to one.
TEST(PlanKnownAnswer, NumberOfRounds) {
  const Sample sample = random_sample(8, 32, 2, 400, 0, 1);
  const auto rounds = [&](std::uint32_t ranks_per_node, std::optional<std::uint32_t> rows) {
    return make_plan(sample.routing, 0, sample.placement, sample.tokens,
                     {DispatchPolicy::kHierarchical, ranks_per_node, PlanDetail::kCounts, rows})
        .num_rounds;
  };
  std::uint64_t most = 0;
  for (int rank = 0; rank < 8; ++rank) {
    most = std::max(most, sample.tokens.token_begin[rank + 1] - sample.tokens.token_begin[rank]);
  }
  EXPECT_EQ(rounds(2, 10), (most * 2 / 4 + 9) / 10);  // four nodes, top-2
  EXPECT_EQ(rounds(4, 10), (most + 9) / 10);          // two nodes
  EXPECT_EQ(rounds(8, 10), 1u);                       // nothing to pass on
  EXPECT_EQ(rounds(2, std::nullopt), 1u);
  EXPECT_EQ(rounds(2, 1u << 30), 1u);
}

TEST(PlanKnownAnswer, AnswersOfAFlatPlan) {
  // Dedup sends 0: {0 1 2 3}, 2: {2 3 0}, 3: {0 1}, the transfers 0-3, 4-6, 7-8. Answering rank 0:
  // itself, then ranks 2 and 3; rank 1: ranks 3 and 0; rank 2: itself, rank 0; rank 3: ranks 0, 2.
  EXPECT_THAT(tiny_plan(DispatchPolicy::kDedup).stages[0].answer_order,
              ElementsAre(0, 6, 7, 8, 1, 4, 2, 3, 5));
}

TEST(PlanKnownAnswer, LoadsAndShape) {
  const LayerPlan plan = tiny_plan(DispatchPolicy::kDedup);
  EXPECT_THAT(plan.token_begin, ElementsAre(0, 2, 2, 3, 4));
  EXPECT_THAT(plan.experts, ElementsAre(0, 5, 4, 2, 3, 7, 6, 1, 5, 0, 1, 2));
  EXPECT_THAT(plan.rank_expert_begin, ElementsAre(0, 2, 4, 6, 8));
  EXPECT_THAT(plan.rank_experts, ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
  EXPECT_THAT(plan.rank_expert_tokens, ElementsAre(2, 2, 2, 1, 1, 2, 1, 1));
}

TEST(PlanKnownAnswer, Bytes) {
  // FP8 at hidden 7168 is 7168 + 7168 / 128 * 4.
  EXPECT_EQ(row_payload(PayloadType::kFp8, 7168).value, 7392);
  EXPECT_EQ(row_payload(PayloadType::kBf16, 7168).value, 14336);
  // 130 values are two groups, so two scales: 130 + 8.
  EXPECT_EQ(row_payload(PayloadType::kFp8, 130).value, 138);
  const LayerPlan plan = tiny_plan(DispatchPolicy::kStandard);
  const PayloadSizes sizes{Bytes{100}, Bytes{200}};
  // Two rows with a 4-byte index each, two copies with 8 bytes each.
  EXPECT_EQ(dispatch_bytes(plan.stages[0], 1, sizes).value, 2 * 104 + 2 * 8);
  EXPECT_EQ(combine_bytes(plan.stages[0], 1, sizes).value, 2 * 200);
}

// The rule of make_plan on three nodes of two ranks. Expert 0 stands on ranks 0, 2 and 4; experts 1
// to 5 on the rank of their number.
TEST(PlanKnownAnswer, Replicas) {
  LayerPlacement placement;
  placement.rank_experts = {{0}, {1}, {0, 2}, {3}, {0, 4}, {5}};
  const auto served_at = [&](std::uint32_t owner, std::vector<ExpertIdx> experts) {
    Routing routing;
    routing.num_experts = 6;
    routing.num_topk = static_cast<std::uint32_t>(experts.size());
    routing.layers = {0};
    routing.sequence_begin = {0, 1};
    routing.experts = std::move(experts);
    RankTokens tokens;
    for (std::uint32_t rank = 0; rank <= 6; ++rank) tokens.token_begin.push_back(rank > owner);
    tokens.trace_token = {0};
    const LayerPlan plan =
        make_plan(routing, 0, placement, tokens, {DispatchPolicy::kStandard, 2, PlanDetail::kRows});
    for (const Transfer& transfer : transfers_of(plan.stages[0])) {
      if (transfer.rows[0].second == 1) return transfer.dst;  // the first expert of the token
    }
    return 99u;
  };
  EXPECT_EQ(served_at(2, {0, 1}), 2u);  // the own rank
  EXPECT_EQ(served_at(5, {0, 1}), 4u);  // the own node
  EXPECT_EQ(served_at(3, {0, 4}), 2u);  // the own node before a rank it goes to anyway
  LayerPlacement elsewhere = placement;
  elsewhere.rank_experts[0] = {};
  placement = elsewhere;
  EXPECT_EQ(served_at(1, {0, 4}), 4u);  // neither: rank 4, where expert 4 takes it anyway
  EXPECT_EQ(served_at(1, {0, 2}), 2u);
}

// ------------------------------------------------------------ random plans

struct Shape {
  std::uint32_t num_ranks, ranks_per_node, num_experts, num_topk;
  std::uint32_t num_replicas;
  std::uint64_t num_tokens;
};
void PrintTo(const Shape& shape, std::ostream* out) {
  *out << shape.num_ranks << " ranks, " << shape.num_experts << " experts, top-" << shape.num_topk;
}

class RandomPlans : public ::testing::TestWithParam<Shape> {
 protected:
  void SetUp() override {
    const Shape& shape = GetParam();
    sample_ = random_sample(shape.num_ranks, shape.num_experts, shape.num_topk, shape.num_tokens,
                            shape.num_replicas, /*seed=*/7);
  }
  LayerPlan plan(DispatchPolicy policy, PlanDetail detail = PlanDetail::kRows) const {
    return make_plan(sample_.routing, 0, sample_.placement, sample_.tokens,
                     {policy, GetParam().ranks_per_node, detail, rows_per_round_});
  }
  Sample sample_;
  std::optional<std::uint32_t> rows_per_round_ = 7;
};

constexpr DispatchPolicy kPolicies[] = {DispatchPolicy::kStandard, DispatchPolicy::kDedup,
                                        DispatchPolicy::kHierarchical};

TEST_P(RandomPlans, EveryCopyIsServedOnce) {
  for (const auto rows : {std::optional<std::uint32_t>{}, std::optional<std::uint32_t>{7}}) {
    rows_per_round_ = rows;
    for (const DispatchPolicy policy : kPolicies) {
      const PlanCheck check = check_plan(plan(policy), {Bytes{7392}, Bytes{14336}});
      EXPECT_THAT(check.violations, ElementsAre()) << to_string(policy);
      EXPECT_EQ(check.totals.num_copies, GetParam().num_tokens * GetParam().num_topk);
    }
  }
}

TEST_P(RandomPlans, CountsAloneAreThoseOfTheRows) {
  for (const DispatchPolicy policy : kPolicies) {
    const LayerPlan rows = plan(policy);
    const LayerPlan counts = plan(policy, PlanDetail::kCounts);
    EXPECT_FALSE(counts.has_rows());
    EXPECT_TRUE(counts.experts.empty());
    EXPECT_EQ(counts.rank_expert_tokens, rows.rank_expert_tokens);
    for (std::size_t s = 0; s < rows.stages.size(); ++s) {
      EXPECT_EQ(counts.stages[s].src, rows.stages[s].src);
      EXPECT_EQ(counts.stages[s].dst, rows.stages[s].dst);
      EXPECT_EQ(counts.stages[s].num_rows, rows.stages[s].num_rows);
      EXPECT_EQ(counts.stages[s].num_copies, rows.stages[s].num_copies);
      EXPECT_EQ(counts.stages[s].parent, rows.stages[s].parent);
    }
  }
}

// Slow obvious code: a map from (source, steps to the destination) to its rows.
TEST_P(RandomPlans, FlatPoliciesEqualTheReference) {
  if (GetParam().num_replicas > 0) return;  // the reference knows one host per expert
  const std::uint32_t num_ranks = GetParam().num_ranks;
  const std::uint32_t k = GetParam().num_topk;
  std::vector<std::uint32_t> host(GetParam().num_experts);
  for (std::uint32_t rank = 0; rank < num_ranks; ++rank) {
    for (const ExpertIdx expert : sample_.placement.rank_experts[rank]) host[expert] = rank;
  }
  for (const bool merge : {false, true}) {
    std::map<std::pair<std::uint32_t, std::uint32_t>, Transfer> expected;
    for (std::uint32_t src = 0; src < num_ranks; ++src) {
      for (std::uint64_t t = sample_.tokens.token_begin[src];
           t < sample_.tokens.token_begin[src + 1]; ++t) {
        for (std::uint32_t j = 0; j < k; ++j) {
          const std::uint32_t dst =
              host[sample_.routing.experts[sample_.tokens.trace_token[t] * k + j]];
          Transfer& transfer = expected[{src, (dst + num_ranks - src) % num_ranks}];
          transfer.src = src;
          transfer.dst = dst;
          if (merge && !transfer.rows.empty() && transfer.rows.back().first == t) {
            transfer.rows.back().second |= 1u << j;
          } else {
            transfer.rows.emplace_back(static_cast<std::uint32_t>(t), 1u << j);
          }
        }
      }
    }
    std::vector<Transfer> list;
    for (auto& [key, transfer] : expected) list.push_back(transfer);
    EXPECT_EQ(
        transfers_of(plan(merge ? DispatchPolicy::kDedup : DispatchPolicy::kStandard).stages[0]),
        list);
  }
}

struct Rows {
  std::uint64_t all = 0, remote = 0, off_node = 0;
};
Rows rows_of(const Stage& stage, std::uint32_t ranks_per_node) {
  Rows rows;
  for (std::size_t i = 0; i < stage.num_transfers(); ++i) {
    rows.all += stage.num_rows[i];
    if (stage.src[i] != stage.dst[i]) rows.remote += stage.num_rows[i];
    if (stage.src[i] / ranks_per_node != stage.dst[i] / ranks_per_node) {
      rows.off_node += stage.num_rows[i];
    }
  }
  return rows;
}

// By definition remote fan-out <= fan-out <= copies, and the same for nodes; the plans' rows
// are what fan_out counts without planning.
TEST_P(RandomPlans, RowsAreTheFanOut) {
  const std::uint32_t size = GetParam().ranks_per_node;
  const Rows standard = rows_of(plan(DispatchPolicy::kStandard).stages[0], size);
  const Rows dedup = rows_of(plan(DispatchPolicy::kDedup).stages[0], size);
  const LayerPlan two_level = plan(DispatchPolicy::kHierarchical);
  const Rows to_nodes = rows_of(two_level.stages[0], size);
  const Rows to_ranks = rows_of(two_level.stages[1], size);
  EXPECT_EQ(standard.all, GetParam().num_tokens * GetParam().num_topk);
  EXPECT_LE(dedup.remote, dedup.all);
  EXPECT_LE(dedup.all, standard.all);
  EXPECT_LE(to_nodes.off_node, dedup.off_node);
  EXPECT_EQ(to_nodes.remote, to_nodes.off_node);
  EXPECT_EQ(to_ranks.all, dedup.all);
  EXPECT_EQ(to_ranks.off_node, 0u);
  if (GetParam().num_tokens == 0) return;

  const FanOut counted =
      fan_out(sample_.routing, 0, sample_.placement, GetParam().ranks_per_node, sample_.tokens);
  const auto per_token = [&](std::uint64_t rows) {
    return static_cast<double>(rows) / static_cast<double>(GetParam().num_tokens);
  };
  EXPECT_DOUBLE_EQ(counted.fanout_ranks, per_token(dedup.all));
  EXPECT_DOUBLE_EQ(counted.remote_fanout_ranks, per_token(dedup.remote));
  EXPECT_DOUBLE_EQ(counted.fanout_nodes, per_token(to_nodes.all));
  EXPECT_DOUBLE_EQ(counted.remote_fanout_nodes, per_token(to_nodes.off_node));
}

INSTANTIATE_TEST_SUITE_P(Shapes, RandomPlans,
                         ::testing::Values(Shape{1, 1, 8, 2, 0, 50}, Shape{4, 2, 8, 3, 0, 200},
                                           Shape{8, 8, 64, 8, 0, 500}, Shape{16, 4, 64, 8, 0, 1000},
                                           Shape{12, 4, 36, 1, 0, 300},
                                           Shape{16, 4, 64, 6, 16, 1000}, Shape{6, 2, 7, 7, 0, 100},
                                           Shape{16, 8, 16, 4, 0, 5},  // more ranks than tokens
                                           Shape{4, 4, 40, 32, 0, 60},
                                           Shape{8, 2, 16, 4, 24, 400}));

// ------------------------------------------------------------ bad requests

TEST(PlanRequests, AreRefusedWithOneSentence) {
  const Sample sample = random_sample(4, 8, 2, 10, 0, 1);
  const auto message = [](const auto& call) -> std::string {
    try {
      call();
    } catch (const InputError& error) {
      return error.what();
    }
    return "accepted";
  };
  const auto plan = [](const Sample& s, std::size_t layer_idx, std::uint32_t ranks_per_node) {
    make_plan(s.routing, layer_idx, s.placement, s.tokens,
              {DispatchPolicy::kDedup, ranks_per_node, PlanDetail::kRows});
  };
  EXPECT_EQ(message([&] { plan(sample, 0, 3); }),
            "plan: found 4 ranks and 3 ranks per node, expected whole nodes");
  EXPECT_EQ(
      message([&] { plan(sample, 1, 2); }),
      "plan: found layer position 1, expected less than 1, the number of layers of the trace");
  Sample fewer = sample;
  fewer.placement.rank_experts.pop_back();
  EXPECT_EQ(message([&] { plan(fewer, 0, 1); }),
            "plan: found a placement over 3 ranks and tokens for 4, expected the same number of "
            "ranks");
  Sample foreign = sample;
  foreign.tokens.trace_token[0] = 10;
  EXPECT_EQ(message([&] { plan(foreign, 0, 1); }),
            "plan: the ranks' tokens do not fit the trace they were dealt from");
  Sample homeless = sample;
  homeless.placement.rank_experts[0].erase(homeless.placement.rank_experts[0].begin());
  EXPECT_NE(message([&] { plan(homeless, 0, 1); }), "accepted");
  Sample beyond = sample;
  beyond.routing.experts[3] = 8;
  EXPECT_EQ(message([&] { plan(beyond, 0, 1); }),
            "plan of layer 0: token 1 chooses expert 8, expected less than 8");
}

}  // namespace
}  // namespace coterie::testing
