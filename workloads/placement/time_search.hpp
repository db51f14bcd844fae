#pragma once
// Local search on the time of a layer (LayerCost), with exact incremental costs.

#include <cstdint>
#include <span>
#include <vector>

#include "workloads/placement/layer_times.hpp"
#include "workloads/placement/partition.hpp"
#include "workloads/placement/token_hits.hpp"

namespace coterie {

// One layer's tokens and rates. `load` [num_experts] are those of all tokens of the training part.
struct TimeTask {
  const TokenSample& sample;
  std::span<const std::uint64_t> load;
  const LayerCost& cost;
  std::uint32_t log2_exponent = 5;  // see noise_exponent
  // LayerTask::replica_of, where the experts are replicas; or empty.
  std::span<const ExpertIdx> replica_of = {};
};

// How sharply the slowest rank counts (time_search.cpp), given how far the cost of a rank on unseen
// sequences strays from that on these: one standard deviation over the mean. `parts` stands for the
// mean cost.
std::uint32_t noise_exponent(const TimeTask& task, const std::vector<std::uint32_t>& parts,
                             double relative_noise);

struct TimeSearch {
  std::uint64_t max_evaluations = 0;  // of swaps, at most; a descent that has begun is finished
  std::uint32_t num_kicks = 0;
  std::uint64_t seed = 0;
};

// Seconds that the rates give the layer with these parts (the rank of every expert).
double layer_cost_s(const TimeTask& task, const std::vector<std::uint32_t>& parts);
// What the search minimises: see time_search.cpp.
double expected_cost_s(const TimeTask& task, const std::vector<std::uint32_t>& parts);

// Swaps experts between ranks while that lowers expected_cost_s, then disturbs the best placement
// by random swaps and descends again. Deterministic; every rank keeps its number of experts.
void refine_time(const TimeTask& task, const TimeSearch& search, std::vector<std::uint32_t>& parts);

}  // namespace coterie
