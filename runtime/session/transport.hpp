#pragma once
// Which transport of an experiment the runtime carries out, and how.

#include <optional>
#include <string>

#include "runtime/executor/executor.hpp"
#include "topologies/cluster.hpp"
#include "topologies/transports.hpp"

namespace coterie {

// `direct` with its multiprocessors (`sms`, 16 unless the choice or the topology says otherwise);
// nothing for every other transport, which only the simulator tells apart: NCCL moves the rows.
// Throws InputError for a number of multiprocessors that the GPU of the topology does not have.
std::optional<DirectOptions> chosen_direct(const Cluster& cluster, const TransportChoice& choice);

// The name that a report gives: "direct" or "nccl".
std::string executed_transport(const TransportChoice& choice);

}  // namespace coterie
