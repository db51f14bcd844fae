#pragma once
// Packing by load alone: how even the parts of a layer can be made. Two searches by simulated
// annealing, deterministic for a seed, and a lower bound.

#include <cstdint>
#include <span>
#include <vector>

#include "workloads/placement/strategies.hpp"

namespace coterie {

struct BalanceSearch {
  std::span<const std::uint32_t> capacity;  // [num_parts], sums to the number of experts
  std::span<const double> max_load;         // [num_parts] caps: parts are compared by load over cap
  std::span<const ExpertIdx> replica_of;    // [num_experts] as LayerTask::replica_of, or empty
  std::uint32_t max_together = 1;           // replicas of one expert in a part
  std::uint64_t seed = 0;
};
// Packs every expert once, the fullest part as light as the search finds. [num_parts]
RankExperts pack_by_load(std::span<const std::uint64_t> load, const BalanceSearch& search);

// Chooses how many replicas each expert has (in all num_replicas beyond one each) and packs them
// together, equal numbers of slots per rank or one more on the first; no expert twice on a rank.
// Replicas share their expert's load equally. Throws InputError where there are more replicas than
// ranks can hold. [num_ranks]
RankExperts balance_jointly(std::span<const std::uint64_t> load, std::uint32_t num_ranks,
                            std::uint32_t num_replicas, std::uint64_t seed);

// No packing without replicas has a fullest part below this multiple of the mean: the heaviest
// expert with the lightest companions, and the mean itself.
double least_imbalance(std::span<const std::uint64_t> load,
                       std::span<const std::uint32_t> capacity);

}  // namespace coterie
