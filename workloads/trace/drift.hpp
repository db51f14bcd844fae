#pragma once
// Routing that drifts: experts of a layer exchange their roles from step to step.

#include <cstdint>
#include <vector>

#include "workloads/trace/routing.hpp"

namespace coterie {

// The roles after `num_exchanges` exchanges: a token that chose expert e at first now chooses
// roles[e], [num_experts]. Each exchange draws round(share * num_experts) experts, by the seed, the
// layer's number and its own, and passes each one's role to the next of them, so that all of them
// change; fewer than two change nothing. `share` is 0 to 1.
std::vector<ExpertIdx> drifted_roles(std::uint32_t num_experts, std::uint32_t layer, double share,
                                     std::uint32_t num_exchanges, std::uint64_t seed);

// The same tokens with the roles of every layer after `num_exchanges` exchanges. Co-activation and
// load are those of the original but for the names of the experts.
Routing drifted(Routing routing, double share, std::uint32_t num_exchanges, std::uint64_t seed);

}  // namespace coterie
