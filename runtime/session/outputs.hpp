#pragma once
// What a session reports of its runs, prints and writes.

#include <string>
#include <vector>

#include "core/report.hpp"
#include "runtime/executor/executor.hpp"
#include "runtime/session/measure.hpp"
#include "runtime/session/planning.hpp"
#include "runtime/session/run.hpp"
#include "runtime/session/verification.hpp"
#include "topologies/network.hpp"

namespace coterie {

inline constexpr const char* kMeasured = "measured";  // RunReport::kind

// A run with its provenance and what its check found, without layers.
RunReport measured_run(const RunOptions& options, const Experiment& experiment,
                       const PlannedRun& planned, const RunCheck& check, const Executor& executor);
// A run that cannot be carried out, with its sentence.
RunReport infeasible_run(const Experiment& experiment, const RunSpec& spec,
                         const std::string& sentence);
// One of its layers, from the times of all ranks.
LayerReport measured_layer(const Experiment& experiment, const PlannedRun& planned,
                           std::size_t layer_idx, const Network& network,
                           const std::vector<RankTimes>& ranks);

// The table that predictions get, with what only measurements have: how far outputs are off.
void print_table(const std::vector<RunReport>& reports);

// Results of a measurement, with a timeline per run.
void write_measurement(const RunOptions& options, const Experiment& experiment,
                       const std::vector<RunReport>& reports);
// dry_run.json, which never looks like a measurement. `executed` is the size that was carried out.
void write_dry_run(const RunOptions& options, const Experiment& experiment,
                   const LayerShape& executed, const std::vector<RunReport>& reports);

}  // namespace coterie
