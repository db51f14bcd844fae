// Which placements and replicas a search tries, counted by hand, and how runs are written.

#include "sim/sweep/run_choices.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.hpp"
#include "tests/sim/scratch.hpp"

namespace coterie {
namespace {

using ::testing::ElementsAre;

// DeepSeek-V3 has 256 experts.
Experiment decode(const std::string& routing, const std::string& runs) {
  const Scratch scratch("run_choices");
  return load_experiment(scratch.write("decode.yaml",
                                       "schema_version: 1\n"
                                       "topology: h100_rail_optimised\n"
                                       "model: deepseek_v3\n"
                                       "ranks: 64\n"
                                       "engine: flow\n"
                                       "step:\n"
                                       "  kind: decode\n"
                                       "  parallel: {ep: 64}\n"
                                       "  batch: {sequences_per_gpu: 8, context: 4096}\n"
                                       "  precision: fp8\n"
                                       "  routing: " +
                                           routing + "\nruns: " + runs + "\n"));
}
const std::string kPlain = "[{name: a, placement: contiguous, dispatch: standard}]";
const std::string kReplicated =
    "[{name: a, placement: load_balanced, replicas: 64, dispatch: standard}]";

std::vector<std::string> labels(const std::vector<RunSpec>& runs) {
  std::vector<std::string> out;
  for (const RunSpec& run : runs) {
    out.push_back(run.placement + " " + std::to_string(run.num_replicas));
  }
  return out;
}

// On 72 ranks 256 experts need 32 replicas for 4 slots each, and 104 for 5; on 64 ranks none for 4,
// 64 for 5. Where every expert is chosen equally often, no slot more than needed is tried.
TEST(DefaultReplicas, AreTheFewestThatDivideAndOneMorePerRank) {
  const Experiment skewed = decode("{skew: 0.5}", kPlain);
  EXPECT_THAT(default_replicas(skewed, 0, 72), ElementsAre(32, 104));
  EXPECT_THAT(default_replicas(skewed, 0, 64), ElementsAre(0, 64));
  EXPECT_THAT(default_replicas(skewed, 128, 64), ElementsAre(128, 0, 64));
  EXPECT_THAT(default_replicas(decode("balanced", kPlain), 0, 72), ElementsAre(32));
}

TEST(DefaultPlacements, AreTheRunsAndThreeStrategiesWhereRoutingIsNotBalanced) {
  EXPECT_THAT(default_placements(decode("balanced", kReplicated)), ElementsAre("load_balanced"));
  EXPECT_THAT(default_placements(decode("{skew: 0.5}", kReplicated)),
              ElementsAre("load_balanced", "contiguous", "collaboration_two_level"));
}

// A contiguous placement has no replicas, so that 72 ranks are not for it; another one gets the 32
// that 72 ranks need.
TEST(RunsOn, KeepWhatFitsAndReplicateWhatMust) {
  const Experiment plain = decode("{skew: 0.5}", kPlain);
  EXPECT_THAT(labels(runs_on(plain, {}, 64)), ElementsAre("contiguous 0"));
  EXPECT_THAT(labels(runs_on(plain, {}, 72)), ElementsAre());
  const Experiment replicated = decode("{skew: 0.5}", kReplicated);
  EXPECT_THAT(labels(runs_on(replicated, {}, 64)), ElementsAre("load_balanced 64"));
  EXPECT_THAT(labels(runs_on(replicated, {}, 72)), ElementsAre("load_balanced 32"));
  // What is asked for replaces what the runs have; of two runs that become alike one remains.
  RunSearch search;
  search.placements = {"load_balanced_joint"};
  search.replicas = {0, 128};
  const Experiment two = decode("{skew: 0.5}",
                                "[{name: a, placement: contiguous, dispatch: standard}, {name: b, "
                                "placement: random, dispatch: standard}]");
  EXPECT_THAT(labels(runs_on(two, search, 64)), ElementsAre("load_balanced_joint 0"));
  search.replicas = {128};
  EXPECT_THAT(labels(runs_on(two, search, 64)), ElementsAre("load_balanced_joint 128"));
}

// Contiguous with 0; load_balanced and collaboration_two_level with 0 and 64: without the run
// itself four of five.
TEST(Variants, AreAllOtherPlacementsAndReplicasThatFit) {
  const Experiment plain = decode("{skew: 0.5}", kPlain);
  EXPECT_THAT(labels(variants_of(plain, {}, plain.runs.front(), 64)),
              ElementsAre("load_balanced 0", "load_balanced 64", "collaboration_two_level 0",
                          "collaboration_two_level 64"));
  RunSearch search;
  search.placements = {"contiguous", "load_balanced"};
  search.replicas = {0, 10, 128};  // 266 do not divide over 64
  EXPECT_THAT(labels(variants_of(plain, search, plain.runs.front(), 64)),
              ElementsAre("load_balanced 0", "load_balanced 128"));
}

// A cap of balance belongs to strategies that take one: the variant without it loads.
TEST(Variants, LeaveOutBalanceCapsThatAStrategyDoesNotTake) {
  const Experiment capped = decode("{skew: 0.5}",
                                   "[{name: a, placement: collaboration, max_imbalance: 1.5, "
                                   "dispatch: dedup}]");
  for (const RunSpec& run : variants_of(capped, {}, capped.runs.front(), 64)) {
    EXPECT_EQ(run.max_imbalance.has_value(),
              run.placement == "collaboration" || run.placement == "collaboration_two_level")
        << run.placement;
  }
}

// What is written reads as the same runs: every field with a value that is not its default.
TEST(RunsText, ReadsAsTheSameRuns) {
  const std::string runs =
      "[{name: a, placement: collaboration, dispatch: hierarchical, prune: {method: similarity, "
      "devices: 3}, max_imbalance: 1.5, max_node_imbalance: 1.25, replicas: 64, replica_choice: "
      "locality, transport: {name: nccl, network.alpha: 3 us}}, {name: b, placement: contiguous, "
      "dispatch: standard}]";
  const Experiment first = decode("balanced", runs);
  const std::string text = runs_text(first.runs);
  EXPECT_EQ(text.find('\n'), std::string::npos);
  const Experiment again = decode("balanced", text);
  ASSERT_EQ(again.runs.size(), 2U);
  const RunSpec& run = again.runs.front();
  EXPECT_EQ(run.name, "a");
  EXPECT_EQ(run.placement, "collaboration");
  EXPECT_EQ(run.policy, DispatchPolicy::kHierarchical);
  ASSERT_TRUE(run.prune);
  EXPECT_EQ(run.prune->method, PruneMethod::kSimilarity);
  EXPECT_EQ(run.prune->num_devices, 3U);
  EXPECT_EQ(run.max_imbalance, 1.5);
  EXPECT_EQ(run.max_node_imbalance, 1.25);
  EXPECT_EQ(run.num_replicas, 64U);
  EXPECT_EQ(run.replica_choice, ReplicaChoice::kLocality);
  ASSERT_TRUE(run.transport);
  EXPECT_EQ(run.transport->name, "nccl");
  ASSERT_EQ(run.transport->settings.size(), 1U);
  EXPECT_EQ(run.transport->settings.front().key, "network.alpha");
  EXPECT_EQ(run.transport->settings.front().value, "3 us");
  EXPECT_EQ(runs_text(again.runs), text);
}

TEST(RunSearch, RefusesWhatIsNeitherStrategyNorFile) {
  RunSearch search;
  search.placements = {"contiguous", "colaboration"};
  try {
    check(search);
    FAIL() << "accepted";
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("found \"colaboration\", expected one of"));
  }
}

}  // namespace
}  // namespace coterie
