#include "sim/experiment/simulate.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <mutex>
#include <numeric>

#include "core/child_process.hpp"
#include "core/parallel.hpp"
#include "core/progress.hpp"
#include "sim/engines/engine.hpp"
#include "sim/experiment/layer_report.hpp"
#include "sim/experiment/layer_times.hpp"
#include "sim/experiment/uncertainty.hpp"
#include "sim/program/layer_program.hpp"
#include "sim/step/simulate_steps.hpp"
#include "workloads/prepare.hpp"
#include "workloads/run_report.hpp"

namespace coterie {
namespace {

constexpr std::size_t kTimelineLinks = 8;  // per layer
constexpr std::size_t kTimelineBins = 100;

std::size_t num_bytes(const std::vector<LayerPlan>& plans) {
  std::size_t sum = 0;
  for (const LayerPlan& plan : plans) {
    sum += sizeof plan + plan.token_begin.size() * sizeof(std::uint64_t) +
           plan.rank_experts.size() * (sizeof(ExpertIdx) + sizeof(std::uint64_t));
    for (const Stage& stage : plan.stages) {
      sum += sizeof stage + stage.num_transfers() * 7 * sizeof(std::uint32_t);
    }
  }
  return sum;
}

struct LayerResult {
  LayerReport report;
  Timeline timeline;
};

// Results as bytes, from a child process: lengths and contents in turn.
std::string pack(const std::vector<LayerResult>& results) {
  std::string bytes;
  for (const LayerResult& result : results) {
    const std::string layer = pack_layer(result.report, result.timeline);
    bytes += fmt::format("{}:", layer.size()) + layer;
  }
  return bytes;
}

std::vector<LayerResult> unpack(const std::string& bytes) {
  std::vector<LayerResult> results;
  for (std::size_t at = 0; at < bytes.size();) {
    const std::size_t colon = bytes.find(':', at);
    const std::size_t size = std::stoull(bytes.substr(at, colon - at));
    auto [report, timeline] = unpack_layer(bytes.substr(colon + 1, size));
    results.push_back({std::move(report), std::move(timeline)});
    at = colon + 1 + size;
  }
  return results;
}

// Why a run cannot be carried out.
struct Failure {
  std::string sentence;
  ExitCode code = ExitCode::kInternalError;
};

// What is simulated in one piece: layers [first, first + count) of a run.
struct Item {
  std::size_t run = 0;
  std::size_t first = 0, count = 1;
};

class Simulation {
 public:
  Simulation(const Experiment& experiment, const SimulateOptions& options)
      : experiment_(experiment),
        options_(options),
        network_(experiment.cluster),
        runs_(experiment.runs.size()),
        failures_(experiment.runs.size()) {}

  std::vector<SimulatedRun> compute() {
    check_transports();
    parts_ = load_trace(experiment_, options_.memo);
    prepare();
    results_.assign(runs_.size(), std::vector<LayerResult>(num_layers()));
    const std::vector<Item> items = make_items();
    if (options_.progress) progress_.emplace("simulating layers", num_items_layers(items));
    // SimGrid runs in a process of its own, which no other thread may be there to start.
    if (experiment_.engine == "simgrid" && options_.num_jobs > 1) {
      simulate_in_children(items);
    } else {
      simulate_in_threads(items);
    }
    require_any();
    std::vector<SimulatedRun> out;
    for (std::size_t run = 0; run < runs_.size(); ++run) out.push_back(assemble(run));
    return out;
  }

 private:
  [[nodiscard]] std::size_t num_layers() const { return parts_.eval->num_layers(); }

  static std::size_t num_items_layers(const std::vector<Item>& items) {
    std::size_t sum = 0;
    for (const Item& item : items) sum += item.count;
    return sum;
  }

  // Records the error of a run's layer; of several the first layer's counts, whatever came first.
  void record_failure(std::size_t run, std::size_t layer, const Error& error) {
    const std::scoped_lock lock(mutex_);
    auto& [failure, failed_layer] = failures_[run];
    if (failure && failed_layer <= layer) return;
    failure = {error.what(), error.exit_code()};
    failed_layer = layer;
  }

  // Before anything that takes long: placements are learnt in minutes.
  void check_transports() {
    for (std::size_t run = 0; run < runs_.size(); ++run) {
      try {
        (void)chosen_transport(experiment_.cluster,
                               experiment_.transport_of(experiment_.runs[run]));
      } catch (const Error& error) {
        record_failure(run, 0, error);
      }
    }
    require_any();
  }

  void prepare() {
    PrepareOptions prepare_options;
    prepare_options.cache = options_.cache;
    prepare_options.times = [&](const RunSpec& run, const Routing& training) {
      return layer_times_of(experiment_, run, training);
    };
    prepare_options.memo = options_.memo;
    prepare_options.num_jobs =
        std::max<unsigned>(1, options_.num_jobs / static_cast<unsigned>(experiment_.runs.size()));
    parallel_for(options_.num_jobs, runs_.size(), [&](std::size_t run) {
      if (failures_[run].first) return;
      try {
        runs_[run] = prepare_run(experiment_, experiment_.runs[run], parts_, prepare_options);
      } catch (const Error& error) {
        record_failure(run, 0, error);
      }
    });
    require_any();
  }

  // At least one run must be left to speak of.
  void require_any() const {
    const bool any = std::any_of(failures_.begin(), failures_.end(),
                                 [](const auto& failure) { return !failure.first; });
    if (any) return;
    const Failure& first = *failures_.front().first;
    if (first.code == ExitCode::kBadInput) throw InputError(first.sentence);
    throw Error(first.code, first.sentence);
  }

  [[nodiscard]] std::vector<Item> make_items() const {
    std::vector<Item> items;
    for (std::size_t run = 0; run < runs_.size(); ++run) {
      if (failures_[run].first) continue;
      if (experiment_.num_groups > 1) {
        // Groups wait for their own ranks only and drift apart over the layers.
        items.push_back({run, 0, num_layers()});
        continue;
      }
      // A layer starts with a barrier over all ranks, so nothing of the previous layer is left when
      // the first transfer starts: the layers are independent.
      for (std::size_t layer = 0; layer < num_layers(); ++layer) items.push_back({run, layer, 1});
    }
    return items;
  }

  void simulate_in_threads(const std::vector<Item>& items) {
    parallel_for(options_.num_jobs, items.size(), [&](std::size_t i) {
      try {
        keep(items[i], simulate_item(items[i]));
      } catch (const Error& error) {
        record_failure(items[i].run, items[i].first, error);
      }
      advance(items[i]);
    });
  }

  void simulate_in_children(const std::vector<Item>& items) {
    ChildWork work;
    work.name = [&](std::size_t i) {
      return fmt::format("run {}, layer {}", experiment_.runs[items[i].run].name,
                         parts_.eval->layers[items[i].first]);
    };
    work.body = [&](std::size_t i) { return pack(simulate_item(items[i])); };
    work.done = [&](std::size_t i, ChildProcess& child) {
      try {
        keep(items[i], unpack(child.result()));
      } catch (const Error& error) {
        record_failure(items[i].run, items[i].first, error);
      }
      advance(items[i]);
    };
    run_in_children(options_.num_jobs, items.size(), 0.0, work);
  }

  void keep(const Item& item, std::vector<LayerResult> results) {
    std::move(results.begin(), results.end(),
              results_[item.run].begin() + static_cast<std::ptrdiff_t>(item.first));
  }

  void advance(const Item& item) {
    const std::scoped_lock lock(mutex_);
    for (std::size_t i = 0; progress_ && i < item.count; ++i) progress_->advance();
  }

  [[nodiscard]] std::vector<LayerResult> simulate_item(const Item& item) const {
    std::vector<LayerResult> results;
    std::vector<double> ready_s;  // empty: all ranks at zero
    for (std::size_t layer = item.first; layer < item.first + item.count; ++layer) {
      results.push_back(
          named(item.run, layer, [&] { return simulate_layer(item.run, layer, ready_s); }));
    }
    return results;
  }

  // Puts run and layer before the message of an engine that failed.
  template <class F>
  LayerResult named(std::size_t run, std::size_t layer, const F& f) const {
    try {
      return f();
    } catch (const InputError&) {
      throw;
    } catch (const Error& error) {
      throw Error(error.exit_code(), fmt::format("run {}, layer {}: {}", experiment_.runs[run].name,
                                                 runs_[run].routing->layers[layer], error.what()));
    }
  }

  using Plans = std::vector<LayerPlan>;  // [num_groups]

  [[nodiscard]] std::shared_ptr<const Plans> plan_groups(const PreparedRun& run,
                                                         std::size_t layer) const {
    const PlanRequest request = plan_request(experiment_, run, PlanDetail::kCounts);
    const auto make = [&] {
      Plans plans;
      for (const RankTokens& tokens : *run.group_tokens) {
        plans.push_back(
            make_plan(*run.routing, layer, run.placement.layers[layer], tokens, request));
      }
      return plans;
    };
    if (options_.memo == nullptr) return std::make_shared<const Plans>(make());
    const std::string key =
        fmt::format("plans {} {} {} {} {}", layer, to_string(request.policy),
                    request.ranks_per_node, request.rows_per_round.value_or(0), run.key);
    return options_.memo->get(key, make, [](const Plans& plans) { return num_bytes(plans); });
  }

  [[nodiscard]] std::shared_ptr<const std::vector<FanOut>> count(const PreparedRun& run,
                                                                 std::size_t layer) const {
    const auto make = [&] { return count_groups(experiment_, run, layer); };
    if (options_.memo == nullptr) return std::make_shared<const std::vector<FanOut>>(make());
    return options_.memo->get(
        fmt::format("counts {} {} {}", layer, experiment_.ranks_per_node(), run.key), make,
        [](const std::vector<FanOut>& counts) { return counts.size() * sizeof(FanOut); });
  }

  // `ready_s` is when the ranks reach the layer; replaced by when they reach the next one, both
  // relative to the first of them.
  LayerResult simulate_layer(std::size_t run_idx, std::size_t layer,
                             std::vector<double>& ready_s) const {
    const PreparedRun& run = runs_[run_idx];
    const std::shared_ptr<const Plans> plans = plan_groups(run, layer);
    // The layer's clock starts when the slowest rank is there.
    const double shift_s =
        ready_s.empty() ? 0.0 : -*std::max_element(ready_s.begin(), ready_s.end());
    const std::uint32_t hidden = experiment_.model.hidden;
    const LayerSetup setup{
        *plans,
        {row_payload(experiment_.dispatch_payload, hidden),
         row_payload(experiment_.combine_payload, hidden)},
        LayerKernels{experiment_.model, experiment_.dispatch_payload, experiment_.expert_type},
        experiment_.transport_of(run.spec),
        ready_s};
    const LayerProgram program = build_layer(setup, experiment_.cluster);
    const ResolvedProgram resolved = resolve(program.program, network_);
    EngineOptions engine;
    engine.relative_precision = options_.relative_precision;
    engine.timeout_s = options_.timeout_s;
    const Execution execution = run_engine(experiment_.engine, resolved, engine);

    const LayerRun layer_run{setup,  program, resolved, execution, experiment_.engine != "bound",
                             shift_s};
    LayerResult result;
    result.report = report_layer(layer_run);
    if (options_.timelines && layer_run.times_known) {
      result.timeline = layer_timeline(layer_run, result.report, kTimelineLinks, kTimelineBins);
    }
    result.report.bound_s = resolved.bound.makespan_s + shift_s;
    if (const auto uncertainty = layer_uncertainty(experiment_.cluster, result.report)) {
      result.report.low_s = result.report.time_s * (1.0 - *uncertainty);
      result.report.high_s = result.report.time_s * (1.0 + *uncertainty);
    }
    add_counts(run, layer, *count(run, layer), result.report);
    ready_s = rank_ends(layer_run);
    const double first_s = *std::min_element(ready_s.begin(), ready_s.end());
    for (double& time_s : ready_s) time_s -= first_s;
    return result;
  }

  SimulatedRun assemble(std::size_t run) {
    SimulatedRun out;
    if (const std::optional<Failure>& failure = failures_[run].first) {
      out.report = failed_run(experiment_, experiment_.runs[run], failure->sentence);
      out.failure_code = failure->code;
    } else {
      out.report = run_header(experiment_, runs_[run]);
    }
    RunReport& report = out.report;
    report.kind = "predicted";
    report.engine = experiment_.engine;
    if (out.failure_code) return out;
    report.provenance.merge(left_out_errors(run));
    report.transport = transport_name(
        chosen_transport(experiment_.cluster, experiment_.transport_of(experiment_.runs[run])));
    double start_s = 0.0;
    for (LayerResult& result : results_[run]) {
      append(out.timeline, std::move(result.timeline), start_s);
      start_s += result.report.time_s;
      report.layers.push_back(std::move(result.report));
    }
    return out;
  }

  // How far the calibration was off on points that its fits did not see: what the topology says of each
  // fit, and of every part of the layers the share that its scale allows (mean over the layers).
  [[nodiscard]] std::map<std::string, nlohmann::json> left_out_errors(std::size_t run) const {
    std::map<std::string, nlohmann::json> facts;
    for (const auto& [key, text] : experiment_.cluster.provenance) {
      if (key.ends_with("held_out_error")) facts["calibration_" + key] = text;
    }
    std::map<std::string, std::vector<double>> shares;
    for (const LayerResult& result : results_[run]) {
      for (const auto& [part, share] : part_uncertainties(experiment_.cluster, result.report)) {
        shares[part].push_back(share);
      }
    }
    nlohmann::json by_part = nlohmann::json::object();
    for (const auto& [part, values] : shares) {
      const double sum = std::accumulate(values.begin(), values.end(), 0.0);
      by_part[part] = std::round(1000.0 * sum / static_cast<double>(values.size())) / 1000.0;
    }
    if (!by_part.empty()) facts["calibration_off_by_part"] = by_part;
    return facts;
  }

  static void append(Timeline& timeline, Timeline part, double start_s) {
    for (TimelineSpan& span : part.spans) {
      span.begin_s += start_s;
      span.end_s += start_s;
      timeline.spans.push_back(std::move(span));
    }
    for (TimelineSample& sample : part.samples) {
      sample.time_s += start_s;
      timeline.samples.push_back(std::move(sample));
    }
  }

  const Experiment& experiment_;
  const SimulateOptions& options_;
  Network network_;
  TraceParts parts_;
  std::vector<PreparedRun> runs_;
  std::vector<std::pair<std::optional<Failure>, std::size_t>> failures_;  // [run], and its layer
  std::vector<std::vector<LayerResult>> results_;                         // [run][layer]
  std::optional<Progress> progress_;
  std::mutex mutex_;
};

}  // namespace

void keep_runs(Experiment& experiment, const std::vector<std::string>& names) {
  if (names.empty()) return;
  std::vector<RunSpec> kept;
  for (const std::string& name : names) {
    const auto found = std::find_if(experiment.runs.begin(), experiment.runs.end(),
                                    [&](const RunSpec& run) { return run.name == name; });
    if (found == experiment.runs.end()) {
      std::vector<std::string> known;
      for (const RunSpec& run : experiment.runs) known.push_back(run.name);
      throw InputError("experiment " + experiment.name, fmt::format("no run \"{}\"", name),
                       fmt::format("one of {}", fmt::join(known, ", ")));
    }
    kept.push_back(*found);
  }
  experiment.runs = std::move(kept);
}

std::vector<SimulatedRun> simulate(const Experiment& experiment, const SimulateOptions& options) {
  if (experiment.step) return simulate_steps(experiment, options);
  return Simulation(experiment, options).compute();
}

Results results_of(const Experiment& experiment, const std::vector<SimulatedRun>& runs) {
  Results results{experiment.name, {}};
  for (const SimulatedRun& run : runs) results.runs.push_back(run.report);
  return results;
}

ResultFiles result_files(const Experiment& experiment, const std::vector<SimulatedRun>& runs,
                         const std::string& command) {
  ResultFiles files{results_of(experiment, runs), {}, experiment.effective_yaml, command};
  for (const SimulatedRun& run : runs) files.timelines.push_back({run.report.name, run.timeline});
  return files;
}

}  // namespace coterie
