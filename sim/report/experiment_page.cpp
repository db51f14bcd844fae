// The page of an experiment: its runs, their layers, the load of links over time.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "core/metrics.hpp"
#include "core/statistics.hpp"
#include "sim/report/link_loads.hpp"
#include "sim/report/pages.hpp"
#include "topologies/network.hpp"
#include "workloads/experiment.hpp"

namespace coterie {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

ordered_json optional_number(const std::optional<double>& value) {
  return value ? ordered_json(*value) : ordered_json(nullptr);
}

// Four significant digits: a heat map shows no more.
double rounded(double value) {
  if (value == 0.0) return 0.0;
  const double scale = std::pow(10.0, 3.0 - std::floor(std::log10(std::abs(value))));
  return std::round(value * scale) / scale;
}

// The parts of the critical rank; none where no phases are known.
ordered_json shares_json(const LayerReport& layer) {
  ordered_json out = ordered_json::object();
  const std::optional<CriticalRank> critical = critical_rank(layer);
  for (std::size_t i = 0; critical && i < kNumParts; ++i) {
    const double seconds = critical->parts.seconds[i];
    if (seconds > 0.0) out[to_string(static_cast<Part>(i))] = seconds;
  }
  return out;
}

// Predicted: the interval of a calibrated topology. Measured: 5th to 95th percentile.
std::pair<std::optional<double>, std::optional<double>> interval(const LayerReport& layer) {
  if (layer.samples_s.size() > 1) {
    return {quantile(layer.samples_s, 0.05), quantile(layer.samples_s, 0.95)};
  }
  return {layer.low_s, layer.high_s};
}

ordered_json layer_json(const LayerReport& layer) {
  ordered_json out;
  out["layer"] = layer.layer;
  out["time_s"] = layer.time_s;
  const auto [low_s, high_s] = interval(layer);
  out["low_s"] = optional_number(low_s);
  out["high_s"] = optional_number(high_s);
  out["bound_s"] = layer.bound_s > 0.0 ? ordered_json(layer.bound_s) : ordered_json(nullptr);
  out["shares"] = shares_json(layer);
  // First begin to last end over all ranks: the strip above the heat map.
  out["spans"] = ordered_json::object();
  for (const PhaseTimes& times : layer.phases) {
    if (times.begin_s.empty()) continue;
    const double begin_s = *std::min_element(times.begin_s.begin(), times.begin_s.end());
    const double end_s = *std::max_element(times.end_s.begin(), times.end_s.end());
    if (end_s > begin_s) out["spans"][to_string(times.phase)] = {rounded(begin_s), rounded(end_s)};
  }
  return out;
}

// Percent-encoded, for an href.
std::string url_path(const fs::path& path) {
  std::string out;
  for (const char c : path.generic_string()) {
    const bool plain = std::isalnum(static_cast<unsigned char>(c)) != 0 ||
                       std::string_view("/._-+~").find(c) != std::string_view::npos;
    out += plain ? std::string(1, c) : fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return out;
}

class ExperimentPage {
 public:
  ExperimentPage(const fs::path& folder, const fs::path& output)
      : folder_(folder),
        output_folder_(fs::absolute(output).parent_path()),
        results_(read_results(folder / "results.json")) {
    if (results_.runs.empty()) {
      throw InputError((folder / "results.json").string(), "no runs", "at least one");
    }
    for (const RunReport& run : results_.runs) {
      if (!run.layers.empty()) {
        runs_.push_back(run);
      } else if (!run.failure) {
        throw InputError((folder / "results.json").string(),
                         fmt::format("run {} without layers", run.name), "at least one");
      }
    }
    if (runs_.empty()) {
      throw InputError((folder / "results.json").string(), "no run that succeeded", "at least one");
    }
  }

  Page compose() {
    const RunReport& first = runs_.front();
    Page page;
    page.title = results_.experiment;
    page.subtitle = fmt::format(
        "{} on {} · {}{} · up to {} per rank · {} MoE layer{} · {} by {}", first.model,
        first.topology, counted(first.num_ranks, "rank"),
        first.num_groups > 1 ? fmt::format(" in each of {}", counted(first.num_groups, "group"))
                             : "",
        counted(first.tokens_per_rank, "token"), first.layers.size(),
        first.layers.size() > 1 ? "s" : "", first.kind, first.engine);
    page.summary = experiment_summary(results_);
    page.script = "experiment.js";
    read_configuration(page);
    page.data["kind"] = "experiment";
    page.data["experiment"] = results_.experiment;
    page.data["command"] = optional_file("command.txt");
    page.data["configuration"] = configuration_;
    page.data["provenance"] = ordered_json(first.provenance);
    page.data["runs"] = ordered_json::array();
    for (const RunReport& run : runs_) page.data["runs"].push_back(run_json(run));
    const CsvTable table = parse_csv(to_csv(results_.runs), "results.csv");
    page.data["csv"] = {{"columns", table.columns}, {"rows", table.rows}};
    return page;
  }

 private:
  [[nodiscard]] std::string optional_file(const std::string& name) const {
    const fs::path path = folder_ / name;
    return path_exists(path) ? read_file(path) : "";
  }

  // The drawing, and what the links can carry.
  void read_configuration(Page& page) {
    configuration_ = optional_file("effective.yaml");
    const fs::path where = folder_ / "effective.yaml";
    if (configuration_.empty()) {
      page.drawings.push_back({"not drawn", "",
                               "The topology cannot be drawn: the folder holds no "
                               "effective.yaml."});
      return;
    }
    page.drawings.push_back(draw_topology(configuration_, where, {}));
    if (page.drawings.back().svg.empty()) return;
    const Network network(load_experiment_cluster(configuration_, where));
    for (const Link& link : network.links())
      capacity_gbps_[link.name] = link.bandwidth.value * 1e-9;
  }

  ordered_json run_json(const RunReport& run) const {
    ordered_json out;
    out["name"] = run.name;
    out["policy"] = run.policy;
    out["placement"] = run.placement;
    out["exact"] = run.exact;
    out["kind"] = run.kind;
    out["engine"] = run.engine;
    out["mean_time_s"] = layer_time_s(run);
    const Speedups ratios = speedups(runs_, run);
    out["speedup_over_standard"] = optional_number(ratios.over_standard);
    out["speedup_over_dedup_contiguous"] = optional_number(ratios.over_dedup_contiguous);
    out["weight_lost"] = optional_number(run.weight_lost);
    out["top1_changed"] = optional_number(run.top1_changed);
    out["timeline"] = nullptr;
    const fs::path timeline = folder_ / timeline_name(run.name);
    std::vector<LayerLoads> loads;
    if (path_exists(timeline)) {
      out["timeline"] =
          url_path(absolute_path(timeline).lexically_relative(output_folder_.lexically_normal()));
      if (run.kind == "predicted") loads = read_link_loads(timeline, run);
    }
    out["layers"] = ordered_json::array();
    for (std::size_t i = 0; i < run.layers.size(); ++i) {
      out["layers"].push_back(layer_json(run.layers[i]));
      if (!loads.empty()) out["layers"].back()["loads"] = loads_json(loads[i]);
    }
    return out;
  }

  ordered_json loads_json(const LayerLoads& loads) const {
    ordered_json out{{"begin_s", loads.begin_s}, {"end_s", loads.end_s}};
    out["links"] = ordered_json::array();
    for (const LinkLoads& link : loads.links) {
      std::vector<double> gbps;
      for (const double value : link.gbps) gbps.push_back(rounded(value));
      const auto capacity = capacity_gbps_.find(link.link);
      out["links"].push_back(
          {{"name", link.link},
           {"capacity_GBps", capacity == capacity_gbps_.end() ? ordered_json(nullptr)
                                                              : ordered_json(capacity->second)},
           {"GBps", gbps}});
    }
    return out;
  }

  fs::path folder_, output_folder_;
  Results results_;
  std::vector<RunReport> runs_;  // those that succeeded
  std::string configuration_;
  std::map<std::string, double> capacity_gbps_;
};

}  // namespace

Page experiment_page(const fs::path& folder, const fs::path& output) {
  const Results results = read_results(folder / "results.json");
  for (const RunReport& run : results.runs) {
    if (run.step) return step_page(folder, output, results);
  }
  return ExperimentPage(folder, output).compose();
}

}  // namespace coterie
