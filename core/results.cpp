#include "core/results.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "core/error.hpp"
#include "core/file.hpp"

namespace coterie {
namespace {

constexpr std::array<const char*, 3> kTiers{"local", "scale_up", "network"};

// Quoted only where a comma, quote or line break asks for it (RFC 4180).
std::string csv_cell(const std::string& text) {
  if (text.find_first_of(",\"\n\r") == std::string::npos) return text;
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"') out += '"';
    out += c;
  }
  out += '"';
  return out;
}

std::string csv_optional(const std::optional<double>& value) {
  return value ? fmt::format("{}", *value) : "";
}

double slowest_s(const LayerReport& layer, Phase phase) {
  for (const PhaseTimes& times : layer.phases) {
    if (times.phase == phase) return times.slowest_s();
  }
  return 0.0;
}

std::int64_t bytes_of(const LayerReport& layer, std::string_view tier, bool dispatch) {
  std::int64_t sum = 0;
  for (const TransferGroup& group : layer.groups) {
    const bool out = group.phase == Phase::kDispatch || group.phase == Phase::kForward;
    if (group.tier == tier && out == dispatch) sum += group.bytes;
  }
  return sum;
}

std::vector<std::string> csv_row(const RunReport& run, const LayerReport& layer) {
  std::vector<std::string> cells{csv_cell(run.name),
                                 run.engine,
                                 run.policy,
                                 csv_cell(run.placement),
                                 run.exact ? "true" : "false",
                                 csv_cell(run.topology),
                                 csv_cell(run.model),
                                 csv_cell(run.trace),
                                 fmt::format("{}", run.num_ranks),
                                 fmt::format("{}", run.num_groups),
                                 fmt::format("{}", layer.layer),
                                 fmt::format("{}", layer.time_s),
                                 fmt::format("{}", layer.bound_s),
                                 csv_optional(layer.low_s),
                                 csv_optional(layer.high_s)};
  for (int p = 0; p < kNumPhases; ++p) {
    cells.push_back(fmt::format("{}", slowest_s(layer, static_cast<Phase>(p))));
  }
  for (const double value :
       {layer.copies, layer.fanout_ranks, layer.remote_fanout_ranks, layer.fanout_nodes,
        layer.remote_fanout_nodes, layer.rank_load_max_over_mean}) {
    cells.push_back(fmt::format("{}", value));
  }
  for (const char* tier : kTiers) {
    cells.push_back(fmt::format("{}", bytes_of(layer, tier, true)));
    cells.push_back(fmt::format("{}", bytes_of(layer, tier, false)));
  }
  cells.push_back(layer.busiest_link ? csv_cell(layer.busiest_link->name) : "");
  cells.push_back(layer.busiest_link ? fmt::format("{}", layer.busiest_link->utilization) : "");
  cells.push_back(csv_optional(run.weight_lost));
  cells.push_back(csv_optional(run.top1_changed));
  return cells;
}

}  // namespace

nlohmann::json to_json(const Results& results) {
  nlohmann::json out{
      {"schema_version", 1}, {"experiment", results.experiment}, {"runs", nlohmann::json::array()}};
  for (const RunReport& run : results.runs) out["runs"].push_back(to_json(run));
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
    throw InputError(where, error.what(), "results of schema_version 1");
  }
}

std::string to_csv(const std::vector<RunReport>& runs) {
  std::vector<std::string> columns{"run",      "engine", "policy",  "placement", "exact",
                                   "topology", "model",  "trace",   "num_ranks", "num_groups",
                                   "layer",    "time_s", "bound_s", "low_s",     "high_s"};
  for (int p = 0; p < kNumPhases; ++p) {
    columns.push_back(to_string(static_cast<Phase>(p)) + "_slowest_rank_s");
  }
  for (const char* name : {"copies_per_token", "fanout_ranks", "remote_fanout_ranks",
                           "fanout_nodes", "remote_fanout_nodes", "rank_load_max_over_mean"}) {
    columns.emplace_back(name);
  }
  for (const char* tier : kTiers) {
    columns.push_back(fmt::format("dispatch_{}_bytes", tier));
    columns.push_back(fmt::format("combine_{}_bytes", tier));
  }
  columns.insert(columns.end(),
                 {"busiest_link", "busiest_link_utilization", "weight_lost", "top1_changed"});
  std::string out = fmt::format("{}\n", fmt::join(columns, ","));
  for (const RunReport& run : runs) {
    for (const LayerReport& layer : run.layers) {
      out += fmt::format("{}\n", fmt::join(csv_row(run, layer), ","));
    }
  }
  return out;
}

void write_results(const std::filesystem::path& folder, const Results& results) {
  write_file(folder / "results.csv", to_csv(results.runs));
  write_file(folder / "results.json", to_json(results).dump(1) + "\n");
}

Results read_results(const std::filesystem::path& path) {
  const std::string text = read_file(path);
  const auto document = nlohmann::json::parse(text, nullptr, false);
  if (document.is_discarded()) throw InputError(path.string(), "text that is no JSON", "results");
  return results_from_json(document, path.string());
}

}  // namespace coterie
