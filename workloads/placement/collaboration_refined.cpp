// `collaboration`, then local search on what dispatch pays for: distinct ranks per token.

#include "core/random.hpp"
#include "workloads/placement/partition.hpp"
#include "workloads/placement/replicas.hpp"

namespace coterie {
namespace {

RankExperts place_refined(const LayerTask& layer) {
  const PartitionTask task = rank_task(layer);
  const CoactivationGraph graph =
      coactivation_graph(layer.experts, layer.num_topk, layer.num_experts, layer.token_weight);
  const FanOutSearch search{kFanOutKicks, mix64(layer.request.seed) ^ layer.layer,
                            layer.request.num_starts};
  PartOf parts = greedy_partition(task, graph);
  enforce_balance(layer, task, graph, parts);
  refine_collaboration(task, graph, parts);
  refine_fan_out(task, search, parts);
  gather_in_nodes(layer, task, graph, parts);
  enforce_node_balance(layer, task, graph, &search, parts);
  return to_rank_experts(parts, task.num_parts());
}

}  // namespace

RankExperts place_collaboration_refined(const LayerTask& layer) {
  return place_with_replicas(layer, place_refined);
}

}  // namespace coterie
