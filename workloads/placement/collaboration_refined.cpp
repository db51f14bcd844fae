// `collaboration`, then local search on what dispatch pays for: distinct ranks per token.

#include "core/random.hpp"
#include "workloads/placement/partition.hpp"

namespace coterie {

RankExperts place_collaboration_refined(const LayerTask& layer) {
  const PartitionTask task = rank_task(layer);
  const CoactivationGraph graph =
      coactivation_graph(layer.experts, layer.num_topk, layer.num_experts);
  PartOf parts = greedy_partition(task, graph);
  enforce_balance(layer, task, graph, parts);
  refine_collaboration(task, graph, parts);
  refine_fan_out(task, {kFanOutKicks, mix64(layer.request.seed) ^ layer.layer}, parts);
  gather_in_nodes(task, graph, layer.request.ranks_per_node, parts);
  return to_rank_experts(parts, task.num_parts());
}

}  // namespace coterie
