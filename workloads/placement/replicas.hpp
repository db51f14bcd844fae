#pragma once
// Replicas for the collaboration strategies: which experts get them, and where they stand.

#include <cstdint>
#include <span>
#include <vector>

#include "workloads/placement/strategies.hpp"

namespace coterie {

// Places layer.request.num_replicas replicas with a strategy that knows none (`place`, which then
// sees every replica as an expert of its own, LayerTask::replica_of). Without replicas,
// place(layer).
//
// Several ways are tried and the one of the fewest distinct ranks that meets the caps is kept:
//   by load      replicas for the heaviest experts, tokens dealt to them in turn, placed together;
//   by fan-out   (locality) placed without replicas, then one replica after the other to where it
//                saves most tokens a rank: those whose expert is alone on its rank and that go to
//                the new rank anyway;
//   by balance   (with a cap) the most even packing that balance_jointly finds.
// Under locality and static the tokens are then assigned to replicas by the rule, the placement
// refined for that assignment, and so on while the fan-out falls. Where a cap is nearly met,
// replicas are then exchanged one by one; where none of that meets it, replicas are added to a
// placement without, each where the cap still holds. `keep_nodes`: refinement moves experts inside their nodes
// only. Throws InputError with the smallest cap that was found where none is met.
RankExperts place_with_replicas(const LayerTask& layer, RankExperts (*place)(const LayerTask&),
                                bool keep_nodes = false);

// The replicas of a placement as experts of their own, in order of expert and rank, with the tokens
// that the request's rule gives each.
struct ServedReplicas {
  std::vector<ExpertIdx> replica_of;  // [num_replicas in all] ascending
  std::vector<std::uint32_t> parts;   // [num_replicas in all] the rank of each
  std::vector<ExpertIdx> experts;     // [num_tokens][num_topk] replicas
  std::vector<std::uint64_t> load;    // [num_replicas in all]
};
ServedReplicas serve_replicas(const LayerTask& layer, const RankExperts& placement);

// Replicas of each expert, greedily for the highest load per replica, as EPLB does; ties go to the
// lower id. Throws InputError where num_replicas is more than the ranks can hold. [num_experts]
std::vector<std::uint32_t> replicas_by_load(std::span<const std::uint64_t> load,
                                            std::uint32_t num_ranks, std::uint32_t num_replicas);

}  // namespace coterie
