#include "core/results.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/csv.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "core/json_fault.hpp"
#include "core/metrics.hpp"
#include "core/yaml.hpp"

namespace coterie {
namespace {

namespace fs = std::filesystem;

constexpr const char* kResults = "results.json";
constexpr const char* kEffective = "effective.yaml";
constexpr const char* kTimelinePrefix = "timeline-";

// ------------------------------------------------------------ CSV

// A line under construction: the same calls name the columns and fill the cells, so that the two
// cannot differ.
struct Cells {
  std::vector<std::string> names, values;

  void text(const std::string& name, const std::string& value) {
    names.push_back(name);
    values.push_back(value);
  }
  template <class T>
  void number(const std::string& name, const T& value) {
    text(name, fmt::format("{}", value));
  }
  template <class T>
  void number(const std::string& name, const std::optional<T>& value) {
    text(name, value ? fmt::format("{}", *value) : "");
  }
};

std::int64_t bytes_of(const LayerReport& layer, std::string_view tier, bool dispatch) {
  std::int64_t sum = 0;
  for (const TransferGroup& group : layer.groups) {
    const bool out = group.phase == Phase::kDispatch || group.phase == Phase::kForward;
    if (group.tier == tier && out == dispatch) sum += group.bytes;
  }
  return sum;
}

// The phase on its slowest rank; absent where the report knows no phases. A phase that the policy
// does not have takes no time.
std::optional<double> phase_s(const LayerReport& layer, Phase phase) {
  if (layer.phases.empty()) return std::nullopt;
  for (const PhaseTimes& times : layer.phases) {
    if (times.phase == phase) return times.slowest_s();
  }
  return 0.0;
}

// Absent for a layer without phases.
template <class Metric>
std::optional<double> known(const LayerReport& layer, const Metric& metric) {
  return layer.phases.empty() ? std::nullopt : std::optional<double>(metric(layer));
}

void add_times(Cells& cells, const LayerReport& layer) {
  cells.number("layer_time_s", layer.time_s);
  cells.number("layer_bound_s", layer.bound_s);
  cells.number("layer_low_s", layer.low_s);
  cells.number("layer_high_s", layer.high_s);
  for (int p = 0; p < kNumPhases; ++p) {
    const auto phase = static_cast<Phase>(p);
    cells.number(to_string(phase) + "_slowest_rank_s", phase_s(layer, phase));
  }
  cells.number("dispatch_s", known(layer, dispatch_s));
  cells.number("mlp_s", known(layer, mlp_s));
  cells.number("combine_s", known(layer, combine_s));
  const std::optional<CriticalRank> critical = critical_rank(layer);
  cells.number("critical_rank", critical ? std::optional(critical->rank) : std::nullopt);
  for (std::size_t i = 0; i < kNumParts; ++i) {
    cells.number("critical_" + to_string(static_cast<Part>(i)) + "_s",
                 critical ? std::optional(critical->parts.seconds[i]) : std::nullopt);
  }
}

// Which run it is, and what became of it.
void add_run(Cells& cells, const RunReport& run) {
  cells.text("run", run.name);
  cells.text("status", run.failure ? "failed" : "ok");
  cells.text("error", run.failure.value_or(""));
  cells.text("engine", run.engine);
  cells.text("policy", run.policy);
  cells.text("placement", run.placement);
}

Cells csv_cells(const RunReport& run, const LayerReport& layer) {
  Cells cells;
  add_run(cells, run);
  cells.text("exact", run.exact ? "true" : "false");
  cells.text("topology", run.topology);
  cells.text("transport", run.transport);
  cells.text("model", run.model);
  cells.text("trace", run.trace);
  cells.number("num_ranks", run.num_ranks);
  cells.number("num_groups", run.num_groups);
  cells.number("layer", layer.layer);
  add_times(cells, layer);
  cells.number("copies_per_token", layer.copies);
  cells.number("fanout_ranks", layer.fanout_ranks);
  cells.number("remote_fanout_ranks", layer.remote_fanout_ranks);
  cells.number("fanout_nodes", layer.fanout_nodes);
  cells.number("remote_fanout_nodes", layer.remote_fanout_nodes);
  cells.number("rank_load_max_over_mean", layer.rank_load_max_over_mean);
  for (const char* tier : kTierNames) {
    cells.number(fmt::format("dispatch_{}_bytes", tier), bytes_of(layer, tier, true));
    cells.number(fmt::format("combine_{}_bytes", tier), bytes_of(layer, tier, false));
  }
  cells.text("busiest_link", layer.busiest_link ? layer.busiest_link->name : "");
  cells.number("busiest_link_utilization",
               layer.busiest_link ? layer.busiest_link->utilization : std::nullopt);
  cells.number("token_repeats", run.token_repeats);
  cells.number("weight_lost", run.weight_lost);
  cells.number("top1_changed", run.top1_changed);
  return cells;
}

// A failed run has no layer: of its line only what says which run it is, and why, is filled.
Cells failed_cells(const RunReport& run) {
  Cells cells = csv_cells(run, {});
  const auto first = std::find(cells.names.begin(), cells.names.end(), "layer");
  std::fill(cells.values.begin() + (first - cells.names.begin()), cells.values.end(), "");
  return cells;
}

// One line per run: parts and memory by the names that the first run with a step has.
std::string step_csv(const std::vector<RunReport>& runs) {
  const auto first = std::find_if(runs.begin(), runs.end(),
                                  [](const RunReport& run) { return run.step.has_value(); });
  std::string out;
  for (const RunReport& run : runs) {
    const bool known = run.step.has_value();
    const StepReport& step = known ? *run.step : *first->step;
    const auto number = [&](double value) { return known ? std::optional(value) : std::nullopt; };
    Cells cells;
    add_run(cells, run);
    cells.text("topology", run.topology);
    cells.text("transport", run.transport);
    cells.text("model", run.model);
    cells.text("kind", known ? step.kind : "");
    cells.text("method", known ? step.method : "");
    cells.text("parallel", known ? step.parallel : "");
    cells.number("num_gpus", number(step.num_gpus));
    cells.number("step_time_s", number(step.time_s));
    cells.number("step_low_s", known ? step.low_s : std::nullopt);
    cells.number("step_high_s", known ? step.high_s : std::nullopt);
    cells.number("tokens_per_s_per_gpu", number(step.tokens_per_s_per_gpu));
    cells.number("model_flops_per_s_per_gpu", number(step.model_flops_per_s_per_gpu));
    cells.number("communication_s", number(step.communication_s));
    cells.number("exposed_communication_s", number(step.exposed_communication_s));
    cells.number("bubble_s", number(step.bubble_s));
    cells.number("tpot_s", known ? step.tpot_s : std::nullopt);
    cells.number("ttft_s", known ? step.ttft_s : std::nullopt);
    cells.number("rank_load_max_over_mean", known ? step.rank_load_max_over_mean : std::nullopt);
    if (!first->step->series.empty()) {
      double slowest_s = 0.0;
      for (const auto& one : step.series) slowest_s = std::max(slowest_s, one.time_s);
      cells.number("series_steps", step.series.size());
      cells.number("series_slowest_s", known ? std::optional(slowest_s) : std::nullopt);
      cells.number("series_static_loss", known ? step.static_loss() : std::nullopt);
    }
    for (const auto& [name, value] : step.parts) cells.number("part_" + name + "_s", number(value));
    for (const auto& [name, value] : step.busy) cells.number(name + "_busy", number(value));
    for (const auto& [name, value] : step.memory_bytes) {
      cells.number("memory_" + name + "_bytes", number(value));
    }
    if (out.empty()) out = csv_line(cells.names);
    out += csv_line(cells.values);
  }
  return out;
}

// ------------------------------------------------------------ the folder

bool is_timeline(const fs::path& file) {
  return file.filename().string().starts_with(kTimelinePrefix) && file.extension() == ".json";
}

bool belongs_to_results(const fs::path& file) {
  const std::string name = file.filename().string();
  return name == kResults || name == "results.csv" || name == kEffective || name == "command.txt" ||
         name == "report.html" || name == "dry_run.json" || is_timeline(file);
}

// Whose results a folder holds.
struct Owner {
  std::string experiment;
  std::string kind;  // empty where nothing tells
};

// results.json tells it, or where writing was interrupted before it, effective.yaml.
Owner owner_of(const fs::path& folder) {
  if (path_exists(folder / kResults)) {
    const Results results = read_results(folder / kResults);
    return {results.experiment, results.runs.empty() ? "" : results.runs.front().kind};
  }
  if (path_exists(folder / kEffective)) {
    YamlMap map = load_yaml(folder / kEffective).as_map();
    if (const auto name = map.optional("name")) return {name->as_string(), ""};
  }
  throw InputError(folder.string(), "a folder whose results do not say what they are of",
                   "a new or empty folder, or one of earlier results");
}

}  // namespace

std::string timeline_name(std::string_view run) {
  return fmt::format("{}{}.json", kTimelinePrefix, run);
}

nlohmann::json to_json(const Results& results) {
  nlohmann::json out{
      {"schema_version", 1}, {"experiment", results.experiment}, {"runs", nlohmann::json::array()}};
  for (const RunReport& run : results.runs) {
    nlohmann::json report = to_json(run);
    const Speedups ratios = speedups(results.runs, run);
    if (ratios.over_standard) report["speedup_over_standard"] = *ratios.over_standard;
    if (ratios.over_dedup_contiguous) {
      report["speedup_over_dedup_contiguous"] = *ratios.over_dedup_contiguous;
    }
    out["runs"].push_back(std::move(report));
  }
  return out;
}

Results results_from_json(const nlohmann::json& document, const std::string& where) {
  try {
    if (const int version = document.at("schema_version").get<int>(); version != 1) {
      throw InputError(where, fmt::format("schema_version {}", version), "schema_version 1");
    }
    Results results;
    document.at("experiment").get_to(results.experiment);
    const auto& runs = document.at("runs");
    for (std::size_t i = 0; i < runs.size(); ++i) {
      results.runs.push_back(report_from_json(runs[i], fmt::format("{}: run {}", where, i)));
    }
    return results;
  } catch (const nlohmann::json::exception& error) {
    throw InputError(where, json_fault(error), "results of schema_version 1");
  }
}

std::string to_csv(const std::vector<RunReport>& runs) {
  if (std::any_of(runs.begin(), runs.end(), [](const RunReport& run) { return run.step; })) {
    return step_csv(runs);
  }
  std::string out = csv_line(csv_cells({}, {}).names);
  for (const RunReport& run : runs) {
    if (run.failure) out += csv_line(failed_cells(run).values);
    for (const LayerReport& layer : run.layers) out += csv_line(csv_cells(run, layer).values);
  }
  return out;
}

void check_results_folder(const fs::path& folder, const std::string& experiment,
                          const std::string& kind) {
  if (!path_exists(folder)) return;
  if (!is_folder(folder)) {
    throw InputError(folder.string(), "a file", "a folder for the results");
  }
  remove_stale_temporaries(folder);
  std::vector<fs::path> files = list_folder(folder);
  std::erase_if(files, is_temporary_name);  // another process is at it
  if (files.empty()) return;
  for (const fs::path& file : files) {
    if (!belongs_to_results(file)) {
      throw InputError(folder.string(),
                       fmt::format("a folder that holds \"{}\"", file.filename().string()),
                       "a new or empty folder, or one of earlier results");
    }
  }
  const Owner owner = owner_of(folder);
  if (owner.experiment != experiment || (!owner.kind.empty() && owner.kind != kind)) {
    throw InputError(folder.string(),
                     fmt::format("{} results of experiment {}",
                                 owner.kind.empty() ? "unfinished" : owner.kind, owner.experiment),
                     fmt::format("a new or empty folder, or {} results of {}", kind, experiment));
  }
}

void write_results(const fs::path& folder, const std::string& kind, const ResultFiles& files) {
  const Results& results = files.results;
  check_results_folder(folder, results.experiment, kind);
  make_folder(folder);
  // First what says whose the folder is. Without results.json it counts as incomplete from here on.
  write_file(folder / kEffective, files.effective_yaml);
  remove_file(folder / kResults);
  for (const fs::path& file : list_folder(folder)) {
    if (is_timeline(file)) remove_file(file);
  }
  for (const RunTimeline& timeline : files.timelines) {
    if (timeline.timeline.spans.empty()) continue;
    write_timeline(folder / timeline_name(timeline.run), timeline.timeline);
  }
  write_file(folder / "command.txt", files.command + "\n");
  write_file(folder / "results.csv", to_csv(results.runs));
  write_file(folder / kResults, dump_json(to_json(results), 1) + "\n");
}

Results read_results(const fs::path& path) {
  const std::string text = read_file(path);
  return results_from_json(parse_json(text, path.string(), "results"), path.string());
}

}  // namespace coterie
