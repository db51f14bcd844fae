// `coterie drift` as scripts use it, on traces whose every number is counted by hand.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/sim/cli/program.hpp"
#include "workloads/trace/moet.hpp"

namespace coterie::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class DriftCommand : public ProgramTest {
 protected:
  // Top-2 of four experts in one layer: half of the tokens choose {a, b}, half the other two.
  void put_trace(const std::string& name, ExpertIdx a, ExpertIdx b) const {
    Routing routing;
    routing.origin = name;
    routing.num_experts = 4;
    routing.num_topk = 2;
    routing.layers = {0};
    for (std::uint64_t s = 0; s <= 8; ++s) routing.sequence_begin.push_back(16 * s);
    for (int t = 0; t < 64; ++t) {
      for (ExpertIdx expert = 0; expert < 4; ++expert) {
        if (expert == a || expert == b) routing.experts.push_back(expert);
      }
      for (ExpertIdx expert = 0; expert < 4; ++expert) {
        if (expert != a && expert != b) routing.experts.push_back(expert);
      }
    }
    put(name, "");
    write_moet(folder_ / "work" / name, routing);
  }
  void SetUp() override {
    ProgramTest::SetUp();
    put_trace("across.moet", 0, 2);
    put_trace("inside.moet", 0, 1);
    put("small.yaml",
        "schema_version: 1\nname: small\ndescription: four experts\nnum_layers: 1\n"
        "moe_layers: {first: 0, step: 1}\nhidden: 128\nexpert_intermediate: 64\nnum_experts: 4\n"
        "num_topk: 2\nnum_shared_experts: 0\nrouting: softmax\n");
  }
  const std::string base_ = "drift across.moet inside.moet --ranks 2 --tokens-per-rank 16 ";
  const std::string drift_ = base_ + "--model small.yaml --window 64 ";
};

// Windows of 64 tokens in two steps of 32: two of each trace. Experts 0 and 2 belong together in the
// first, so ranks hold {0, 2} and {1, 3}, and two experts of 3 * 128 * 64 * 2 = 49,152 B move away
// from contiguous. In the second trace contiguous is right: static is at 2 ranks per token in two of
// three windows, periodic, which learns it a window late, in one, and per batch in none.
TEST_F(DriftCommand, CountsFanOutMovesAndBreakEven) {
  const auto document = json_of(drift_);
  EXPECT_EQ(document["expert_bytes"], 49152.0);
  EXPECT_EQ(document["window_traces"],
            (nlohmann::json{"across.moet", "across.moet", "inside.moet", "inside.moet"}));
  const auto& policies = document["policies"];
  EXPECT_EQ(policies[0]["window_fan_out"], (nlohmann::json{2.0, 1.0, 1.0}));
  EXPECT_EQ(policies[1]["window_fan_out"], (nlohmann::json{1.0, 2.0, 2.0}));
  EXPECT_EQ(policies[2]["window_fan_out"], (nlohmann::json{1.0, 2.0, 1.0}));
  EXPECT_EQ(policies[3]["window_fan_out"], (nlohmann::json{1.0, 1.0, 1.0}));
  EXPECT_EQ(policies[1]["num_replacings"], 1);
  EXPECT_EQ(policies[1]["moved_bytes"], 2 * 49152.0);
  EXPECT_EQ(policies[1]["most_received_bytes"], 49152.0);
  // Before windows 2 and 3, of which only the last moves anything; before each of six steps.
  EXPECT_EQ(policies[2]["num_replacings"], 2);
  EXPECT_EQ(policies[2]["moved_bytes"], 49152.0);
  EXPECT_EQ(policies[3]["num_replacings"], 6);
  EXPECT_NEAR(policies[3]["moved_bytes"], 2 * 49152.0 / 6.0, 1e-9);
  // Periodic saves, in a third of the steps, half of the tokens' second rank, which is remote for all
  // of them or for half (a token at 1 rank is remote half of the time, at 2 always once): 0.5 rows of
  // 2 * 256 B each way for 32 tokens.
  EXPECT_NEAR(policies[2]["gain_bytes"], 0.5 * 512 * 32 / 3.0, 1e-6);
  EXPECT_NEAR(policies[2]["break_even_steps"], 49152.0 / (0.5 * 512 * 32 / 3.0), 1e-6);
}

// Two transfers, one each way, of 49,152 B at the speed of the node's links: the move's time is a
// property of the fabric alone, and the steps to break even are that over the gain.
TEST_F(DriftCommand, TimesMovesOnTheCluster) {
  const auto document = json_of(drift_ + "--topology h100_node");
  const auto& periodic = document["policies"][2];
  EXPECT_GT(periodic["move_s"], 0.0);
  EXPECT_NEAR(document["policies"][1]["move_s"], 2.0 * double(periodic["move_s"]), 1e-12);
  const double gain = periodic["gain_s"];
  if (gain > 0.0) {
    EXPECT_NEAR(periodic["break_even_steps"], double(periodic["move_s"]) / gain, 1e-6);
  }
  EXPECT_THAT(run(drift_ + "--topology h100_node").out,
              AllOf(HasSubstr("break even"), HasSubstr("beside steps us")));
}

// Every token tells the same, so that all draws of the 64 even tokens reach 1 rank per token. Fewer
// are not tried.
TEST_F(DriftCommand, DrawsALearningCurve) {
  const auto curve = json_of(drift_ + "--curve 3")["curve"];
  ASSERT_EQ(curve.size(), 2U);
  EXPECT_EQ(curve[0]["trace"], "across.moet");
  EXPECT_EQ(curve[0]["tokens"], 64);
  EXPECT_EQ(curve[0]["fan_out"], (nlohmann::json{1.0, 1.0, 1.0}));
}

TEST_F(DriftCommand, RefusesWhatCannotBe) {
  for (const Refusal& refusal : std::vector<Refusal>{
           {base_ + "--model small.yaml --window 16", "--window: found 16, expected at least 32"},
           {base_ + "--model small.yaml --window 1000", "found 128 tokens, expected at least 1000"},
           {drift_ + "--strategy contiguous", "--strategy"},
           {drift_ + "--weights int3", "--weights"},
           {base_, "--model"}}) {
    const Outcome outcome = run(refusal.arguments);
    EXPECT_EQ(outcome.exit_code, 2) << refusal.arguments;
    EXPECT_THAT(outcome.err, HasSubstr(refusal.sentence)) << refusal.arguments;
  }
}

}  // namespace
}  // namespace coterie::testing
