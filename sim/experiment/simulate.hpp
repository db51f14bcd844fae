#pragma once
// The main job: every run of an experiment through a predictor, layer by layer, into reports. Tables
// and files of them are core's business (core/result_table.hpp, core/results.hpp).

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/memo.hpp"
#include "core/results.hpp"
#include "workloads/experiment.hpp"

namespace coterie {

// How a whole step is simulated (sim/step/step_times.hpp).
enum class StepMethod : std::uint8_t { kExecuted, kComposed };

struct SimulateOptions {
  // Runs and layers simulated at once: in threads, or under `simgrid` in child processes.
  unsigned num_jobs = 1;
  std::optional<double> relative_precision;    // see EngineOptions
  std::optional<double> timeout_s;             // of one layer's simulation
  std::optional<std::filesystem::path> cache;  // of learnt placements, see PrepareOptions
  // Keeps traces, placements, plans and counts in memory by their content, for programs that simulate
  // many experiments that have them in common.
  Memo* memo = nullptr;
  std::optional<StepMethod> step_method;  // absent: small steps are executed, others composed
  bool timelines = true;
  bool progress = false;  // on stderr
};

struct SimulatedRun {
  RunReport report;
  Timeline timeline;  // the layers one after the other; empty where not asked for or not known
  // What the program should say of a run that failed (report.failure has the sentence).
  std::optional<ExitCode> failure_code;
};

// Reduces the experiment to the runs of these names, in this order; none: leaves it as it is.
// Throws InputError for a name that the experiment does not have.
void keep_runs(Experiment& experiment, const std::vector<std::string>& names);

// The runs in the order of the experiment. The result depends on the experiment alone, whatever
// num_jobs is. A run that cannot be carried out (a placement that does not fit, a balance cap that
// cannot be met, an engine that fails) becomes a report with its failure; the others are simulated.
// Throws InputError for inputs that are wrong for all runs, and the first run's error where no run
// can be carried out.
std::vector<SimulatedRun> simulate(const Experiment& experiment, const SimulateOptions& options);

// The reports alone.
Results results_of(const Experiment& experiment, const std::vector<SimulatedRun>& runs);
// What write_results (kind "predicted") leaves of them.
ResultFiles result_files(const Experiment& experiment, const std::vector<SimulatedRun>& runs,
                         const std::string& command);

}  // namespace coterie
