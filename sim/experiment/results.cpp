// What `coterie simulate` shows and leaves: table, JSON, CSV, the folder.

#include <fmt/format.h>

#include <algorithm>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/results.hpp"
#include "sim/experiment/simulate.hpp"

namespace coterie {
namespace {

namespace fs = std::filesystem;

constexpr const char* kResults = "results.json";
constexpr const char* kTimelinePrefix = "timeline-";

std::optional<double> speedup_over(const std::vector<SimulatedRun>& runs, std::size_t run_idx,
                                   const std::string& policy) {
  for (const SimulatedRun& run : runs) {
    const RunReport& report = run.report;
    if (report.exact && report.policy == policy && report.placement == "contiguous") {
      return report.time_s() / runs[run_idx].report.time_s();
    }
  }
  return std::nullopt;
}

double mean_over_layers(const RunReport& report, double LayerReport::*member) {
  double sum = 0.0;
  for (const LayerReport& layer : report.layers) sum += layer.*member;
  return sum / static_cast<double>(report.layers.size());
}

// From the first begin to the last end of several phases on the slowest rank, mean over layers:
// the hops of a hierarchical dispatch or combine count as one.
double mean_span_s(const RunReport& report, std::initializer_list<Phase> phases) {
  double sum = 0.0;
  for (const LayerReport& layer : report.layers) {
    double slowest = 0.0;
    for (std::size_t rank = 0; rank < layer.phases.front().begin_s.size(); ++rank) {
      double begin = 0.0;
      double end = 0.0;
      for (const PhaseTimes& times : layer.phases) {
        if (std::find(phases.begin(), phases.end(), times.phase) == phases.end()) continue;
        if (times.end_s[rank] <= times.begin_s[rank]) continue;
        if (end == 0.0) begin = times.begin_s[rank];
        begin = std::min(begin, times.begin_s[rank]);
        end = std::max(end, times.end_s[rank]);
      }
      slowest = std::max(slowest, end - begin);
    }
    sum += slowest;
  }
  return sum / static_cast<double>(report.layers.size());
}

std::string tier_cell(const RunReport& report, const std::string& tier) {
  const double bytes =
      static_cast<double>(report.tier_bytes(tier)) / static_cast<double>(report.layers.size());
  return bytes > 0.0 ? format_bytes(bytes) : "-";
}

std::string ratio_cell(const std::optional<double>& ratio) {
  return ratio ? fmt::format("{:.2f}x", *ratio) : "-";
}

std::string time_cell(const RunReport& report) {
  const double mean_s = mean_over_layers(report, &LayerReport::time_s);
  const LayerReport& layer = report.layers.front();
  if (!layer.high_s || layer.time_s <= 0.0) return format_seconds(Seconds{mean_s});
  return fmt::format("{} +-{:.0f}%", format_seconds(Seconds{mean_s}),
                     100.0 * (*layer.high_s / layer.time_s - 1.0));
}

// The most used link of all layers.
std::string link_cell(const RunReport& report) {
  const LinkLoad* busiest = nullptr;
  for (const LayerReport& layer : report.layers) {
    if (!layer.busiest_link) continue;
    if (busiest == nullptr || layer.busiest_link->utilization > busiest->utilization) {
      busiest = &*layer.busiest_link;
    }
  }
  if (busiest == nullptr) return "-";
  return fmt::format("{} ({:.0f}%)", busiest->name, 100.0 * busiest->utilization);
}

bool belongs_to_results(const fs::path& file) {
  const std::string name = file.filename().string();
  return name == kResults || name == "results.csv" || name == "effective.yaml" ||
         name == "command.txt" || name == "report.html" ||
         (name.starts_with(kTimelinePrefix) && file.extension() == ".json");
}

}  // namespace

Speedups speedups(const std::vector<SimulatedRun>& runs, std::size_t run_idx) {
  return {speedup_over(runs, run_idx, "standard"), speedup_over(runs, run_idx, "dedup")};
}

Table result_table(const std::vector<SimulatedRun>& runs) {
  Table table;
  table.header = {"run",           "layer time",   "dispatch",    "MLP",
                  "combine",       "fan-out",      "scale-up",    "network",
                  "load max/mean", "busiest link", "vs standard", "vs dedup+contiguous"};
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const RunReport& report = runs[i].report;
    const Speedups ratio = speedups(runs, i);
    const auto seconds = [&](std::initializer_list<Phase> phases) {
      return format_seconds(Seconds{mean_span_s(report, phases)});
    };
    table.rows.push_back(
        {report.exact ? report.name : report.name + " (not exact)", time_cell(report),
         seconds({Phase::kDispatch, Phase::kForward}), seconds({Phase::kMlp}),
         seconds({Phase::kGather, Phase::kCombine}),
         fmt::format("{:.2f}", mean_over_layers(report, &LayerReport::fanout_ranks)),
         tier_cell(report, "scale_up"), tier_cell(report, "network"),
         fmt::format("{:.2f}", mean_over_layers(report, &LayerReport::rank_load_max_over_mean)),
         link_cell(report), ratio_cell(ratio.over_standard),
         ratio_cell(ratio.over_dedup_contiguous)});
  }
  return table;
}

nlohmann::json results_json(const Experiment& experiment, const std::vector<SimulatedRun>& runs) {
  nlohmann::json out{{"schema_version", 1}, {"experiment", experiment.name}};
  out["runs"] = nlohmann::json::array();
  for (std::size_t i = 0; i < runs.size(); ++i) {
    nlohmann::json report = to_json(runs[i].report);
    const Speedups ratio = speedups(runs, i);
    if (ratio.over_standard) report["speedup_over_standard"] = *ratio.over_standard;
    if (ratio.over_dedup_contiguous) {
      report["speedup_over_dedup_contiguous"] = *ratio.over_dedup_contiguous;
    }
    out["runs"].push_back(std::move(report));
  }
  return out;
}

std::string results_csv(const std::vector<SimulatedRun>& runs) {
  std::vector<RunReport> reports;
  for (const SimulatedRun& run : runs) reports.push_back(run.report);
  return to_csv(reports);
}

std::vector<std::string> pruning_notes(const std::vector<SimulatedRun>& runs) {
  std::vector<std::string> notes;
  for (const SimulatedRun& run : runs) {
    const RunReport& report = run.report;
    if (!report.weight_lost) continue;
    notes.push_back(fmt::format(
        "{} is not exact: experts with {:.1f}% of the router weight are replaced, the top-1 expert "
        "of {:.1f}% of the tokens",
        report.name, 100.0 * *report.weight_lost, 100.0 * report.top1_changed.value_or(0.0)));
  }
  return notes;
}

void check_output_folder(const fs::path& folder) {
  if (!fs::exists(folder)) return;
  if (!fs::is_directory(folder)) {
    throw InputError(folder.string(), "a file", "a folder for the results");
  }
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (!belongs_to_results(entry.path())) {
      throw InputError(folder.string(),
                       fmt::format("a folder that holds \"{}\"", entry.path().filename().string()),
                       "a new or empty folder, or one of earlier results");
    }
  }
}

void write_results(const fs::path& folder, const Experiment& experiment,
                   const std::vector<SimulatedRun>& runs, const std::string& command) {
  check_output_folder(folder);
  make_folder(folder);
  // Without results.json the folder counts as incomplete from here on.
  fs::remove(folder / kResults);
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (entry.path().filename().string().starts_with(kTimelinePrefix)) fs::remove(entry.path());
  }
  for (const SimulatedRun& run : runs) {
    if (run.timeline.spans.empty()) continue;
    write_timeline(folder / fmt::format("{}{}.json", kTimelinePrefix, run.report.name),
                   run.timeline);
  }
  write_file(folder / "effective.yaml", experiment.effective_yaml);
  write_file(folder / "command.txt", command + "\n");
  write_file(folder / "results.csv", results_csv(runs));
  write_file(folder / kResults, results_json(experiment, runs).dump(1) + "\n");
}

}  // namespace coterie
