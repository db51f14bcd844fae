// Candidates of a search and what is made of their results.

#include "sim/sweep/recommend.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "core/error.hpp"
#include "sim/step/memory.hpp"
#include "sim/step/operation_times.hpp"
#include "tests/message_of.hpp"
#include "tests/sim/scratch.hpp"

namespace coterie {
namespace {

constexpr const char* kDecode =
    "schema_version: 1\n"
    "topology: h100_rail_optimised\n"
    "model: deepseek_v3\n"
    "ranks: 64\n"
    "engine: bound\n"
    "step:\n"
    "  kind: decode\n"
    "  parallel: {ep: 64}\n"
    "  batch: {sequences_per_gpu: 8, context: 4096}\n"
    "  precision: fp8\n"
    "  routing: balanced\n"
    "runs:\n"
    "  - {name: contiguous, placement: contiguous, dispatch: standard}\n";

// Every candidate is an experiment that loads and fits in memory, and each is there once.
TEST(SearchSpace, HoldsExperimentsThatLoadAndFit) {
  const Scratch scratch("recommend");
  RecommendRequest request;
  request.experiment = scratch.write("decode.yaml", kDecode);
  request.gpus = {32, 64};
  const SearchSpace space = search_space(request);
  ASSERT_GT(space.candidates.size(), 4U);
  EXPECT_GT(space.num_too_large, 0U);  // 671 GB on 8 GPUs of 80 GB, say
  std::set<Settings> seen;
  std::set<std::string> ranks;
  for (const Settings& settings : space.candidates) {
    EXPECT_TRUE(seen.insert(settings).second);
    std::vector<Override> overrides;
    for (const auto& [key, value] : settings) overrides.push_back({key, value});
    const Experiment one = load_experiment(request.experiment, overrides);
    EXPECT_TRUE(memory_per_gpu(one.model, *one.step, one.cluster.gpu).fits());
    ranks.insert(settings.front().second);
  }
  EXPECT_EQ(ranks, (std::set<std::string>{"32", "64"}));

  // At most as many as asked for, and the same ones first.
  request.max_points = 3;
  const SearchSpace few = search_space(request);
  ASSERT_EQ(few.candidates.size(), 3U);
  EXPECT_EQ(few.num_fitting, space.num_fitting);
  EXPECT_TRUE(std::equal(few.candidates.begin(), few.candidates.end(), space.candidates.begin()));
}

TEST(SearchSpace, RefusesWhatCannotBe) {
  const Scratch scratch("recommend");
  RecommendRequest request;
  request.experiment = scratch.write("decode.yaml", kDecode);
  request.tpot_s = 1e-6;
  try {
    (void)search_space(request);
    FAIL() << "accepted";
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("too slow even without communication"),
              std::string::npos)
        << error.what();
  }
}

TEST(SearchSpace, RefusesLimitsOfOtherSteps) {
  const Scratch scratch("recommend");
  RecommendRequest request;
  request.experiment = scratch.write("decode.yaml", kDecode);
  request.ttft_s = 1.0;
  EXPECT_EQ(message_of([&] { (void)search_space(request); }),
            "--ttft: found a limit for a decode step, expected a prefill step, whose time to the "
            "first token it limits");
}

// The sequences per GPU of the largest candidate whose EP group has 64 ranks.
int largest_batch_on_64(const SearchSpace& space) {
  int largest = 0;
  for (const Settings& settings : space.candidates) {
    if (settings[1].second.find("tp: 1,") == std::string::npos ||
        settings[1].second.find("ep: 64") == std::string::npos) {
      continue;
    }
    EXPECT_EQ(settings[2].first, "step.batch.sequences_per_gpu");
    largest = std::max(largest, std::stoi(settings[2].second));
  }
  return largest;
}

// A replica more on each of 64 GPUs are 58 layers of three matrices of 7168 x 2048 weights in FP8 with
// a float per 128: 2.63 GB. A sequence of 4,096 tokens has 61 layers of 576 values in BF16: 288 MB. So
// 9.1 sequences of memory are gone, at least one step of eight of the largest candidate.
TEST(SearchSpace, CountsTheMemoryOfReplicas) {
  const Scratch scratch("recommend");
  RecommendRequest request;
  request.experiment = scratch.write("decode.yaml", kDecode);
  request.runs.placements = {"load_balanced"};
  request.runs.replicas = {0};
  const int without = largest_batch_on_64(search_space(request));
  request.runs.replicas = {64};
  const SearchSpace space = search_space(request);
  for (const Settings& settings : space.candidates) {
    std::vector<Override> overrides;
    for (const auto& [key, value] : settings) overrides.push_back({key, value});
    const Experiment one = load_experiment(request.experiment, overrides);
    ASSERT_EQ(one.runs.size(), 1U);
    EXPECT_EQ(one.runs.front().placement, "load_balanced");
    EXPECT_EQ(one.runs.front().num_replicas, 64U);
    EXPECT_TRUE(memory_per_gpu(one.model, *one.step, one.cluster.gpu, 64).fits());
  }
  const int with = largest_batch_on_64(space);
  EXPECT_GE(without - with, 8);
  EXPECT_LE(without - with, 16);

  // And so does a limit below what the GPU has: 2.63 GB less.
  request.runs.replicas = {0};
  request.memory_bytes = 80.0 * 1024 * 1024 * 1024 - 2.63e9;
  const int limited = largest_batch_on_64(search_space(request));
  EXPECT_GE(without - limited, 8);
  EXPECT_LE(without - limited, 16);
}

// Of a search over placements the first sweep has half the points.
TEST(SearchSpace, LeavesHalfOfThePointsToPlacements) {
  const Scratch scratch("recommend");
  RecommendRequest request;
  request.experiment = scratch.write("decode.yaml", kDecode);
  request.max_points = 8;
  EXPECT_EQ(search_space(request).candidates.size(), 8U);
  request.runs.replicas = {0, 64};
  EXPECT_EQ(search_space(request).candidates.size(), 4U);
}

// The run is contiguous, which has no replicas: load_balanced with none and with 64 are two variants
// of every candidate, those of the first one first.
TEST(PlacementSpace, GivesTheBestOfTheFirstSweepOtherPlacements) {
  const Scratch scratch("recommend");
  RecommendRequest request;
  request.experiment = scratch.write("decode.yaml", kDecode);
  request.runs.placements = {"contiguous", "load_balanced"};
  request.runs.replicas = {0, 64};
  const SearchSpace sizes = search_space(request);
  std::vector<Recommendation> ranked;
  for (const Settings& settings : sizes.candidates) {
    if (settings[1].second.find("ep: 64") == std::string::npos || ranked.size() == 2) continue;
    ranked.push_back({});
    ranked.back().settings = settings;
    ranked.back().run = "contiguous";
  }
  ASSERT_EQ(ranked.size(), 2U);
  const SearchSpace space = placement_space(request, ranked, 100);
  EXPECT_EQ(space.num_fitting + space.num_too_large, 4U);
  ASSERT_GE(space.candidates.size(), 2U);
  for (std::size_t i = 0; i < space.candidates.size(); ++i) {
    const std::string& runs =
        space.candidates[i].back().first == "runs"
            ? space.candidates[i].back().second
            : std::find_if(space.candidates[i].begin(), space.candidates[i].end(),
                           [](const auto& one) { return one.first == "runs"; })
                  ->second;
    EXPECT_NE(runs.find("load_balanced"), std::string::npos) << runs;
  }
  EXPECT_EQ(placement_space(request, ranked, 1).candidates.size(), 1U);
  // Balanced by force all placements are alike, and nothing else was asked for.
  request.runs = {};
  EXPECT_TRUE(placement_space(request, ranked, 100).candidates.empty());
}

// No communication, no launches and a GPU that computes at its peak: what remains are the FLOPs of
// the step, here prompts whose matrix products are bound by arithmetic.
TEST(ComputationBound, IsTheArithmeticAtTheRateOfTheGpu) {
  const ModelShape model = load_model("mixtral_8x7b");
  StepSpec step;
  step.kind = StepKind::kPrefill;
  step.prefill = {65536, 4096, 0};
  GpuModel gpu = load_cluster("h100_node").gpu;
  gpu.operations.clear();
  gpu.kernel_launch = {0.0};
  gpu.compute_efficiency = 1.0;
  gpu.memory_bandwidth = {1e18};
  for (const char* kind : {"attention"}) gpu.operations[kind] = {{0.0}, 1.0, 1.0, 100.0};
  const double flops = model_flops_per_token(model, step, false) * 65536.0;
  EXPECT_NEAR(computation_bound_s(model, step, gpu), flops / 989e12, 1e-3 * flops / 989e12);
}

nlohmann::json entry(const std::string& id, double tokens, double tpot) {
  const nlohmann::json rows = nlohmann::json::array({{{"run", "one"},
                                                      {"run_time_s", tpot},
                                                      {"tokens_per_s_per_gpu", tokens},
                                                      {"num_gpus", 64},
                                                      {"step_kind", "decode"},
                                                      {"tpot_s", tpot},
                                                      {"step_attention_s", 0.6 * tpot},
                                                      {"step_dispatch_s", 0.4 * tpot}}});
  return {{"id", id}, {"status", "ok"}, {"rows", rows.dump()}};
}

// By hand: A is fastest but too slow per token, B the best within 50 ms, C slower in both axes than
// B, D the one with the shortest time per token. The front within the limit is B and D. A GPU hour
// of 3.6 makes 0.001 per second: 1000 tokens per second cost 1.0 per million.
TEST(Ranking, PutsTheBestWithinTheLimitsFirst) {
  SweepSpec spec;
  for (const char* id : {"a", "b", "c", "d"}) spec.points.push_back({id, {{"ranks", id}}});
  RecommendRequest request;
  request.tpot_s = 0.05;
  request.price = 3.6;
  const std::vector<Recommendation> all =
      rank_candidates(request,
                      {entry("a", 3000.0, 0.08),
                       entry("b", 1000.0, 0.04),
                       entry("c", 900.0, 0.045),
                       entry("d", 500.0, 0.02),
                       {{"id", "e"}, {"status", "failed"}, {"error", "no"}, {"exit_code", 2}}},
                      spec);
  ASSERT_EQ(all.size(), 4U);
  const auto names = [&] {
    std::string text;
    for (const Recommendation& one : all) text += one.settings.front().second;
    return text;
  };
  EXPECT_EQ(names(), "bcda");
  EXPECT_TRUE(all[0].on_front);
  EXPECT_FALSE(all[1].on_front);
  EXPECT_TRUE(all[2].on_front);
  EXPECT_FALSE(all[3].within_limits);
  EXPECT_FALSE(all[3].on_front);
  EXPECT_DOUBLE_EQ(all[0].cost.value(), 1.0);
  EXPECT_EQ(all[0].binds, "attention 60 %, dispatch 40 %");
  EXPECT_EQ(all[1].binds, "attention 60 %, dispatch 40 %");  // 45 of 50 ms
  EXPECT_EQ(all[3].binds, "attention 60 %, dispatch 40 %; TPOT 160 % of its limit");
  const std::string svg = pareto_svg(all, StepKind::kDecode);
  EXPECT_EQ(std::count(svg.begin(), svg.end(), '\n') > 10, true);
  EXPECT_NE(svg.find("tokens per second of one user"), std::string::npos);
  // D is the third of the list and the second of the front, and named below the plot.
  EXPECT_NE(svg.find(">3</text>"), std::string::npos);
  EXPECT_NE(svg.find("3: d GPUs,  (one)"), std::string::npos);
  EXPECT_NE(svg.find(">3,000</text>"), std::string::npos);  // of A's 3,000 tokens per second
}

// By hand: a second sweep adds E, which takes the front from D: as fast per token and more of them.
// Its run stands in its settings with 64 replicas, and its fullest rank has twice the mean.
TEST(Ranking, MergesBothSweeps) {
  RecommendRequest request;
  SweepSpec first, second;
  first.points = {{"b", {{"ranks", "b"}}}, {"d", {{"ranks", "d"}}}};
  second.points = {
      {"e",
       {{"ranks", "e"},
        {"runs", "[{name: one, placement: load_balanced, dispatch: dedup, replicas: 64}]"}}}};
  nlohmann::json changed = entry("e", 800.0, 0.02);
  nlohmann::json rows = nlohmann::json::parse(changed.at("rows").get<std::string>());
  rows[0]["placement"] = "load_balanced";
  rows[0]["rank_load_max_over_mean"] = 2.0;
  changed["rows"] = rows.dump();
  const std::vector<Recommendation> all = merge_ranked(
      rank_candidates(request, {entry("b", 1000.0, 0.04), entry("d", 500.0, 0.02)}, first),
      rank_candidates(request, {changed}, second), StepKind::kDecode);
  ASSERT_EQ(all.size(), 3U);
  EXPECT_EQ(all[0].settings.front().second, "b");
  EXPECT_EQ(all[1].settings.front().second, "e");
  EXPECT_TRUE(all[0].on_front);
  EXPECT_TRUE(all[1].on_front);
  EXPECT_FALSE(all[2].on_front);
  EXPECT_EQ(all[1].num_replicas, 64U);
  EXPECT_EQ(all[1].placement, "load_balanced");
  EXPECT_EQ(all[1].binds,
            "attention 60 %, dispatch 40 %; the fullest rank has 2.0 times the mean load");
}

}  // namespace
}  // namespace coterie
