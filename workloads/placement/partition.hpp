#pragma once
// The parts that the collaboration strategies are made of: a partition of experts into parts (ranks
// or nodes) of given capacities, Occult's greedy that finds a first one, and two local searches by
// swaps. All are deterministic; ties go to the lower id.

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "workloads/placement/coactivation.hpp"
#include "workloads/placement/strategies.hpp"

namespace coterie {

using PartOf = std::vector<std::uint32_t>;  // [num_experts] part of each expert

struct PartitionTask {
  std::span<const ExpertIdx> experts;  // [num_tokens][num_topk]
  std::uint32_t num_topk = 0;
  std::span<const std::uint64_t> load;   // [num_experts]
  std::vector<std::uint32_t> capacity;   // [num_parts], sums to num_experts
  std::vector<double> max_load;          // [num_parts] balance cap in tokens; infinite without one
  std::vector<std::uint32_t> swap_zone;  // [num_parts] experts swap only between parts of one zone

  [[nodiscard]] std::uint32_t num_experts() const {
    return static_cast<std::uint32_t>(load.size());
  }
  [[nodiscard]] std::uint32_t num_parts() const {
    return static_cast<std::uint32_t>(capacity.size());
  }
};

// The task of placing on ranks, one zone, with the request's balance cap.
PartitionTask rank_task(const LayerTask& layer);

// Occult's greedy (DESIGN section 5). Part 0 is seeded with the end of the most collaborated pair
// that has the higher load; each next part with the unplaced expert whose collaboration with all
// seeds so far is least. Then the parts in turn take the unplaced expert with the highest mean
// collaboration with the part's members, until all are full. Under a balance cap a part passes over
// experts that would take it beyond the cap as long as another one fits.
PartOf greedy_partition(const PartitionTask& task, const CoactivationGraph& graph);

// Swaps experts between parts while that raises the collaboration inside parts (the weight of the
// graph's edges that are not cut).
void refine_collaboration(const PartitionTask& task, const CoactivationGraph& graph, PartOf& parts);

// Swaps experts between parts while that lowers the mean number of distinct parts per token, then
// `num_kicks` times disturbs the best partition found by a few random swaps and descends again.
struct FanOutSearch {
  std::uint32_t num_kicks = 0;
  std::uint64_t seed = 0;
};
// How often the strategies do so: what a search gains beyond is lost on unseen sequences.
inline constexpr std::uint32_t kFanOutKicks = 40;
void refine_fan_out(const PartitionTask& task, const FanOutSearch& search, PartOf& parts);

// Swaps until every part is within its cap, losing as little as it can of the collaboration. False
// if it found no way.
bool repair_balance(const PartitionTask& task, const CoactivationGraph& graph, PartOf& parts);

// repair_balance; where that fails it is tried again from the parts of greedy packing by load.
// Throws InputError with the best balance found if that fails as well.
void enforce_balance(const LayerTask& layer, const PartitionTask& task,
                     const CoactivationGraph& graph, PartOf& parts);

// Relabels the ranks so that those whose experts collaborate share a node: the same greedy and
// swaps over the graph of ranks. The experts that stand together stay together, so every count per
// rank stays; only node fan-out falls.
void gather_in_nodes(const PartitionTask& task, const CoactivationGraph& graph,
                     std::uint32_t ranks_per_node, PartOf& parts);

RankExperts to_rank_experts(const PartOf& parts, std::uint32_t num_parts);

}  // namespace coterie
