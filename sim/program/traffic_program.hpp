#pragma once
// Programs of pure communication: a raw traffic matrix, or the transfers of a dispatch plan without
// its kernels. Rank r is GPU r.

#include <cstdint>
#include <vector>

#include "sim/program/program.hpp"
#include "workloads/plan/matrix.hpp"
#include "workloads/plan/plan_file.hpp"

namespace coterie {

// Every entry is a transfer that may start at its `start_s`; a rank sends in the order of the
// entries. Entries of a rank to itself cross no link and are left out.
//
// `cluster`: the topology whose start costs (StartCost) the sends of equal `start_s` pay as one
// phase; none where it is null.
Program traffic_program(const TrafficMatrix& traffic, const Cluster* cluster = nullptr);

// All layers, one after the other, dispatch and combine. A rank starts a layer when the results of
// its previous one are back, and its combine when all rows dispatched to it have arrived; there is
// no other barrier. Hierarchical plans forward the rows of an inter-node transfer when all of it
// has arrived, and return a node's results when those of all its ranks are together. Transfers of
// one stage are issued in the plan's order. Start costs as above, once for each rank's first sends
// of a dispatch and of a combine.
Program plan_communication(const DispatchPlan& plan, const Cluster* cluster = nullptr);

// When each rank has sent and received everything: the last finish of its transfers, seconds; zero
// for ranks without any. [num_ranks]
std::vector<double> rank_finish_s(const Program& program, const Execution& execution,
                                  std::uint32_t num_ranks);

}  // namespace coterie
