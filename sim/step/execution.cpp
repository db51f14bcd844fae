#include "sim/step/execution.hpp"

#include <algorithm>

#include "core/error.hpp"

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
  std::stable_sort(changes.begin(), changes.end(),
                   [](const auto& a, const auto& b) { return a.time_s < b.time_s; });
  EngineOptions engine;
  engine.relative_precision = options.relative_precision;
  Execution execution;
  {
    const ResolvedProgram resolved = resolve(block.program, network, later);
    execution = run_engine(options.engine, resolved, engine);
  }
  return {std::move(block), std::move(execution)};
}

double scale_up_s(const Cluster& cluster, double bytes) {
  return cluster.scale_up ? bytes / cluster.scale_up->bandwidth.value : 0.0;
}
double network_s(const Cluster& cluster, double bytes) {
  return cluster.nic ? bytes / (cluster.nic->bandwidth.value * cluster.nic->per_gpu) : 0.0;
}

}  // namespace coterie
