#pragma once
// Occult's collaboration pruning: restricts every token to a budget of ranks before planning. This
// changes the model's output; what is planned from it is labelled `not exact`.

#include "workloads/plan/plan.hpp"

namespace coterie {

enum class PruneMethod : std::uint8_t {
  kRouterScore,  // walk the experts in score order until the budget of ranks is used, then re-pick
                 // the top-k among the experts of those ranks
  kSimilarity,   // replace an expert outside those ranks by the most similar unused expert inside
};

struct PruneRequest {
  PruneMethod method = PruneMethod::kRouterScore;
  std::uint32_t num_devices = 1;  // ranks a token may use
};

struct PruneResult {
  Routing routing;  // the same shape; only `layer_idxs` of the placement's layers are pruned
  double weight_lost = 0.0;   // share of the router weight of the original choice
  double top1_changed = 0.0;  // share of (token, layer) whose top-1 expert changed
};

// `training` gives the expert similarities (cosine between the experts' router-weight series).
// Throws InputError where the trace holds no router weights.
PruneResult prune(const Routing& routing, const Routing& training, const Placement& placement,
                  const PruneRequest& request);

}  // namespace coterie
