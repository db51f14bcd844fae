#pragma once
// The files in which the runs of an experiment end up, the same for predictions and measurements:
// results.json (everything) and results.csv (one line per run and layer, for spreadsheets).

#include <filesystem>
#include <string>
#include <vector>

#include "core/report.hpp"

namespace coterie {

struct Results {
  std::string experiment;
  std::vector<RunReport> runs;
};

// {"schema_version": 1, "experiment": NAME, "runs": [run reports]}
nlohmann::json to_json(const Results& results);
// Throws InputError with `where` for other documents.
Results results_from_json(const nlohmann::json& document, const std::string& where);
// One line per run and layer; units in the column names, times on the slowest rank.
std::string to_csv(const std::vector<RunReport>& runs);

// Both files into the folder, which must exist.
void write_results(const std::filesystem::path& folder, const Results& results);
Results read_results(const std::filesystem::path& path);

}  // namespace coterie
