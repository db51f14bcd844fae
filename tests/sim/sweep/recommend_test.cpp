// Candidates of a search and what is made of their results.

#include "sim/sweep/recommend.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "core/error.hpp"
#include "sim/step/memory.hpp"
#include "sim/step/operation_times.hpp"
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
                       {{"id", "e"}, {"status", "failed"}, {"error", "no"}}},
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
  const std::string svg = pareto_svg(all, StepKind::kDecode);
  EXPECT_EQ(std::count(svg.begin(), svg.end(), '\n') > 10, true);
  EXPECT_NE(svg.find("tokens per second of one user"), std::string::npos);
}

}  // namespace
}  // namespace coterie
