// Nodes first, then ranks inside: the experts are parted among nodes for the fewest distinct nodes
// per token, as a row between nodes costs several times one inside, and each node's experts among
// its ranks for the fewest distinct ranks.

#include <algorithm>
#include <type_traits>

#include "core/random.hpp"
#include "workloads/placement/partition.hpp"
#include "workloads/placement/replicas.hpp"

namespace coterie {
namespace {

PartitionTask node_task(const LayerTask& layer, const PartitionTask& ranks) {
  const std::uint32_t ranks_per_node = layer.request.ranks_per_node;
  PartitionTask task = ranks;
  task.max_together = ranks_per_node;
  const std::uint32_t num_nodes = (ranks.num_parts() + ranks_per_node - 1) / ranks_per_node;
  task.capacity.assign(num_nodes, 0);
  task.max_load.assign(num_nodes, 0.0);
  task.swap_zone.assign(num_nodes, 0);
  for (std::uint32_t rank = 0; rank < ranks.num_parts(); ++rank) {
    task.capacity[rank / ranks_per_node] += ranks.capacity[rank];
    task.max_load[rank / ranks_per_node] += ranks.max_load[rank];
  }
  PartitionTask capped = ranks;
  cap_nodes(layer, capped);
  for (std::uint32_t node = 0; node < capped.max_node_load.size(); ++node) {
    task.max_load[node] = std::min(task.max_load[node], capped.max_node_load[node]);
  }
  return task;
}

// Greedy over the ranks of one node, on the graph of the node's experts.
void place_in_node(const PartitionTask& ranks, const CoactivationGraph& graph,
                   std::uint32_t first_rank, std::uint32_t last_rank,
                   const std::vector<ExpertIdx>& experts, PartOf& rank_of) {
  CoactivationGraph inside(experts.size());
  std::vector<std::uint64_t> load;
  for (std::size_t i = 0; i < experts.size(); ++i) {
    load.push_back(ranks.load[experts[i]]);
    for (std::size_t j = 0; j < i; ++j) {
      const auto [edge, found] = boost::edge(experts[i], experts[j], graph);
      if (found) boost::add_edge(i, j, graph[edge], inside);
    }
  }
  PartitionTask task;
  task.load = load;
  std::vector<ExpertIdx> replica_of;
  if (!ranks.replica_of.empty()) {
    for (const ExpertIdx expert : experts) replica_of.push_back(ranks.replica_of[expert]);
  }
  task.replica_of = replica_of;
  const auto cut = [&](const auto& values) {
    return std::remove_cvref_t<decltype(values)>(values.begin() + first_rank,
                                                 values.begin() + last_rank);
  };
  task.capacity = cut(ranks.capacity);
  task.max_load = cut(ranks.max_load);
  task.swap_zone.assign(task.num_parts(), 0);
  PartOf parts = greedy_partition(task, inside);
  refine_collaboration(task, inside, parts);
  for (std::size_t i = 0; i < experts.size(); ++i) rank_of[experts[i]] = first_rank + parts[i];
}

RankExperts place_two_level(const LayerTask& layer) {
  const std::uint32_t ranks_per_node = layer.request.ranks_per_node;
  PartitionTask ranks = rank_task(layer);
  const PartitionTask nodes = node_task(layer, ranks);
  const CoactivationGraph graph =
      coactivation_graph(layer.experts, layer.num_topk, layer.num_experts, layer.token_weight);
  const FanOutSearch search{kFanOutKicks, mix64(layer.request.seed) ^ layer.layer,
                            layer.request.num_starts};

  PartOf node_of = greedy_partition(nodes, graph);
  enforce_balance(layer, nodes, graph, node_of);
  refine_collaboration(nodes, graph, node_of);
  refine_fan_out(nodes, search, node_of);

  PartOf rank_of(layer.num_experts, 0);
  const RankExperts node_experts = to_rank_experts(node_of, nodes.num_parts());
  for (std::uint32_t node = 0; node < nodes.num_parts(); ++node) {
    place_in_node(ranks, graph, node * ranks_per_node,
                  std::min((node + 1) * ranks_per_node, ranks.num_parts()), node_experts[node],
                  rank_of);
  }
  for (std::uint32_t rank = 0; rank < ranks.num_parts(); ++rank) {
    ranks.swap_zone[rank] = rank / ranks_per_node;
  }
  // Where a node cannot be balanced inside, or two replicas are left on a rank, experts cross nodes
  // for it.
  if (!separate_replicas(ranks, rank_of) || !repair_balance(ranks, graph, rank_of)) {
    ranks.swap_zone.assign(ranks.num_parts(), 0);
    separate_replicas(ranks, rank_of);
    enforce_balance(layer, ranks, graph, rank_of);
    enforce_node_balance(layer, ranks, graph, nullptr, rank_of);
    for (std::uint32_t rank = 0; rank < ranks.num_parts(); ++rank) {
      ranks.swap_zone[rank] = rank / ranks_per_node;
    }
  }
  refine_fan_out(ranks, search, rank_of);
  return to_rank_experts(rank_of, ranks.num_parts());
}

}  // namespace

RankExperts place_collaboration_two_level(const LayerTask& layer) {
  return place_with_replicas(layer, place_two_level, true);
}

}  // namespace coterie
