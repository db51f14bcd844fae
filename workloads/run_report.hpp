#pragma once
// The parts of a run report that a prediction and a measurement have in common: what ran, on what,
// and how many rows it took. Both programs call these and add their times.

#include <span>
#include <vector>

#include "core/report.hpp"
#include "workloads/plan/fan_out.hpp"
#include "workloads/prepare.hpp"

namespace coterie {

// Everything but kind, engine, transport and layers. `placement` is the strategy that made the
// placement, also where it was read from a file (whose name is then in the provenance). Warns where
// the trace was stretched, so that the same tokens stand in the batch several times.
RunReport run_header(const Experiment& experiment, const PreparedRun& run);

// A run that cannot be carried out, with its sentence.
RunReport failed_run(const Experiment& experiment, const RunSpec& spec, const std::string& failure);

// What the run's placement makes of a layer, [num_groups].
std::vector<FanOut> count_groups(const Experiment& experiment, const PreparedRun& run,
                                 std::size_t layer_idx);

// The layer's number, and its counts per token: means over all groups, each weighed by its tokens.
void add_counts(const PreparedRun& run, std::size_t layer_idx, std::span<const FanOut> groups,
                LayerReport& report);

// LayerReport::combine_ready_s from the plans of all groups and the ends of the merge phase: for
// each rank the latest of the ranks that serve its tokens. Ranks without tokens: zero.
std::vector<double> combine_ready_s(std::span<const LayerPlan> groups,
                                    const std::vector<double>& merge_end_s);

}  // namespace coterie
