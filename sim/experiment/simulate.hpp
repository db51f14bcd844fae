#pragma once
// The main job: every run of an experiment through a predictor, layer by layer, into reports; and
// the folder of results that `coterie simulate` leaves.

#include <filesystem>
#include <string>
#include <vector>

#include "core/report.hpp"
#include "core/table.hpp"
#include "workloads/experiment.hpp"

namespace coterie {

struct SimulateOptions {
  unsigned num_jobs = 1;             // runs and layers simulated at once
  std::optional<double> relative_precision;  // see EngineOptions
  std::optional<double> timeout_s;           // of one layer's simulation
  std::optional<std::filesystem::path> cache;  // see PrepareOptions
  bool timelines = true;
  bool progress = false;  // on stderr
};

struct SimulatedRun {
  RunReport report;
  Timeline timeline;  // the layers one after the other; empty where not asked for
};

// Reduces the experiment to the runs of these names, in this order; none: leaves it as it is.
// Throws InputError for a name that the experiment does not have.
void keep_runs(Experiment& experiment, const std::vector<std::string>& names);

// The runs in the order of the experiment. The result depends on the experiment alone, whatever
// num_jobs is. Throws InputError for inputs that do not fit together, Error for an engine that
// fails (its message names run and layer).
std::vector<SimulatedRun> simulate(const Experiment& experiment, const SimulateOptions& options);

// Ratio of the baseline's time to the run's. Baselines are exact runs with contiguous placement;
// absent where the experiment holds none.
struct Speedups {
  std::optional<double> over_standard;
  std::optional<double> over_dedup_contiguous;
};
Speedups speedups(const std::vector<SimulatedRun>& runs, std::size_t run_idx);

// The console table: one row per run, means over the layers.
Table result_table(const std::vector<SimulatedRun>& runs);

// One sentence per pruned run: the router weight lost and how often the top-1 expert changed.
std::vector<std::string> pruning_notes(const std::vector<SimulatedRun>& runs);

// {"schema_version": 1, "experiment": NAME, "runs": [reports with their speed-ups]}
nlohmann::json results_json(const Experiment& experiment, const std::vector<SimulatedRun>& runs);
// The table of core/results.hpp.
std::string results_csv(const std::vector<SimulatedRun>& runs);

// Throws InputError if `folder` is a file, or holds anything and no results of an earlier run.
void check_output_folder(const std::filesystem::path& folder);
// Writes results.json, results.csv, timeline-RUN.json, effective.yaml and command.txt, each in one
// step; results.json last, so that its presence says that the folder is complete. Timelines of
// earlier results are removed.
void write_results(const std::filesystem::path& folder, const Experiment& experiment,
                   const std::vector<SimulatedRun>& runs, const std::string& command);

}  // namespace coterie
