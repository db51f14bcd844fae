// The checker: sound plans pass, and every kind of damage to a plan is found.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "tests/workloads/plan/plan_samples.hpp"
#include "workloads/plan/check.hpp"

namespace coterie::testing {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

struct Mutation {
  std::string name;
  DispatchPolicy policy;
  std::function<void(LayerPlan&)> damage;  // to the plans of plan_test.cpp's known answers
  std::string expected;                    // part of one of the violations
};
void PrintTo(const Mutation& mutation, std::ostream* out) {
  *out << mutation.name;
}

class MutatedPlans : public ::testing::TestWithParam<Mutation> {};

TEST_P(MutatedPlans, AreFound) {
  LayerPlan plan = tiny_plan(GetParam().policy);
  const PayloadSizes sizes{Bytes{100}, Bytes{200}};
  ASSERT_EQ(check_plan(plan, sizes).num_violations, 0u);
  GetParam().damage(plan);
  const PlanCheck check = check_plan(plan, sizes);
  EXPECT_GT(check.num_violations, 0u);
  EXPECT_THAT(check.violations, Contains(HasSubstr(GetParam().expected)));
}

constexpr auto kStandard = DispatchPolicy::kStandard;
constexpr auto kDedup = DispatchPolicy::kDedup;
constexpr auto kHierarchical = DispatchPolicy::kHierarchical;

// Drops the last transfer, with its rows.
void drop_last(Stage& stage) {
  const std::size_t rows = stage.row_begin[stage.num_transfers() - 1];
  stage.src.pop_back();
  stage.dst.pop_back();
  stage.round.pop_back();
  std::erase(stage.answer_order, static_cast<std::uint32_t>(stage.src.size()));
  stage.num_rows.pop_back();
  stage.num_copies.pop_back();
  if (!stage.parent.empty()) stage.parent.pop_back();
  stage.row_begin.pop_back();
  stage.row_token.resize(rows);
  stage.row_mask.resize(rows);
}

const Mutation kMutations[] = {
    {"copy_left_out", kStandard, [](LayerPlan& p) { drop_last(p.stages[0]); },
     "token 3: expert 2 is served 0 times"},
    {"copy_served_twice", kDedup, [](LayerPlan& p) { p.stages[0].row_mask[0] = 3; },
     "token 0: expert 5 is served 2 times"},
    {"wrong_host", kDedup, [](LayerPlan& p) { p.stages[0].dst[1] = 0, p.stages[0].dst[0] = 1; },
     "token 0 goes there for expert 0, which the rank does not host"},
    {"foreign_token", kDedup, [](LayerPlan& p) { p.stages[0].row_token[0] = 2; },
     "token 2 is not the source's own"},
    {"rows_miscounted", kDedup, [](LayerPlan& p) { p.stages[0].num_rows[2] = 2; },
     "2 rows are counted, 1 are listed"},
    {"copies_miscounted", kDedup, [](LayerPlan& p) { p.stages[0].num_copies[2] = 1; },
     "1 copies are counted, 2 are listed"},
    {"bytes_follow_the_count", kDedup, [](LayerPlan& p) { p.stages[0].num_copies[2] = 1; },
     "112 bytes there and 200 back are accounted for, its rows are 120 and 200"},
    {"send_order", kDedup,
     [](LayerPlan& p) {
       std::swap(p.stages[0].dst[2], p.stages[0].dst[3]);
       std::swap(p.stages[0].row_token[2], p.stages[0].row_token[3]);
       std::swap(p.stages[0].row_mask[2], p.stages[0].row_mask[3]);
       std::swap(p.stages[0].num_copies[2], p.stages[0].num_copies[3]);
     },
     "out of send order"},
    {"pair_twice", kDedup, [](LayerPlan& p) { p.stages[0].dst[1] = 0; },
     "a second one of its kind"},
    {"token_order", kHierarchical,
     [](LayerPlan& p) {
       std::swap(p.stages[0].row_token[0], p.stages[0].row_token[1]);
       std::swap(p.stages[0].row_mask[0], p.stages[0].row_mask[1]);
     },
     "token 0 comes after 1"},
    {"token_twice_on_a_hop", kHierarchical, [](LayerPlan& p) { p.stages[0].row_token[1] = 0; },
     "token 0 is sent twice over the same hop"},
    {"two_experts_in_a_standard_row", kStandard, [](LayerPlan& p) { p.stages[0].row_mask[1] = 3; },
     "serves more than one expert"},
    {"off_the_rail", kHierarchical, [](LayerPlan& p) { p.stages[0].dst[1] = 3; },
     "it leaves its rail"},
    {"off_the_node", kHierarchical, [](LayerPlan& p) { p.stages[1].dst[2] = 3; },
     "it leaves its node"},
    {"wrong_parent", kHierarchical, [](LayerPlan& p) { p.stages[1].parent[2] = 3; },
     "token 1 was not brought by its parent"},
    {"parent_elsewhere", kHierarchical, [](LayerPlan& p) { p.stages[1].parent[2] = 1; },
     "its parent brings rows to rank 2"},
    {"more_than_the_parent_brought", kHierarchical,
     [](LayerPlan& p) { p.stages[1].row_mask[0] = 3; },
     "token 0 serves experts that its parent's row does not"},
    {"not_sent_on", kHierarchical, [](LayerPlan& p) { drop_last(p.stages[1]); },
     "a copy of token 2 is not sent on"},
    {"sent_on_twice", kHierarchical, [](LayerPlan& p) { p.stages[1].row_mask[4] = 7; },
     "a copy of token 3 is sent on twice"},
    {"rounds_of_a_flat_plan", kDedup, [](LayerPlan& p) { p.num_rounds = 2; },
     "2 rounds, where a plan of one hop has 1"},
    {"no_rounds", kHierarchical, [](LayerPlan& p) { p.num_rounds = 0; },
     "0 rounds, where a plan of one hop has 1"},
    {"round_id", kDedup, [](LayerPlan& p) { p.stages[0].round[0] = 1; }, "round 1 is not below 1"},
    {"wrong_round", kHierarchical,
     [](LayerPlan& p) {
       p = tiny_rounds();
       p.stages[0].round[4] = 0;  // rank 2 sends nothing else before it
     },
     "token 2 does not belong to round 0 of 2"},
    {"forwarded_in_another_round", kHierarchical,
     [](LayerPlan& p) {
       p = tiny_rounds();
       p.stages[1].round[3] = 0;
     },
     "its parent travels in round 1, it in round 0"},
    {"answer_id", kDedup, [](LayerPlan& p) { p.stages[0].answer_order[0] = 9; },
     "an answer to transfer 9, which does not exist"},
    {"answer_twice", kDedup, [](LayerPlan& p) { p.stages[0].answer_order[1] = 0; },
     "its answer is out of order, or a second one"},
    {"answer_order", kDedup,
     [](LayerPlan& p) { std::swap(p.stages[0].answer_order[1], p.stages[0].answer_order[2]); },
     "its answer is out of order"},
    {"hop", kHierarchical, [](LayerPlan& p) { p.stages[0].hop = HopKind::kGroup; },
     "hop group with dispatch and combine, where the policy has rail"},
    {"phase", kHierarchical, [](LayerPlan& p) { p.stages[1].back = Phase::kCombine; },
     "hop node with forward and combine, where the policy has node with forward and gather"},
    {"load", kDedup, [](LayerPlan& p) { ++p.rank_expert_tokens[3]; },
     "rank 1: expert 3 is said to serve 2 tokens, 1 arrive"},
    {"hosts", kDedup, [](LayerPlan& p) { p.rank_experts[1] = 2; },
     "expert 1, which the rank does not host"},
    {"hosts_order", kDedup, [](LayerPlan& p) { std::swap(p.rank_experts[0], p.rank_experts[1]); },
     "its hosted experts are not ascending"},
    {"expert_id", kDedup, [](LayerPlan& p) { p.experts[4] = 8; },
     "token 1: expert 8 is not below 8"},
    {"expert_twice", kDedup, [](LayerPlan& p) { p.experts[4] = 2; },
     "token 1: expert 2 is chosen twice"},
    {"rank_id", kDedup, [](LayerPlan& p) { p.stages[0].dst[8] = 4; }, "rank 3 or 4 is not below 4"},
    {"token_id", kDedup, [](LayerPlan& p) { p.stages[0].row_token[8] = 4; },
     "token 4 is not below 4"},
    {"empty_mask", kDedup, [](LayerPlan& p) { p.stages[0].row_mask[8] = 0; }, "names no expert"},
    {"mask_beyond_topk", kDedup, [](LayerPlan& p) { p.stages[0].row_mask[8] = 8; },
     "one beyond top-3"},
    {"parent_id", kHierarchical, [](LayerPlan& p) { p.stages[1].parent[0] = 5; },
     "parent 5 does not exist"},
    {"empty_transfer", kDedup, [](LayerPlan& p) { p.stages[0].row_begin[8] = 9; },
     "it carries no rows"},
    {"row_begins", kDedup, [](LayerPlan& p) { p.stages[0].row_begin[1] = 7; },
     "row_begin does not divide the rows"},
    {"columns", kDedup, [](LayerPlan& p) { p.stages[0].dst.pop_back(); }, "differ in length"},
    {"no_rows", kDedup,
     [](LayerPlan& p) {
       p.stages[0].row_begin.clear();
       p.stages[0].row_token.clear();
       p.stages[0].row_mask.clear();
     },
     "row_begin does not divide the rows"},
    {"stage_missing", kHierarchical, [](LayerPlan& p) { p.stages.pop_back(); },
     "1 stages, where the policy has 2"},
    {"policy", kStandard, [](LayerPlan& p) { p.policy = kHierarchical; },
     "1 stages, where the policy has 2"},
    {"ranks_per_node", kHierarchical, [](LayerPlan& p) { p.ranks_per_node = 3; },
     "4 ranks are not whole nodes of 3"},
    {"token_begins", kDedup, [](LayerPlan& p) { p.token_begin[1] = 3; },
     "token_begin does not divide"},
    {"owner_moved", kDedup, [](LayerPlan& p) { p.token_begin[1] = 1; },
     "token 1 is not the source's own"},
    {"weights", kDedup, [](LayerPlan& p) { p.weights.assign(11, 1.0f); },
     "11 router weights for 12 expert ids"},
    {"weight_value", kDedup, [](LayerPlan& p) { p.weights.assign(12, std::nanf("")); },
     "a router weight is not finite"},
};
INSTANTIATE_TEST_SUITE_P(Kinds, MutatedPlans, ::testing::ValuesIn(kMutations),
                         [](const auto& instance) { return instance.param.name; });

// Random damage: any change of one number in the stages of a plan is found. Exempt are changes that
// turn one sound plan into another, of which uniform routing of one host per expert has none.
TEST(Checker, FindsAnySingleChangeOfTheStages) {
  const Sample sample = random_sample(8, 32, 4, 200, 0, 3);
  const PayloadSizes sizes{Bytes{100}, Bytes{200}};
  for (const DispatchPolicy policy : {kStandard, kDedup, kHierarchical}) {
    const LayerPlan sound = make_plan(sample.routing, 0, sample.placement, sample.tokens,
                                      {policy, 4, PlanDetail::kRows, 5});
    ASSERT_EQ(check_plan(sound, sizes).num_violations, 0u);
    Random random(11);
    for (int i = 0; i < 300; ++i) {
      LayerPlan plan = sound;
      Stage& stage = plan.stages[random.index(plan.stages.size())];
      std::vector<std::vector<std::uint32_t>*> columns{
          &stage.src,       &stage.dst,      &stage.num_rows, &stage.num_copies,
          &stage.row_token, &stage.row_mask, &stage.round,    &stage.answer_order};
      if (!stage.parent.empty()) columns.push_back(&stage.parent);
      std::vector<std::uint32_t>& column = *columns[random.index(columns.size())];
      column[random.index(column.size())] ^= 1u << random.index(4);
      EXPECT_GT(check_plan(plan, sizes).num_violations, 0u) << to_string(policy) << " " << i;
    }
  }
}

TEST(Checker, AddsUpWhatAPlanMoves) {
  // Of the nine rows and twelve copies of the dedup known answer, two rows of one copy each stay on
  // their rank (0 to 0 and 2 to 2): seven rows and ten copies are remote.
  const PlanCheck check = check_plan(tiny_plan(kDedup), {Bytes{100}, Bytes{200}});
  EXPECT_EQ(check.totals.num_tokens, 4u);
  EXPECT_EQ(check.totals.num_copies, 12u);
  EXPECT_EQ(check.totals.num_rows, 9u);
  EXPECT_EQ(check.totals.num_remote_rows, 7u);
  EXPECT_EQ(check.totals.dispatch_bytes, 7 * (100 + 4) + 10 * 8);
  EXPECT_EQ(check.totals.combine_bytes, 7 * 200);
}

TEST(Checker, NamesTheLayerAndRecomputesTheRowSizes) {
  DispatchPlan file;
  file.hidden = 7168;
  file.dispatch_payload = PayloadType::kFp8;
  file.layers = {tiny_plan(kDedup), tiny_plan(kDedup)};
  file.layers[1].layer = 5;
  const PlanCheck sound = check_plan(file);
  EXPECT_EQ(sound.num_violations, 0u);
  EXPECT_EQ(sound.totals.dispatch_bytes, 2 * (7 * (7392 + 4) + 10 * 8));
  file.layers[1].rank_expert_tokens[0] = 9;
  EXPECT_THAT(
      check_plan(file).violations,
      ::testing::ElementsAre("layer 5: rank 0: expert 0 is said to serve 9 tokens, 2 arrive"));
}

}  // namespace
}  // namespace coterie::testing
