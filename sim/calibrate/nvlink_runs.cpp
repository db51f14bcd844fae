#include "sim/calibrate/nvlink_runs.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "core/clocks.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/metrics.hpp"
#include "core/statistics.hpp"
#include "sim/calibrate/alltoall_fit.hpp"
#include "sim/calibrate/compare.hpp"
#include "sim/calibrate/probe_fit.hpp"
#include "sim/calibrate/uncertainty_scale.hpp"
#include "sim/experiment/simulate.hpp"
#include "workloads/trace/importer.hpp"

namespace coterie {
namespace {

namespace fs = std::filesystem;

// Shorter ones are starts and little else.
constexpr double kShortest = 20e-6;
constexpr double kClosePoints = 0.03;

// What was run on every machine; the reports name placement and policy, but no limits of imbalance.
constexpr const char* kRuns = R"(
  - {name: standard, placement: contiguous, dispatch: standard}
  - {name: dedup, placement: contiguous, dispatch: dedup}
  - {name: load-balanced, placement: load_balanced, dispatch: dedup}
  - {name: refined, placement: collaboration_refined, dispatch: dedup}
  - {name: refined-1.2, placement: collaboration_refined, dispatch: dedup, max_imbalance: 1.2}
  - {name: refined-1.1, placement: collaboration_refined, dispatch: dedup, max_imbalance: 1.1}
  - {name: refined-1.05, placement: collaboration_refined, dispatch: dedup, max_imbalance: 1.05}
  - {name: hierarchical, placement: contiguous, dispatch: hierarchical}
  - {name: two-level, placement: collaboration_two_level, dispatch: hierarchical, max_imbalance: 1.2}
)";

class Scratch {
 public:
  Scratch() : path_(fs::temp_directory_path() / fmt::format("coterie-nvlink-{}", ::getpid())) {
    fs::create_directories(path_);
  }
  ~Scratch() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  [[nodiscard]] const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

std::vector<fs::path> files_in(const fs::path& folder, const std::string& start,
                               const std::string& end) {
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(start) && name.ends_with(end)) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

fs::path trace_file(const fs::path& traces, const std::string& name, const fs::path& scratch) {
  if (fs::exists(traces / name)) return fs::absolute(traces / name);
  const fs::path file = scratch / name;
  if (!fs::exists(file)) {
    const std::vector<fs::path> inputs{traces / fs::path(name).replace_extension(".npz")};
    write_moet(file, import_traces(inputs, "npz", {}).trace);
  }
  return file;
}

// The experiment that a report is of: its model's sizes stand in the provenance.
std::string experiment_text(const RunReport& run, const fs::path& trace, const fs::path& topology) {
  const auto fact = [&](const char* key) { return run.provenance.at(key).get<std::uint32_t>(); };
  const std::uint32_t hidden = fact("hidden");
  const std::uint32_t intermediate = fact("expert_intermediate");
  std::string layers;
  for (const LayerReport& layer : run.layers) {
    layers += fmt::format("{}{}", layers.empty() ? "" : ", ", layer.layer);
  }
  return fmt::format(
      "schema_version: 1\n"
      "topology: {{extends: {}, nodes: 2, gpus_per_node: {}, scale_up: {{nodes_per_domain: 2}}}}\n"
      "model: {{extends: deepseek_v2_lite, hidden: {}, expert_intermediate: {}, "
      "shared_intermediate: {}}}\n"
      "trace: {{file: {}, train: even, eval: odd}}\n"
      "ranks: {}\ntokens_per_rank: {}\nlayers: [{}]\nchunk: {} MiB\n"
      "payload: {{dispatch: {}, combine: bf16}}\nengine: flow\nruns:{}",
      topology.string(), run.num_ranks / 2, hidden, intermediate, intermediate, trace.string(),
      run.num_ranks, run.tokens_per_rank, layers, hidden <= 2048 ? 4 : 8, run.dispatch_payload,
      kRuns);
}

std::optional<double> slowest_s(const LayerReport& layer, Phase phase) {
  for (const PhaseTimes& times : layer.phases) {
    if (times.phase == phase) return times.slowest_s();
  }
  return std::nullopt;
}

double variance(const std::vector<double>& samples) {
  if (samples.size() < 2) return 0.0;
  double mean = 0.0;
  for (const double sample : samples) mean += sample / static_cast<double>(samples.size());
  double sum = 0.0;
  for (const double sample : samples) sum += (sample - mean) * (sample - mean);
  return sum / static_cast<double>(samples.size() - 1);
}

// Reports of version 0.1 count from every rank's own start. Every rank needs results of all others in
// these runs.
void set_clocks(LayerReport& layer) {
  align_clocks(layer);
  for (const PhaseTimes& times : layer.phases) {
    if (times.phase != Phase::kMerge) continue;
    const double last_s = *std::max_element(times.end_s.begin(), times.end_s.end());
    layer.combine_ready_s.assign(times.end_s.size(), last_s);
  }
}

struct Total {
  double measured_s = 0.0, deviation_s = 0.0, predicted_s = 0.0;
};

void add_layer(const LayerReport& measured, const LayerReport& predicted, const std::string& group,
               const std::string& name, NvlinkRuns& out) {
  const auto add = [&](ValidationSection& section, const std::string& in, double is_s,
                       double guess_s, double shortest_s) {
    if (is_s > 0.0 && guess_s > 0.0 && is_s >= shortest_s) {
      section.points.push_back({in, name, is_s, guess_s});
    }
  };
  add(out.layer, group, measured.time_s, predicted.time_s, 0.0);
  add(out.dispatch, group, dispatch_s(measured), dispatch_s(predicted), kShortest);
  add(out.combine, group, combine_s(measured), combine_s(predicted), kShortest);
  add(out.mlp, group, mlp_s(measured), mlp_s(predicted), 0.0);
  for (const Phase phase : {Phase::kPack, Phase::kForward, Phase::kExpand, Phase::kMerge,
                            Phase::kGather, Phase::kSum}) {
    const auto is_s = slowest_s(measured, phase);
    const auto guess_s = slowest_s(predicted, phase);
    if (!is_s || !guess_s) continue;
    add(out.kernels, fmt::format("{}, {}", group, to_string(phase)), *is_s, *guess_s, kShortest);
  }
  ++out.num_layers;
  if (predicted.low_s && *predicted.low_s <= measured.time_s &&
      measured.time_s <= *predicted.high_s) {
    ++out.num_inside;
  }
}

void count_pairs(const std::vector<Total>& totals, NvlinkRuns& out) {
  for (std::size_t i = 0; i < totals.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      const Total& a = totals[i];
      const Total& b = totals[j];
      if (std::abs(a.measured_s - b.measured_s) <= 2.0 * (a.deviation_s + b.deviation_s)) continue;
      ++out.num_pairs;
      if ((a.measured_s < b.measured_s) == (a.predicted_s < b.predicted_s)) ++out.num_right;
      const double off = a.predicted_s / b.predicted_s - a.measured_s / b.measured_s;
      if (std::abs(off) <= kClosePoints) ++out.num_close;
    }
  }
}

void add_report(const fs::path& path, const fs::path& traces, const fs::path& topology,
                const fs::path& scratch, NvlinkRuns& out) {
  Results measured = read_results_or_report(path.string());
  for (RunReport& run : measured.runs) {
    for (LayerReport& layer : run.layers) set_clocks(layer);
  }
  const RunReport& first = measured.runs.front();
  const fs::path file = scratch / "experiment.yaml";
  write_file(file, experiment_text(first, trace_file(traces, first.trace, scratch), topology));
  SimulateOptions options;
  options.timelines = false;
  const std::vector<SimulatedRun> predicted = simulate(load_experiment(file, {}), options);
  const std::string group = fmt::format("{} GPUs", first.num_ranks);
  std::string stem = path.stem().string();
  stem = stem.substr(0, stem.find("-ep"));
  std::vector<Total> totals;
  for (const RunReport& run : measured.runs) {
    const auto found =
        std::find_if(predicted.begin(), predicted.end(),
                     [&](const SimulatedRun& other) { return other.report.name == run.name; });
    if (found == predicted.end() || found->report.layers.size() != run.layers.size()) {
      throw InputError(path.string(), fmt::format("run \"{}\"", run.name),
                       "a run of the experiment that all folders measured");
    }
    double variances = 0.0;
    for (std::size_t i = 0; i < run.layers.size(); ++i) {
      const LayerReport& is = run.layers[i];
      const LayerReport& guess = found->report.layers[i];
      // Both print what they know to six digits.
      if (std::abs(is.fanout_ranks - guess.fanout_ranks) > 1e-4) {
        throw InputError(path.string(),
                         fmt::format("run \"{}\", layer {}: a fan-out of {}", run.name, is.layer,
                                     is.fanout_ranks),
                         fmt::format("the predicted plan's, {}", guess.fanout_ranks));
      }
      add_layer(is, guess, group, fmt::format("{}, {}, layer {}", stem, run.name, is.layer), out);
      variances += variance(is.samples_s);
    }
    totals.push_back({run.time_s(), std::sqrt(variances), found->report.time_s()});
  }
  count_pairs(totals, out);
}

NvlinkRuns empty_runs() {
  const std::string protocol =
      "Everything from the probe of the same machine (2 and 4 H200 joined by NVLink, one start): "
      "no run went into a fit, but what the executor does besides (its events, an exchange per "
      "round, the copy of own results) was found by looking at these runs. Predicted with flow.";
  const auto section = [&](const char* what) {
    return ValidationSection{
        fmt::format("Our runs over NVLink: {}", what), protocol, {}, 0.05, 0.15, {}};
  };
  NvlinkRuns out;
  out.layer = section("whole layer");
  out.dispatch = section("dispatch of at least 20 us");
  out.combine = section("combine of at least 20 us");
  out.mlp = section("expert MLP");
  out.kernels = section("kernels of at least 20 us");
  return out;
}

}  // namespace

Cluster calibrate_from_probe(const fs::path& curves, const Cluster& base) {
  const std::string where = curves.string();
  const std::vector<AllToAllPoint> points = select_machine(read_alltoall(curves), "", where);
  Cluster cluster = base;
  if (!cluster.scale_up) throw InputError("topology " + cluster.name + " has no scale_up links");
  widen_links(points, cluster);
  const AllToAllFit links = fit_alltoall(points, alltoall_options(cluster));
  cluster = calibrated_cluster(cluster, links.model);
  std::vector<double> measured_s;
  for (const AllToAllPoint& point : points) measured_s.push_back(point.time_s);
  cluster.uncertainty.scale_up = uncertainty_scale(left_out_points(links.held_out, measured_s));
  if (cluster.scale_up->kind == ScaleUpKind::kNvlink) {
    set_pattern_rates(read_pattern_rates(curves), cluster);
  }
  GpuFit gpu = fit_gpu(cluster, read_gpu_probe(curves));
  cluster = std::move(gpu.cluster);
  set_gpu_uncertainty(gpu, cluster);
  return cluster;
}

NvlinkRuns predict_nvlink_runs(const std::vector<fs::path>& folders, const fs::path& traces) {
  const Scratch scratch;
  NvlinkRuns out = empty_runs();
  for (const fs::path& folder : folders) {
    const std::vector<fs::path> curves = files_in(folder, "curves_", ".json");
    const std::vector<fs::path> skeletons = files_in(folder, "topology_", ".yaml");
    if (curves.size() != 1 || skeletons.size() != 1) {
      throw InputError(
          folder.string(),
          fmt::format("{} files of curves, {} of topologies", curves.size(), skeletons.size()),
          "one of each: curves_epN.json, topology_epN.yaml");
    }
    const fs::path topology = scratch.path() / "machine.yaml";
    write_file(topology,
               to_yaml(calibrate_from_probe(curves[0], load_cluster(skeletons[0].string()))));
    for (const fs::path& report : files_in(folder / "reports", "", ".json")) {
      add_report(report, traces, topology, scratch.path(), out);
    }
  }
  const auto share = [](std::size_t part, std::size_t all) {
    return 100.0 * static_cast<double>(part) / static_cast<double>(std::max<std::size_t>(all, 1));
  };
  out.layer.finding = fmt::format(
      "Of {} pairs of runs that differ by more than twice their samples' deviations, {} are "
      "predicted "
      "in the measured order ({:.1f} %; target 98 %), and {} of their ratios within 3 points "
      "({:.1f} %). The intervals that the predictions carry hold {} of {} layers ({:.1f} %; target "
      "85 "
      "to 95 %).",
      out.num_pairs, out.num_right, share(out.num_right, out.num_pairs), out.num_close,
      share(out.num_close, out.num_pairs), out.num_inside, out.num_layers,
      share(out.num_inside, out.num_layers));
  return out;
}

}  // namespace coterie
