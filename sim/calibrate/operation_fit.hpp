#pragma once
// Costs of a whole step's operations from measured times: the parameters of OperationCosts
// (topologies/cluster.hpp).

#include <string>
#include <vector>

#include "sim/step/operation_times.hpp"
#include "topologies/cluster.hpp"

namespace coterie {

struct OperationFit {
  std::string kind;  // key of gpu.operations
  OperationCosts costs;
  // Signed relative errors of points that a fit did not see: every fourth was left out in turn.
  std::vector<double> held_out;
  std::vector<std::string> undetermined;
};
// One fit for every kind that the files hold, products first: a module of latent attention is
// fitted with the products as they came out, so that its own launch holds what the small kernels of
// the module take beyond their bytes. Deterministic. Throws InputError as load_operation_tables
// does, and for a kind with fewer than eight points.
std::vector<OperationFit> fit_operations(const GpuModel& gpu, const OperationTableFiles& files);

}  // namespace coterie
