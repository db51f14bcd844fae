#pragma once
// A predicted and a measured report, run by run: signed relative errors (predicted / measured - 1)
// of the whole, the phases and the transfer groups, and whether the order of the runs is right.

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/results.hpp"

namespace coterie {

struct ComparedTime {
  std::string run;
  std::string item;  // "total", "phase dispatch", "group dispatch scale_up"
  double predicted_s = 0.0;
  double measured_s = 0.0;
  // See relative_spread in core/statistics.hpp; absent without samples.
  std::optional<double> spread;
  [[nodiscard]] double error() const { return predicted_s / measured_s - 1.0; }
  // The difference lies within the spread of the measurement.
  [[nodiscard]] bool unclear() const { return spread && std::abs(error()) <= *spread; }
};

struct Comparison {
  std::vector<ComparedTime> times;
  // Pairs of runs whose measured times differ by more than their spreads together, and how many of
  // them the prediction orders alike. Pairs within their spread are unclear.
  std::size_t num_ordered_pairs = 0;
  std::size_t num_right_pairs = 0;
  std::size_t num_unclear_pairs = 0;
  std::vector<std::string> unmatched;  // runs of only one of the two

  [[nodiscard]] double median_error() const;  // absolute, of the totals
  [[nodiscard]] double worst_error() const;
};

// Runs are matched by name, layers by number; times are sums over the layers that both hold. Throws
// InputError if no run is in both, or matched runs differ in ranks, policy or placement.
Comparison compare(const Results& predicted, const Results& measured);

// The run of that name; null where there is none.
const RunReport* find_run(const Results& results, const std::string& name);

// A results.json, a folder that holds one, or a single report.
Results read_results_or_report(const std::string& path);

nlohmann::json to_json(const Comparison& comparison);

}  // namespace coterie
