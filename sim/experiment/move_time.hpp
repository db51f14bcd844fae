#pragma once
// How long weights take from rank to rank, when placements change.

#include "topologies/network.hpp"
#include "workloads/placement/moves.hpp"

namespace coterie {

// Seconds on the fabric by the flow engine, rank r on GPU r, with nothing else under way: one
// transfer per pair of ranks that has moves, all at once. Throws InputError where the cluster has
// fewer GPUs than ranks.
double move_time_s(const Network& network, const MoveCounts& moves, std::uint32_t num_ranks,
                   double expert_bytes);

}  // namespace coterie
