// Occult's greedy over the co-activation graph, then swaps that raise the collaboration inside
// ranks. The objective is the graph's: pairs of experts, not tokens. Which rank gets which part is
// free, so parts that collaborate share a node.

#include "workloads/placement/partition.hpp"
#include "workloads/placement/replicas.hpp"

namespace coterie {
namespace {

RankExperts place(const LayerTask& layer) {
  const PartitionTask task = rank_task(layer);
  const CoactivationGraph graph =
      coactivation_graph(layer.experts, layer.num_topk, layer.num_experts, layer.token_weight);
  PartOf parts = greedy_partition(task, graph);
  enforce_balance(layer, task, graph, parts);
  refine_collaboration(task, graph, parts);
  gather_in_nodes(layer, task, graph, parts);
  enforce_node_balance(layer, task, graph, nullptr, parts);
  return to_rank_experts(parts, task.num_parts());
}

}  // namespace

RankExperts place_collaboration(const LayerTask& layer) {
  return place_with_replicas(layer, place);
}

}  // namespace coterie
