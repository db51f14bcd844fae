#pragma once
// What a placement makes of a routing, counted without planning it.

#include <cstdint>

#include "workloads/placement/placement.hpp"
#include "workloads/plan/tokens.hpp"
#include "workloads/trace/routing.hpp"

namespace coterie {

// Rows per token by the tier they cross; hops that stay on their rank are `local`.
struct TierRows {
  double local = 0.0;
  double scale_up = 0.0;  // between ranks of one node
  double network = 0.0;
};

// Means per token. Three numbers that are easily confused:
//  - copies: k, every (token, expert) pair, those for the token's own rank included;
//  - fan-out: distinct ranks that host at least one of the token's experts, own rank included;
//  - remote fan-out: distinct ranks other than the token's own. Only these cross a link.
// The same three exist for nodes.
struct FanOut {
  double copies = 0.0;
  double fanout_ranks = 0.0;
  double remote_fanout_ranks = 0.0;
  double fanout_nodes = 0.0;
  double remote_fanout_nodes = 0.0;
  double rank_load_max_over_mean = 0.0;
  // Dispatch rows of each policy; a hierarchical row is counted once per hop. The rows of
  // `standard` sum to `copies`, those of `dedup` to `fanout_ranks`.
  TierRows standard, dedup, hierarchical;
  // The (token, expert) pairs that the hierarchical rows of each tier serve, once per hop (those of
  // the other two policies are the rows of `standard`). They cost metadata.
  TierRows hierarchical_copies;
};

// Expected fan-out of tokens that choose k distinct experts uniformly, with the experts in equal
// parts (differing by at most one) over the ranks: the sum over ranks of 1 - C(E - e, k) / C(E, k).
double uniform_fan_out(std::uint32_t num_experts, std::uint32_t num_ranks, std::uint32_t num_topk);

// One pass over the layer; the rule by which make_plan chooses among replicas. Throws
// InputError where the placement's experts or ranks do not fit the routing and the tokens.
FanOut fan_out(const Routing& routing, std::size_t layer_idx, const LayerPlacement& placement,
               std::uint32_t ranks_per_node, const RankTokens& tokens,
               ReplicaChoice choice = ReplicaChoice::kLocality);

}  // namespace coterie
