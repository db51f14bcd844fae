#pragma once
// What a sweep keeps of a run: one flat row, units in the column names.

#include <nlohmann/json.hpp>
#include <vector>

#include "sim/experiment/simulate.hpp"

namespace coterie {

// One row per run, in order. Times are sums over the layers on the slowest rank; counts are means
// over the layers; bytes are sums over layers, dispatch and combine together.
nlohmann::ordered_json sweep_rows(const Experiment& experiment,
                                  const std::vector<SimulatedRun>& runs);

}  // namespace coterie
