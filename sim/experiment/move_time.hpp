#pragma once
// How long weights take from rank to rank, when placements change.

#include "sim/experiment/layer_times.hpp"
#include "topologies/network.hpp"
#include "workloads/placement/moves.hpp"

namespace coterie {

// Seconds on the fabric by the flow engine, rank r on GPU r, with nothing else under way: one
// transfer per pair of ranks that has moves, all at once. Throws InputError where the cluster has
// fewer GPUs than ranks.
double move_time_s(const Network& network, const MoveCounts& moves, std::uint32_t num_ranks,
                   double expert_bytes);

// The same where steps go on meanwhile, on the same links.
struct MoveBesideSteps {
  double moved_s = 0.0;  // until the last weights have arrived
  double delay_s = 0.0;  // by how much later the steps end than they do without moves
};

// The step's layers run one after the other, and the step again and again until the weights have
// arrived (at most kMostStepsBeside times), all under the placement that is being left; attention,
// which would leave the links free, is not among them. A step takes the first tokens of the routing's
// sequences, dealt to the ranks as `setup` says. Moves share the links max-min fairly with the rows.
// Throws InputError where the placement does not fit the setup.
inline constexpr std::uint32_t kMostStepsBeside = 64;
MoveBesideSteps move_beside_steps(const LayerTimesSetup& setup, const Network& network,
                                  const Routing& step, const Placement& before,
                                  const MoveCounts& moves, double expert_bytes);

}  // namespace coterie
