#include "sim/calibrate/nvlink_runs.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <utility>

#include "core/clocks.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/metrics.hpp"
#include "core/statistics.hpp"
#include "sim/calibrate/alltoall_fit.hpp"
#include "sim/calibrate/compare.hpp"
#include "sim/calibrate/direct_fit.hpp"
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

fs::path recorded_trace(const fs::path& traces, const std::string& name, const fs::path& scratch) {
  if (fs::exists(traces / name)) return fs::absolute(traces / name);
  const fs::path file = scratch / name;
  if (!fs::exists(file)) {
    const std::vector<fs::path> inputs{traces / fs::path(name).replace_extension(".npz")};
    write_moet(file, import_traces(inputs, "npz", {}).trace);
  }
  return file;
}

// The runs of all starts, each as the first start that has it reports it: later starts can hold more.
std::vector<RunReport> runs_of(const std::vector<Results>& starts) {
  std::vector<RunReport> runs;
  for (const Results& start : starts) {
    for (const RunReport& run : start.runs) {
      const auto same = [&](const RunReport& known) { return known.name == run.name; };
      if (std::none_of(runs.begin(), runs.end(), same)) runs.push_back(run);
    }
  }
  return runs;
}

// What was run, with what only the reports know.
Experiment experiment_of(const fs::path& folder, const std::vector<RunReport>& runs,
                         const fs::path& trace, const fs::path& topology) {
  const RunReport& first = runs.front();
  const std::string hidden = first.provenance.at("hidden").dump();
  const std::string intermediate = first.provenance.at("expert_intermediate").dump();
  const fs::path file = folder / fmt::format("ep{}_h{}.yaml", first.num_ranks, hidden);
  std::vector<Override> as_run{{"topology.extends", topology.string()},
                               {"trace.file", trace.string()},
                               {"tokens_per_rank", std::to_string(first.tokens_per_rank)},
                               {"payload.dispatch", first.dispatch_payload},
                               {"payload.combine", first.combine_payload},
                               {"engine", "flow"}};
  if (first.expert_type) as_run.push_back({"precision.experts", *first.expert_type});
  // A run of the file that names its own transport keeps it.
  as_run.push_back({"transport", first.transport});
  Experiment experiment = load_experiment(file, as_run, EffectiveYaml::kLeaveOut);
  if (std::to_string(experiment.model.hidden) != hidden ||
      std::to_string(experiment.model.expert_intermediate) != intermediate) {
    throw InputError(file.string(),
                     fmt::format("hidden {}, expert_intermediate {}", experiment.model.hidden,
                                 experiment.model.expert_intermediate),
                     fmt::format("{} and {}, as its reports say", hidden, intermediate));
  }
  std::vector<std::string> names;
  for (const RunReport& run : runs) names.push_back(run.name);
  keep_runs(experiment, names);
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const auto& facts = runs[i].provenance;
    if (!facts.contains("placement_file")) continue;
    experiment.runs[i].placement =
        (folder / "placements" / facts.at("placement_file").get<std::string>()).string();
  }
  return experiment;
}

std::optional<double> slowest_s(const LayerReport& layer, Phase phase) {
  for (const PhaseTimes& times : layer.phases) {
    if (times.phase == phase) return times.slowest_s();
  }
  return std::nullopt;
}

// A gather is rounds of exchanges and kernels, and a rank that is early in it waits for the results of
// others, as in a combine: what counts is the time from when all its results are there.
std::optional<double> gather_s(const LayerReport& layer) {
  for (const PhaseTimes& times : layer.phases) {
    if (times.phase != Phase::kGather) continue;
    double slowest_s = 0.0;
    for (std::size_t rank = 0; rank < times.end_s.size(); ++rank) {
      const double ready_s =
          rank < layer.combine_ready_s.size() ? layer.combine_ready_s[rank] : 0.0;
      slowest_s = std::max(slowest_s, times.end_s[rank] - std::max(times.begin_s[rank], ready_s));
    }
    return slowest_s;
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
  bool two_hops = false;
};

// The starts of one layer of a run.
using Starts = std::vector<const LayerReport*>;

// The median over the starts; absent where one has no such time.
template <class F>
std::optional<double> over_starts(const Starts& starts, const F& time_s) {
  std::vector<double> times;
  for (const LayerReport* start : starts) {
    const std::optional<double> found = time_s(*start);
    if (!found) return std::nullopt;
    times.push_back(*found);
  }
  return median(std::move(times));
}

// Where the points of a report go.
struct Place {
  std::string group, name;
};

// Where those of a measurement go, and with which pairs of runs its own are counted.
struct Group {
  std::string machine, name;
};

void add_measured_layer(const Starts& measured, const LayerReport& predicted, const Place& place,
                        NvlinkRuns& out) {
  const auto add = [&](ValidationSection& section, const std::string& group, const auto& time_s,
                       double shortest_s) {
    const std::optional<double> is_s = over_starts(measured, time_s);
    const std::optional<double> guess_s = time_s(predicted);
    if (is_s.value_or(0.0) <= 0.0 || guess_s.value_or(0.0) <= 0.0 || *is_s < shortest_s) return;
    section.points.push_back({group, place.name, *is_s, *guess_s});
    std::vector<double> starts;
    for (const LayerReport* start : measured) starts.push_back(*time_s(*start));
    const auto [least, most] = std::minmax_element(starts.begin(), starts.end());
    if (starts.size() > 1) out.starts[section.title].push_back((*most - *least) / *is_s);
  };
  using Time = std::optional<double>;
  const auto layer_s = [](const LayerReport& layer) { return Time(layer.time_s); };
  add(out.layer, place.group, layer_s, 0.0);
  if (predicted.low_s) {
    out.layer.points.back().relative = 1.0 - *predicted.low_s / predicted.time_s;
  }
  add(
      out.dispatch, place.group, [](const auto& layer) { return Time(dispatch_s(layer)); },
      kShortest);
  add(
      out.combine, place.group, [](const auto& layer) { return Time(combine_s(layer)); },
      kShortest);
  add(
      out.mlp, place.group, [](const auto& layer) { return Time(mlp_s(layer)); }, 0.0);
  for (const Phase phase : {Phase::kPack, Phase::kForward, Phase::kExpand, Phase::kMerge,
                            Phase::kGather, Phase::kSum}) {
    add(
        out.kernels, fmt::format("{}, {}", place.group, to_string(phase)),
        [&](const auto& layer) {
          return phase == Phase::kGather ? gather_s(layer) : slowest_s(layer, phase);
        },
        kShortest);
  }
}

void count_pairs(const std::vector<Total>& totals, const std::string& machine, NvlinkRuns& out) {
  OrderedPairs& of_machine = out.pairs[machine];
  for (std::size_t i = 0; i < totals.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      const Total& a = totals[i];
      const Total& b = totals[j];
      if (std::abs(a.measured_s - b.measured_s) <= 2.0 * (a.deviation_s + b.deviation_s)) continue;
      ++of_machine.num_pairs;
      if ((a.measured_s < b.measured_s) == (a.predicted_s < b.predicted_s)) ++of_machine.num_right;
      const double off = a.predicted_s / b.predicted_s - a.measured_s / b.measured_s;
      const bool is_close = std::abs(off) <= kClosePoints;
      if (is_close) ++out.num_close;
      if (a.two_hops == b.two_hops) continue;
      ++out.num_mixed;
      if (is_close) ++out.num_mixed_close;
    }
  }
}

// The reports of a folder, starts of one measurement together: law-h2048-t128-fp8-ep2-start1.json.
std::map<std::string, std::vector<fs::path>> reports_of(const fs::path& folder) {
  std::map<std::string, std::vector<fs::path>> out;
  for (const fs::path& path : files_in(folder / "reports", "", ".json")) {
    const std::string stem = path.stem().string();
    out[stem.substr(0, stem.find("-start"))].push_back(path);
  }
  return out;
}

Results read_report(const fs::path& path) {
  Results results = read_results_or_report(path.string());
  for (RunReport& run : results.runs) {
    for (LayerReport& layer : run.layers) set_clocks(layer);
  }
  return results;
}

// The starts of one measurement. What decides whether they count stands in the first, which is read at
// once.
struct Measurement {
  explicit Measurement(const std::vector<fs::path>& files)
      : paths(files), starts{read_report(files.front())} {}
  void read_others() {
    while (starts.size() < paths.size()) starts.push_back(read_report(paths[starts.size()]));
  }
  [[nodiscard]] const RunReport& first() const { return starts.front().runs.front(); }

  std::vector<fs::path> paths;
  std::vector<Results> starts;
};

void check_same_plan(const fs::path& path, const RunReport& run, const RunReport& predicted) {
  const auto differ = [&](const std::string& found, const std::string& expected) {
    throw InputError(path.string(), fmt::format("run \"{}\": {}", run.name, found), expected);
  };
  if (run.policy != predicted.policy) {
    differ("policy " + run.policy, "the experiment's, " + predicted.policy);
  }
  if (run.layers.size() != predicted.layers.size()) {
    differ(fmt::format("{} layers", run.layers.size()),
           fmt::format("the experiment's {}", predicted.layers.size()));
  }
  for (std::size_t i = 0; i < run.layers.size(); ++i) {
    const LayerReport& is = run.layers[i];
    const LayerReport& guess = predicted.layers[i];
    // Both print what they know to six digits.
    if (is.layer != guess.layer || std::abs(is.fanout_ranks - guess.fanout_ranks) > 1e-4) {
      differ(fmt::format("layer {}, a fan-out of {}", is.layer, is.fanout_ranks),
             fmt::format("the predicted plan's layer {}, {}", guess.layer, guess.fanout_ranks));
    }
  }
}

void add_measurement(const fs::path& folder, Measurement measurement, const fs::path& traces,
                     const fs::path& topology, const fs::path& scratch, const Group& group,
                     NvlinkRuns& out) {
  measurement.read_others();
  const auto& [paths, starts] = measurement;
  const std::vector<RunReport> reported = runs_of(starts);
  const fs::path trace = recorded_trace(traces, reported.front().trace, scratch);
  SimulateOptions options;
  options.timelines = false;
  const std::vector<SimulatedRun> predicted =
      simulate(experiment_of(folder, reported, trace, topology), options);
  std::string stem = paths.front().stem().string();
  stem = stem.substr(0, stem.find("-ep"));
  std::vector<Total> totals;
  for (std::size_t i = 0; i < predicted.size(); ++i) {
    const RunReport& guess = predicted[i].report;
    std::vector<const RunReport*> runs;
    for (std::size_t start = 0; start < starts.size(); ++start) {
      const RunReport* const run = find_run(starts[start], guess.name);
      if (run == nullptr) continue;
      check_same_plan(paths[start], *run, guess);
      runs.push_back(run);
    }
    Total total{0.0, 0.0, guess.time_s(), guess.policy == "hierarchical"};
    for (std::size_t layer = 0; layer < guess.layers.size(); ++layer) {
      Starts measured;
      std::vector<double> samples, times;
      for (const RunReport* run : runs) {
        measured.push_back(&run->layers[layer]);
        times.push_back(measured.back()->time_s);
        const std::vector<double>& more = measured.back()->samples_s;
        samples.insert(samples.end(), more.begin(), more.end());
      }
      add_measured_layer(measured, guess.layers[layer],
                         {group.name, fmt::format("{}, {}, layer {}", stem, guess.name,
                                                  guess.layers[layer].layer)},
                         out);
      const double of_layer = variance(samples);
      total.measured_s += median(times);
      total.deviation_s += of_layer;
      out.deviations.push_back(std::sqrt(of_layer) / median(std::move(times)));
    }
    total.deviation_s = std::sqrt(total.deviation_s);
    totals.push_back(total);
  }
  count_pairs(totals, group.machine, out);
}

NvlinkRuns empty_runs(const std::string& title, const std::string& protocol, double target_median,
                      std::optional<double> target_worst) {
  const auto section = [&](const char* what) {
    return ValidationSection{
        fmt::format("{}: {}", title, what), protocol, {}, target_median, target_worst, {}};
  };
  NvlinkRuns out;
  out.layer = section("whole layer");
  out.dispatch = section("dispatch of at least 20 us");
  out.combine = section("combine of at least 20 us");
  out.mlp = section("expert MLP");
  out.kernels = section("kernels of at least 20 us");
  out.kernels.protocol +=
      " Gathers hold exchanges besides kernels and wait for the slowest rank: they count from when "
      "all results are there.";
  return out;
}

double percentage(std::size_t part, std::size_t all) {
  return 100.0 * static_cast<double>(part) / static_cast<double>(std::max<std::size_t>(all, 1));
}

// Over all machines, and of each where there are several.
std::string order_finding(const NvlinkRuns& out, const OrderedPairs& all, const char* target) {
  std::string text = fmt::format(
      "Of {} pairs of runs that differ by more than twice their samples' deviations, {} are "
      "predicted in the measured order ({:.1f} %; target {} %",
      all.num_pairs, all.num_right, percentage(all.num_right, all.num_pairs), target);
  for (const auto& [machine, pairs] : out.pairs) {
    if (out.pairs.size() == 1) break;
    text += fmt::format("; {}: {} of {}", machine, pairs.num_right, pairs.num_pairs);
  }
  return text + ")";
}

// Which kernels are off by more than the target, and why.
std::string kernel_finding(const ValidationSection& kernels) {
  std::size_t num_off = 0, num_gathers = 0;
  for (const ValidationPoint& point : kernels.points) {
    if (std::abs(point.error()) <= kernels.target_worst.value_or(0.0)) continue;
    ++num_off;
    if (point.group.ends_with(to_string(Phase::kGather)) && point.error() > 0.0) ++num_gathers;
  }
  return fmt::format(
      "{} are off by more than the target, {} of them gathers that are predicted too long: the "
      "copies of own results in them, a few MB each, are in the caches in part, and go at the "
      "memory's rate here. A block's time for one token or row adds less to "
      "kernels whose blocks all run at once than to others. One formula for both does not tell "
      "them apart, and sums of few long rows come out too short.",
      num_off, num_gathers);
}

// What is said below the sections' tables.
void add_findings(const char* target, NvlinkRuns& out) {
  OrderedPairs all;
  for (const auto& [machine, pairs] : out.pairs) {
    all.num_pairs += pairs.num_pairs;
    all.num_right += pairs.num_right;
  }
  const std::string hops =
      out.num_mixed == 0
          ? ""
          : fmt::format(
                ": {:.1f} % where both rows travel in one hop or both in two, {:.1f} % of "
                "the {} pairs of one and two hops",
                percentage(out.num_close - out.num_mixed_close, all.num_pairs - out.num_mixed),
                percentage(out.num_mixed_close, out.num_mixed), out.num_mixed);
  out.layer.finding = fmt::format(
      "{}, and {} of their ratios within 3 points ({:.1f} %){}. A layer's samples deviate by "
      "{:.1f} % of its time (median).",
      order_finding(out, all, target), out.num_close, percentage(out.num_close, all.num_pairs),
      hops, 100.0 * median(out.deviations));
  for (ValidationSection* section :
       {&out.layer, &out.dispatch, &out.combine, &out.mlp, &out.kernels}) {
    const auto starts = out.starts.find(section->title);
    if (starts == out.starts.end()) continue;
    section->finding +=
        fmt::format("{}Starts of one point differ by {:.1f} % in the median and {:.0f} % at most.",
                    section->finding.empty() ? "" : " ", 100.0 * median(starts->second),
                    100.0 * *std::max_element(starts->second.begin(), starts->second.end()));
  }
}

}  // namespace

Cluster calibrate_from_probe(const fs::path& curves, const Cluster& base) {
  const std::string where = curves.string();
  Cluster cluster = base;
  if (!cluster.scale_up) throw InputError("topology " + cluster.name + " has no scale_up links");
  // Between ranks of one GPU NCCL goes over the host: its exchanges say nothing of the links here.
  if (cluster.ranks_per_gpu == 1) {
    const std::vector<AllToAllPoint> points = select_machine(read_alltoall(curves), "", where);
    widen_links(points, cluster);
    const AllToAllFit links = fit_alltoall(points, alltoall_options(cluster));
    cluster = calibrated_cluster(cluster, links.model);
    std::vector<double> measured_s;
    for (const AllToAllPoint& point : points) measured_s.push_back(point.time_s);
    cluster.uncertainty.scale_up = uncertainty_scale(left_out_points(links.held_out, measured_s));
    if (cluster.scale_up->kind == ScaleUpKind::kNvlink) {
      set_pattern_rates(read_pattern_rates(curves), cluster);
    }
  }
  GpuFit gpu = fit_gpu(cluster, read_gpu_probe(curves));
  cluster = std::move(gpu.cluster);
  set_gpu_uncertainty(gpu, cluster);
  if (const auto direct = read_direct_probe(curves)) {
    const DirectFit fit = fit_direct(cluster, *direct);
    cluster.transports.emplace_back(fit.parameters);
    if (cluster.ranks_per_gpu > 1) set_direct_uncertainty(fit, cluster);
  }
  return cluster;
}

NvlinkRuns predict_nvlink_runs(const std::vector<fs::path>& folders, const fs::path& traces) {
  const Scratch scratch;
  NvlinkRuns out = empty_runs(
      "Our runs over NVLink",
      "Everything from the probe of the same machine (2 and 4 H200 and H100 joined by NVLink); "
      "measured: the median of the starts, up to four of them. No run went into a "
      "fit. "
      "What the executor does besides (its events, an exchange per round, the copy of own results) "
      "and that ranks exchange when both have started "
      "was found by looking at the runs on H200; the tiles of the expert MLP were found in the "
      "probes. Predicted with flow.",
      0.05, 0.15);
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
    for (const auto& [name, paths] : reports_of(folder)) {
      const std::string machine = folder.filename().string();
      Measurement measurement(paths);
      const bool direct = measurement.first().transport == "direct";
      add_measurement(folder, std::move(measurement), traces, topology, scratch.path(),
                      {machine, direct ? machine + " over direct" : machine}, out);
    }
  }
  out.kernels.finding = kernel_finding(out.kernels);
  add_findings("98", out);
  return out;
}

namespace {

// Of a folder, the numbers of ranks that share GPUs and that a probe has.
void add_direct_runs(const fs::path& folder, const fs::path& traces, const fs::path& scratch,
                     NvlinkRuns& out) {
  std::map<std::uint32_t, fs::path> topologies;  // by number of ranks
  for (const auto& [name, paths] : reports_of(folder)) {
    Measurement measurement(paths);
    const RunReport& first = measurement.first();
    const std::uint32_t ranks = first.num_ranks;
    const fs::path curves = folder / fmt::format("curves_ep{}.json", ranks);
    const fs::path base_file = folder / fmt::format("topology_ep{}.yaml", ranks);
    if (!fs::exists(curves)) continue;
    const Cluster base = load_cluster(base_file.string());
    if (base.ranks_per_gpu == 1) continue;
    fs::path& topology = topologies[ranks];
    if (topology.empty()) {
      topology = scratch / fmt::format("{}_{}.yaml", folder.filename().string(), ranks);
      write_file(topology, to_yaml(calibrate_from_probe(curves, base)));
    }
    const auto facts = first.provenance;
    const std::string machine = fmt::format("{} {}", facts.at("num_gpus").dump(),
                                            gpu_model(facts.at("device").get<std::string>()));
    add_measurement(folder, std::move(measurement), traces, topology, scratch,
                    {machine, fmt::format("{} ranks on {}, hidden {}", ranks, machine,
                                          facts.at("hidden").dump())},
                    out);
  }
  if (topologies.empty()) {
    throw InputError(folder.string(), "no reports of as many ranks as a probe has",
                     "curves_epN.json beside reports of N ranks that share GPUs");
  }
}

}  // namespace

NvlinkRuns predict_direct_runs(const std::vector<fs::path>& folders, const fs::path& traces) {
  const Scratch scratch;
  NvlinkRuns out = empty_runs(
      "Our runs of the transport direct on two tiers",
      "Up to four ranks on each of two H200 or two H100 joined by NVLink, under MPS: a GPU is a "
      "node, NVLink the network. Everything from the probe of the same number of ranks; measured: "
      "the median of the starts of the kernels that the probe measured, up to four. The probe of "
      "the H200s measured a put behind its index, as it stands in a layer; that of the H100s is "
      "older and measured it behind a synchronisation. No run went into a fit. Predicted with "
      "flow.",
      0.08, std::nullopt);
  for (const fs::path& folder : folders) add_direct_runs(folder, traces, scratch.path(), out);
  add_findings("95", out);
  return out;
}

}  // namespace coterie
