#pragma once
// Costs of NCCL's collectives (topologies/collectives.hpp) from measured times within one scale-up
// domain. Steps between nodes keep what the topology says: tables of one node tell nothing of them.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "sim/step/collectives.hpp"
#include "topologies/cluster.hpp"

namespace coterie {

struct CollectivePoint {
  CollectiveKind kind = CollectiveKind::kAllReduce;
  std::uint32_t num_gpus = 0;
  double bytes = 0.0;   // of the buffer, as collectives.hpp counts it
  double time_s = 0.0;  // measured
};
// CSV with the columns machine, op_name (all_reduce, reduce_scatter, all_gather), num_gpus,
// message_bytes and latency_us. Empty `machine`: the file must hold a single one. Throws InputError.
std::vector<CollectivePoint> read_collective_points(const std::filesystem::path& file,
                                                    const std::string& machine);

struct CollectiveFit {
  CollectiveParameters parameters;
  // [points] signed relative errors by fits that did not see the point: repeats of a size stay
  // together, and every fourth size was left out in turn.
  std::vector<double> held_out;
  std::vector<std::string> undetermined;
};
// The prior is the cluster's `collectives` block, or the protocols of an NVLink machine where it has
// none. Deterministic. Throws InputError for fewer than twelve sizes and for groups that do not lie in
// one scale-up domain.
CollectiveFit fit_collectives(const Cluster& cluster, const std::vector<CollectivePoint>& points);

}  // namespace coterie
