#pragma once
// What a sweep keeps of a run: one flat row, units in the column names.

#include <nlohmann/json.hpp>
#include <vector>

#include "sim/experiment/simulate.hpp"
#include "workloads/experiment.hpp"

namespace coterie {

// One row per run, in order. `run_time_s` is the sum over the run's layers; every other time is that
// of one layer, a mean over the run's layers, as in results.csv: `layer_time_s`, phases on their
// slowest rank, dispatch, MLP and combine on their own, the parts of the critical rank and, of these,
// `communication_s` (notify, dispatch and combine). Counts are means over the layers; bytes are sums
// over layers, dispatch and combine together. What is not known is null. A run that failed has its
// identity, `error` and `exit_code`. A whole step has its time as `run_time_s`, and what StepReport says of it.
nlohmann::ordered_json sweep_rows(const Experiment& experiment,
                                  const std::vector<SimulatedRun>& simulated);

}  // namespace coterie
