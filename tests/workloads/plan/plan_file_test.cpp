// Plan files: round trip, determinism, and damage.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "core/error.hpp"
#include "core/file.hpp"
#include "tests/workloads/plan/plan_samples.hpp"
#include "tests/workloads/trace/sample.hpp"
#include "workloads/plan/check.hpp"

namespace coterie::testing {
namespace {

using ::testing::HasSubstr;

class PlanFile : public FolderTest {
 protected:
  // All three policies over tiny plans, or larger ones with weights and replicas.
  static DispatchPlan tiny_file() {
    DispatchPlan plan;
    plan.model = "tiny";
    plan.hidden = 256;
    plan.dispatch_payload = PayloadType::kFp8;
    for (const DispatchPolicy policy :
         {DispatchPolicy::kStandard, DispatchPolicy::kDedup, DispatchPolicy::kHierarchical}) {
      plan.layers.push_back(tiny_plan(policy));
      plan.layers.back().layer = static_cast<std::uint32_t>(plan.layers.size());
    }
    plan.layers[1].exact = false;
    return plan;
  }
  static DispatchPlan random_file(PlanDetail detail) {
    const Sample sample = random_sample(16, 64, 6, 2000, 8, 5);
    DispatchPlan plan;
    plan.model = "random";
    plan.hidden = 7168;
    for (const DispatchPolicy policy :
         {DispatchPolicy::kStandard, DispatchPolicy::kDedup, DispatchPolicy::kHierarchical}) {
      plan.layers.push_back(
          make_plan(sample.routing, 0, sample.placement, sample.tokens, {policy, 4, detail}));
    }
    return plan;
  }
  std::filesystem::path file() const { return folder_ / "a.plan"; }
  std::string refusal(const std::string& content) const {
    // Not write_file: thousands of flushes to disk would take long.
    std::ofstream(file(), std::ios::binary) << content;
    try {
      read_plan(file());
    } catch (const InputError& error) {
      return error.what();
    }
    return "accepted";
  }
};

void expect_equal(const LayerPlan& a, const LayerPlan& b) {
  EXPECT_EQ(a.policy, b.policy);
  EXPECT_EQ(a.layer, b.layer);
  EXPECT_EQ(a.num_ranks, b.num_ranks);
  EXPECT_EQ(a.ranks_per_node, b.ranks_per_node);
  EXPECT_EQ(a.num_experts, b.num_experts);
  EXPECT_EQ(a.num_topk, b.num_topk);
  EXPECT_EQ(a.exact, b.exact);
  EXPECT_EQ(a.token_begin, b.token_begin);
  EXPECT_EQ(a.experts, b.experts);
  EXPECT_EQ(a.weights, b.weights);
  EXPECT_EQ(a.rank_expert_begin, b.rank_expert_begin);
  EXPECT_EQ(a.rank_experts, b.rank_experts);
  EXPECT_EQ(a.rank_expert_tokens, b.rank_expert_tokens);
  ASSERT_EQ(a.stages.size(), b.stages.size());
  for (std::size_t s = 0; s < a.stages.size(); ++s) {
    EXPECT_EQ(a.stages[s].src, b.stages[s].src);
    EXPECT_EQ(a.stages[s].dst, b.stages[s].dst);
    EXPECT_EQ(a.stages[s].num_rows, b.stages[s].num_rows);
    EXPECT_EQ(a.stages[s].num_copies, b.stages[s].num_copies);
    EXPECT_EQ(a.stages[s].parent, b.stages[s].parent);
    EXPECT_EQ(a.stages[s].row_begin, b.stages[s].row_begin);
    EXPECT_EQ(a.stages[s].row_token, b.stages[s].row_token);
    EXPECT_EQ(a.stages[s].row_mask, b.stages[s].row_mask);
  }
}

TEST_F(PlanFile, RoundTrip) {
  for (const DispatchPlan& plan :
       {tiny_file(), random_file(PlanDetail::kRows), random_file(PlanDetail::kCounts)}) {
    write_plan(file(), plan);
    const DispatchPlan read = read_plan(file());
    EXPECT_EQ(read.model, plan.model);
    EXPECT_EQ(read.hidden, plan.hidden);
    EXPECT_EQ(read.dispatch_payload, plan.dispatch_payload);
    EXPECT_EQ(read.combine_payload, plan.combine_payload);
    ASSERT_EQ(read.layers.size(), plan.layers.size());
    for (std::size_t i = 0; i < plan.layers.size(); ++i) {
      expect_equal(read.layers[i], plan.layers[i]);
    }
  }
}

TEST_F(PlanFile, HoldsAllThatTheCheckerNeeds) {
  write_plan(file(), random_file(PlanDetail::kRows));
  EXPECT_THAT(check_plan(read_plan(file())).violations, ::testing::ElementsAre());
}

TEST_F(PlanFile, SamePlanSameBytes) {
  write_plan(file(), random_file(PlanDetail::kRows));
  const std::string first = read_file(file());
  write_plan(file(), random_file(PlanDetail::kRows));
  EXPECT_EQ(read_file(file()), first);
}

// Unsound plans can be written and read, so that the checker and not the reader judges them.
TEST_F(PlanFile, KeepsWhatTheCheckerShallFind) {
  DispatchPlan plan = tiny_file();
  plan.layers[0].stages[0].num_rows[1] = 7;
  write_plan(file(), plan);
  EXPECT_THAT(check_plan(read_plan(file())).violations,
              ::testing::Contains(HasSubstr("7 rows are counted, 2 are listed")));
}

// Every fifth length, as files take their time.
TEST_F(PlanFile, TruncationsAreRefused) {
  write_plan(file(), tiny_file());
  const std::string whole = read_file(file());
  ASSERT_GT(whole.size(), 500u);
  for (std::size_t length = 0; length < whole.size(); length += 5) {
    EXPECT_NE(refusal(whole.substr(0, length)), "accepted") << length << " bytes";
  }
  EXPECT_THAT(refusal(whole.substr(0, whole.size() - 3)), HasSubstr("truncated"));
  EXPECT_THAT(refusal(whole + "x"), HasSubstr("further bytes after the footer"));
}

TEST_F(PlanFile, FlippedBytesAreRefused) {
  write_plan(file(), tiny_file());
  const std::string whole = read_file(file());
  for (std::size_t i = 0; i < whole.size(); i += 5) {
    std::string damaged = whole;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x15);
    EXPECT_NE(refusal(damaged), "accepted") << "byte " << i;
  }
}

TEST_F(PlanFile, OtherFilesAreNamedAsSuch) {
  EXPECT_EQ(refusal("not a plan at all"),
            file().string() +
                ": found a file of another kind, expected a dispatch plan (`coterie plan build` "
                "writes them)");
  std::string later("MOEPLN\0\3", 8);
  EXPECT_EQ(refusal(later),
            file().string() + ": found version 3 of the plan format, expected version 2");
  EXPECT_THROW(read_plan(folder_ / "missing.plan"), InputError);
  EXPECT_THROW(read_plan(folder_), InputError);
}

// Checksums protect against accidents; a writer with a fault may still produce ids beyond the
// arrays they point into. Whoever reads the plan indexes with them, so the reader refuses.
TEST_F(PlanFile, IdsOutOfRangeAreRefused) {
  const auto message = [&](const auto& damage) -> std::string {
    DispatchPlan plan = tiny_file();
    damage(plan.layers[2]);
    write_plan(file(), plan);
    try {
      read_plan(file());
    } catch (const InputError& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_THAT(message([](LayerPlan& p) { p.stages[0].src[4] = 4; }),
              HasSubstr("found source rank 4, expected below 4"));
  EXPECT_THAT(message([](LayerPlan& p) { p.stages[0].dst[0] = 4; }),
              HasSubstr("found destination rank 4, expected below 4"));
  EXPECT_THAT(message([](LayerPlan& p) { p.stages[1].parent[0] = 5; }),
              HasSubstr("found parent transfer 5, expected below 5"));
  EXPECT_THAT(message([](LayerPlan& p) { p.stages[1].row_token[0] = 4; }),
              HasSubstr("found token 4, expected below 4"));
  EXPECT_THAT(message([](LayerPlan& p) { p.experts[0] = 8; }),
              HasSubstr("found expert 8, expected below 8"));
  EXPECT_THAT(message([](LayerPlan& p) { p.rank_experts[7] = 8; }),
              HasSubstr("found hosted expert 8, expected below 8"));
  EXPECT_THAT(message([](LayerPlan& p) { p.ranks_per_node = 3; }),
              HasSubstr("found 4 ranks and 3 per node, expected whole nodes of ranks"));
  EXPECT_THAT(message([](LayerPlan& p) { p.stages[0].row_begin[1] = 6; }),
              HasSubstr("expected ascending ends"));
  EXPECT_THAT(message([](LayerPlan& p) { p.num_topk = 33; }), HasSubstr("top-33"));
}

}  // namespace
}  // namespace coterie::testing
