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
  std::span<const std::uint32_t> token_weight;  // [num_tokens] as LayerTask::token_weight, or empty
  std::span<const std::uint64_t> load;          // [num_experts]
  std::vector<std::uint32_t> capacity;          // [num_parts], sums to num_experts
  std::vector<double> max_load;          // [num_parts] balance cap in tokens; infinite without one
  std::vector<std::uint32_t> swap_zone;  // [num_parts] experts swap only between parts of one zone
  // A cap on nodes of parts; both empty without one.
  std::vector<std::uint32_t> node_of;  // [num_parts]
  std::vector<double> max_node_load;   // [num_nodes]
  // LayerTask::replica_of: at most `max_together` replicas of an expert in one part.
  std::span<const ExpertIdx> replica_of;
  std::uint32_t max_together = 1;

  [[nodiscard]] std::uint32_t num_experts() const {
    return static_cast<std::uint32_t>(load.size());
  }
  [[nodiscard]] std::uint32_t num_parts() const {
    return static_cast<std::uint32_t>(capacity.size());
  }
};

// The task of placing on ranks, one zone, with the request's balance cap on ranks.
PartitionTask rank_task(const LayerTask& layer);
// Adds the request's cap on nodes, if it has one.
void cap_nodes(const LayerTask& layer, PartitionTask& ranks);

// Which replicas stand where, so that two of one expert do not come together. Does nothing for
// tasks without replicas.
class ReplicaGuard {
 public:
  ReplicaGuard(const PartitionTask& task, const PartOf& parts);
  [[nodiscard]] bool allows(std::uint32_t expert, std::uint32_t part) const {
    return count_.empty() || count_[index(expert, part)] < task_->max_together;
  }
  // Experts a and b of different parts.
  [[nodiscard]] bool allows_swap(std::uint32_t a, std::uint32_t b, const PartOf& parts) const {
    if (count_.empty()) return true;
    if (task_->replica_of[a] == task_->replica_of[b]) return false;
    return allows(a, parts[b]) && allows(b, parts[a]);
  }
  [[nodiscard]] bool crowded(std::uint32_t expert, std::uint32_t part) const {
    return !count_.empty() && count_[index(expert, part)] > task_->max_together;
  }
  void add(std::uint32_t expert, std::uint32_t part) {
    if (!count_.empty()) ++count_[index(expert, part)];
  }
  void remove(std::uint32_t expert, std::uint32_t part) {
    if (!count_.empty()) --count_[index(expert, part)];
  }

 private:
  [[nodiscard]] std::size_t index(std::uint32_t expert, std::uint32_t part) const {
    return std::size_t{task_->replica_of[expert]} * task_->num_parts() + part;
  }
  const PartitionTask* task_;
  std::vector<std::uint32_t> count_;  // [num_experts][num_parts]
};
// Swaps until no part holds too many replicas of an expert. False if it found no way.
bool separate_replicas(const PartitionTask& task, PartOf& parts);

// Occult's greedy (arXiv 2505.13345). Part 0 is seeded with the end of the most collaborated pair
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
  // Searches from the same partition with other seeds; the best result is kept, the first of
  // equals.
  std::uint32_t num_starts = 1;
};
// How often the strategies do so: what a search gains beyond is lost on unseen sequences.
inline constexpr std::uint32_t kFanOutKicks = 40;
void refine_fan_out(const PartitionTask& task, const FanOutSearch& search, PartOf& parts);

// Swaps until every part is within its cap, losing as little as it can of the collaboration. False
// if it found no way.
bool repair_balance(const PartitionTask& task, const CoactivationGraph& graph, PartOf& parts);

// repair_balance; where that fails it is tried again from the most balanced packing that a search
// by load finds (balance.hpp). Throws InputError with the smallest cap that can be met, as far as
// that search knows, if that fails as well. Nodes, where the task caps them, likewise.
void enforce_balance(const LayerTask& layer, const PartitionTask& task,
                     const CoactivationGraph& graph, PartOf& parts);

// Relabels the ranks so that those whose experts collaborate share a node: the same greedy and
// swaps over the graph of ranks. The experts that stand together stay together, so every count per
// rank stays; only node fan-out falls.
// With a cap on nodes, ranks trade places until it holds, as far as they can.
void gather_in_nodes(const LayerTask& layer, const PartitionTask& task,
                     const CoactivationGraph& graph, PartOf& parts);

// After gather_in_nodes: where the request caps nodes, experts are swapped until the cap holds on
// top of that of the ranks, and then for fan-out under both if `search` is given.
void enforce_node_balance(const LayerTask& layer, const PartitionTask& ranks,
                          const CoactivationGraph& graph, const FanOutSearch* search,
                          PartOf& parts);

// The part (rank) of every expert; of several replicas the last part's. Experts that are nowhere: 0.
PartOf parts_of(const RankExperts& placement, std::uint32_t num_experts);
RankExperts to_rank_experts(const PartOf& parts, std::uint32_t num_parts);

}  // namespace coterie
