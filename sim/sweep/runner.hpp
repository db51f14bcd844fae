#pragma once
// Runs the points of a sweep: in worker processes, several at once, every result durable as it comes.

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "sim/sweep/journal.hpp"
#include "sim/sweep/spec.hpp"

namespace coterie {

struct SweepOptions {
  std::filesystem::path folder;
  unsigned num_jobs = 1;      // points at once in this process
  double timeout_s = 0.0;     // of one point; 0: none
  bool retry_failed = false;  // run points again that an earlier start recorded as failed
  // Position among the processes of an MPI job that share the folder. Each takes its share of the
  // pending points, spread by their ids so that no process gets all the points of one axis value,
  // and keeps a journal of its own.
  int rank = 0;
  int size = 1;
  // Called once everything recorded has been read and before anything is written. All processes of
  // a job must see the same records, or points would be left out or repeated: a barrier.
  std::function<void()> synchronise = [] {};
};

struct SweepCounts {
  std::size_t total = 0;
  std::size_t reused = 0;  // recorded by earlier starts
  std::size_t done = 0;    // by this process, failed ones included
  std::size_t failed = 0;  // in all
};

// One point's result rows: an array of flat objects (column -> value), one per run. Of a run that failed
// `error` has the sentence and `exit_code` its ExitCode; the tables have `status` and `error` for them.
using EvaluatePoint = std::function<nlohmann::ordered_json(const SweepPoint&)>;

// Evaluates what is pending. `evaluate` runs in worker processes, each of which does many points and
// may keep in memory what they have in common; what it throws is recorded as the point's failure, as
// is a worker's end, and does not stop the others. Throws InputError where the folder cannot be used
// or a result cannot be made durable.
SweepCounts run_points(const SweepSpec& spec, const SweepOptions& options,
                       const EvaluatePoint& evaluate);

// What failed first of recorded entries, in their order: a point, or a run of one. Empty where all went well.
struct SweepFailure {
  std::string sentence;  // with the point, and the run
  ExitCode code = ExitCode::kInternalError;
};
std::optional<SweepFailure> first_failure(const std::vector<nlohmann::json>& entries);

// All recorded entries of the folder's journals, in the order of spec.points; missing ones left
// out.
std::vector<nlohmann::json> collect(const SweepSpec& spec, const std::filesystem::path& folder);

// Writes, from the entries that collect() gives, sweep.csv and the same as sweep.parquet (one row per
// point and run: point, the axes as set.KEY, `status`, `error`, the columns of the rows, and
// `speedup_over_baseline` where the spec has one), commands.txt (one line per point) and sweep.json
// (schema_version, coterie: version, sweep: id, base: path, base_yaml: its text, overrides:
// [KEY=VALUE] of the base, axes: [keys], baseline: {key: value}, points: number).
void write_sweep_tables(const SweepSpec& spec, const std::vector<nlohmann::json>& entries,
                        const std::filesystem::path& folder);

}  // namespace coterie
