#pragma once
// The files in which the runs of an experiment end up, the same for predictions and measurements:
//
//   results.json         everything; written last, so that its presence says the folder is complete
//   results.csv          one line per run and layer, for spreadsheets
//   timeline-RUN.json    one per run that has a timeline
//   effective.yaml       the experiment with everything that was overridden; repeats the run
//   command.txt          the command line

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "core/report.hpp"

namespace coterie {

struct Results {
  std::string experiment;
  std::vector<RunReport> runs;
};

// {"schema_version": 1, "experiment": NAME, "runs": [run reports with their speed-ups]}
nlohmann::json to_json(const Results& results);
// Throws InputError with `where` for other documents.
Results results_from_json(const nlohmann::json& document, const std::string& where);

// One line per run and layer, and one per run that failed; units in the column names. A time is
// that of the line's layer: `layer_time_s`, each phase on its slowest rank, dispatch, MLP and
// combine on their own, and the parts of the critical rank (core/metrics.hpp), which add up to
// layer_time_s. Cells are empty where nothing is known.
std::string to_csv(const std::vector<RunReport>& runs);

struct RunTimeline {
  std::string run;
  Timeline timeline;
};

// What a folder of results is made from.
struct ResultFiles {
  Results results;
  std::vector<RunTimeline> timelines;  // empty ones are not written
  std::string effective_yaml;
  std::string command;
};

// Throws InputError if results of `experiment` and `kind` (predicted, measured) may not be written
// to `folder`: it is a file, or holds files that are no results, or results of another experiment or
// kind. So nothing of somebody else's is ever removed.
void check_results_folder(const std::filesystem::path& folder, const std::string& experiment,
                          const std::string& kind);

// Checks the folder, makes it, removes what earlier results of the same experiment left there and
// this one does not replace, and writes the files, each in one step. `kind` is that of all runs.
void write_results(const std::filesystem::path& folder, const std::string& kind,
                   const ResultFiles& files);
Results read_results(const std::filesystem::path& path);

// The name of a run's timeline in its folder.
std::string timeline_name(std::string_view run);

}  // namespace coterie
