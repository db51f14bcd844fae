#pragma once
// Plans that the tests of this folder share.

#include <algorithm>
#include <numeric>
#include <vector>

#include "core/random.hpp"
#include "workloads/plan/plan.hpp"

namespace coterie::testing {

// What a plan is made from.
struct Sample {
  Routing routing;  // one layer, number 0
  LayerPlacement placement;
  RankTokens tokens;
};

// Four ranks in nodes of two, eight experts, two on each rank in order; top-3. Rank 0 owns tokens 0
// and 1, rank 1 none, rank 2 token 2 and rank 3 token 3.
inline Sample tiny_sample() {
  Sample sample;
  sample.routing.num_experts = 8;
  sample.routing.num_topk = 3;
  sample.routing.layers = {0};
  sample.routing.sequence_begin = {0, 2, 3, 4};
  sample.routing.experts = {0, 5, 4, 2, 3, 7, 6, 1, 5, 0, 1, 2};
  sample.placement.rank_experts = {{0, 1}, {2, 3}, {4, 5}, {6, 7}};
  sample.tokens.token_begin = {0, 2, 2, 3, 4};
  sample.tokens.trace_token = {0, 1, 2, 3};
  return sample;
}

inline LayerPlan tiny_plan(DispatchPolicy policy) {
  const Sample sample = tiny_sample();
  return make_plan(sample.routing, 0, sample.placement, sample.tokens,
                   {policy, 2, PlanDetail::kRows});
}

// The hierarchical one in two rounds.
inline LayerPlan tiny_rounds() {
  const Sample sample = tiny_sample();
  return make_plan(sample.routing, 0, sample.placement, sample.tokens,
                   {DispatchPolicy::kHierarchical, 2, PlanDetail::kRows, 1});
}

// Uniform routing; experts and tokens at random ranks, so that loads differ and some ranks may own
// no tokens. Replicas are extra slots of random experts.
inline Sample random_sample(std::uint32_t num_ranks, std::uint32_t num_experts,
                            std::uint32_t num_topk, std::uint64_t num_tokens,
                            std::uint32_t num_replicas, std::uint64_t seed) {
  Random random(seed);
  Sample sample;
  Routing& routing = sample.routing;
  routing.num_experts = num_experts;
  routing.num_topk = num_topk;
  routing.layers = {0};
  routing.sequence_begin = {0, num_tokens};
  std::vector<ExpertIdx> pool(num_experts);
  std::iota(pool.begin(), pool.end(), ExpertIdx{0});
  for (std::uint64_t t = 0; t < num_tokens; ++t) {
    for (std::uint32_t j = 0; j < num_topk; ++j) {
      std::swap(pool[j], pool[j + random.index(num_experts - j)]);
      routing.experts.push_back(pool[j]);
      routing.weights.push_back(static_cast<float>(random.uniform()));
    }
  }
  sample.placement.rank_experts.resize(num_ranks);
  const auto host = [&](std::uint32_t expert, std::uint64_t rank) {
    auto& hosted = sample.placement.rank_experts[rank];
    const auto id = static_cast<ExpertIdx>(expert);
    if (std::find(hosted.begin(), hosted.end(), id) == hosted.end()) hosted.push_back(id);
  };
  for (std::uint32_t expert = 0; expert < num_experts; ++expert) {
    host(expert, random.index(num_ranks));
  }
  for (std::uint32_t i = 0; i < num_replicas; ++i) {
    host(static_cast<std::uint32_t>(random.index(num_experts)), random.index(num_ranks));
  }
  for (auto& hosted : sample.placement.rank_experts) std::sort(hosted.begin(), hosted.end());
  std::vector<std::uint64_t> count(num_ranks);
  for (std::uint64_t t = 0; t < num_tokens; ++t) ++count[random.index(num_ranks)];
  sample.tokens.token_begin = {0};
  for (const std::uint64_t n : count) {
    sample.tokens.token_begin.push_back(sample.tokens.token_begin.back() + n);
  }
  sample.tokens.trace_token.resize(num_tokens);
  std::iota(sample.tokens.trace_token.begin(), sample.tokens.trace_token.end(), 0u);
  random.shuffle(std::span(sample.tokens.trace_token));
  return sample;
}

}  // namespace coterie::testing
