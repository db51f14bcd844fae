#pragma once
// The runs of an experiment with a `step` block, as reports.

#include <vector>

#include "sim/experiment/simulate.hpp"

namespace coterie {

// As `simulate` (sim/experiment/simulate.hpp), which calls it.
std::vector<SimulatedRun> simulate_steps(const Experiment& experiment,
                                         const SimulateOptions& options);

// Operations that the program of the whole step would have, about.
double estimated_operations(const Experiment& experiment);

}  // namespace coterie
