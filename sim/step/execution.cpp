#include "sim/step/execution.hpp"

#include <utility>

#include "core/error.hpp"
#include "sim/step/changing_links.hpp"

namespace coterie {

void expect_times(const std::string& engine) {
  if (engine != "bound") return;
  throw InputError("engine", "\"bound\" for a whole step",
                   "simgrid or flow: lower bounds have no schedule");
}

Executed execute(StepProgram block, const Network& network, const StepOptions& options,
                 std::span<const LaterNetwork> later) {
  auto& changes = block.program.changes;
  changes.insert(changes.end(), options.changes.begin(), options.changes.end());
  changes = by_time(std::move(changes));
  EngineOptions engine;
  engine.relative_precision = options.relative_precision;
  Execution execution;
  {
    const ResolvedProgram resolved = resolve(block.program, network, later);
    execution = run_engine(options.engine, resolved, engine);
  }
  return {std::move(block), std::move(execution)};
}

StepTimes times_of(const BlockTimes& block, const Cluster& cluster) {
  StepTimes out;
  out.time_s = block.time_s;
  out.parts = block.parts;
  out.compute_s = block.compute_s;
  out.communication_s = block.communication_s;
  out.exposed_s = block.exposed_s;
  out.scale_up_busy_s = scale_up_s(cluster, block.scale_up_bytes);
  out.network_busy_s = network_s(cluster, block.network_bytes);
  return out;
}

double scale_up_s(const Cluster& cluster, double bytes) {
  return cluster.scale_up ? bytes / cluster.scale_up->bandwidth.value : 0.0;
}
double network_s(const Cluster& cluster, double bytes) {
  return cluster.nic ? bytes / (cluster.nic->bandwidth.value * cluster.nic->per_gpu) : 0.0;
}

}  // namespace coterie
