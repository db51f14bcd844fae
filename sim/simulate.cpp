#include "sim/simulate.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <mutex>
#include <optional>

#include "core/error.hpp"
#include "core/progress.hpp"
#include "core/provenance.hpp"
#include "sim/engines/engines.hpp"
#include "sim/layer_program.hpp"
#include "sim/layer_report.hpp"
#include "sim/parallel.hpp"

namespace coterie {
namespace {

constexpr std::size_t kTimelineLinks = 8;  // per layer
constexpr std::size_t kTimelineBins = 100;

// The tokens of one EP group. Groups start at different sequences, so that they are not copies.
RankTokens group_tokens(const Experiment& experiment, const PreparedRun& run, std::uint32_t group) {
  if (group == 0) return run.tokens;
  const std::uint64_t first = run.routing.num_sequences() * group / experiment.num_groups;
  return deal_tokens(run.routing, experiment.num_ranks, experiment.tokens_per_rank, experiment.deal,
                     first);
}

struct LayerResult {
  LayerReport report;
  Timeline timeline;
  std::vector<double> rank_end_s;
};

class Simulation {
 public:
  Simulation(const Experiment& experiment, const SimulateOptions& options)
      : experiment_(experiment), options_(options), network_(experiment.cluster) {}

  std::vector<SimulatedRun> compute() {
    prepare();
    const std::size_t num_runs = experiment_.runs.size();
    const std::size_t num_layers = runs_.front().routing.num_layers();
    results_.assign(num_runs, std::vector<LayerResult>(num_layers));
    std::optional<Progress> progress;
    if (options_.progress) progress.emplace("simulating layers", num_runs * num_layers);
    std::mutex mutex;
    const auto done = [&] {
      const std::scoped_lock lock(mutex);
      if (progress) progress->advance();
    };
    if (experiment_.num_groups == 1) {
      // A layer starts with a barrier over all ranks, so nothing of the previous layer is left when
      // the first transfer starts: the layers are independent.
      parallel_for(options_.num_jobs, num_runs * num_layers, [&](std::size_t item) {
        const std::size_t run = item / num_layers;
        const std::size_t layer = item % num_layers;
        results_[run][layer] = named(run, layer, [&] { return simulate_layer(run, layer, {}); });
        done();
      });
    } else {
      // Groups wait for their own ranks only and drift apart over the layers.
      parallel_for(options_.num_jobs, num_runs, [&](std::size_t run) {
        std::vector<double> ready_s;
        for (std::size_t layer = 0; layer < num_layers; ++layer) {
          LayerResult& result = results_[run][layer];
          result = named(run, layer, [&] { return simulate_layer(run, layer, ready_s); });
          ready_s = result.rank_end_s;
          const double first_s = *std::min_element(ready_s.begin(), ready_s.end());
          for (double& time_s : ready_s) time_s -= first_s;
          done();
        }
      });
    }
    std::vector<SimulatedRun> out;
    for (std::size_t run = 0; run < num_runs; ++run) out.push_back(assemble(run));
    return out;
  }

 private:
  void prepare() {
    const Routing trace = load_trace(experiment_);
    runs_.resize(experiment_.runs.size());
    tokens_.resize(runs_.size());
    parallel_for(options_.num_jobs, runs_.size(), [&](std::size_t run) {
      runs_[run] = prepare_run(experiment_, experiment_.runs[run], trace);
      for (std::uint32_t group = 0; group < experiment_.num_groups; ++group) {
        tokens_[run].push_back(group_tokens(experiment_, runs_[run], group));
      }
    });
    if (runs_.front().routing.num_tokens() == 0 || runs_.front().routing.num_layers() == 0) {
      throw InputError(experiment_.trace.file.string(), "no tokens in the evaluated part",
                       "at least one sequence there");
    }
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
                                                 runs_[run].routing.layers[layer], error.what()));
    }
  }

  std::vector<LayerPlan> plan_groups(std::size_t run, std::size_t layer) const {
    std::vector<LayerPlan> plans;
    for (const RankTokens& tokens : tokens_[run]) {
      plans.push_back(make_plan(runs_[run].routing, layer, runs_[run].placement.layers[layer],
                                tokens,
                                {runs_[run].spec.policy, experiment_.ranks_per_node(),
                                 PlanDetail::kCounts, runs_[run].placement.replica_choice}));
    }
    return plans;
  }

  LayerResult simulate_layer(std::size_t run, std::size_t layer,
                             std::vector<double> ready_s) const {
    const std::vector<LayerPlan> plans = plan_groups(run, layer);
    // The layer's clock starts when the slowest rank is there.
    const double shift_s =
        ready_s.empty() ? 0.0 : -*std::max_element(ready_s.begin(), ready_s.end());
    const LayerSetup setup{plans,
                           experiment_.model,
                           experiment_.dispatch_payload,
                           experiment_.combine_payload,
                           experiment_.chunk,
                           std::move(ready_s)};
    const LayerProgram program = build_layer(setup, experiment_.cluster);
    const Transfers transfers = resolve_transfers(program.program, network_);
    const EngineOptions engine{options_.relative_precision, 1, options_.timeout_s};
    const Execution execution = run_engine(experiment_.engine, program.program, network_, engine);

    const LayerRun layer_run{setup, program, transfers, network_, execution, shift_s};
    LayerResult result;
    result.report = report_layer(layer_run);
    result.rank_end_s = rank_ends(layer_run);
    if (options_.timelines) {
      result.timeline = layer_timeline(layer_run, result.report, kTimelineLinks, kTimelineBins);
    }
    result.report.bound_s =
        lower_bounds(program.program, transfers, network_.links()).makespan_s + shift_s;
    if (const auto uncertainty = experiment_.cluster.relative_uncertainty) {
      result.report.low_s = result.report.time_s * (1.0 - *uncertainty);
      result.report.high_s = result.report.time_s * (1.0 + *uncertainty);
    }
    add_fan_out(run, layer, result.report);
    return result;
  }

  // Means per token over all groups, which own equally many or nearly so.
  void add_fan_out(std::size_t run, std::size_t layer, LayerReport& report) const {
    double num_tokens = 0.0;
    for (const RankTokens& tokens : tokens_[run]) {
      num_tokens += static_cast<double>(tokens.token_begin.back());
    }
    for (const RankTokens& tokens : tokens_[run]) {
      const FanOut counts =
          fan_out(runs_[run].routing, layer, runs_[run].placement.layers[layer],
                  experiment_.ranks_per_node(), tokens, runs_[run].placement.replica_choice);
      const double weight = static_cast<double>(tokens.token_begin.back()) / num_tokens;
      report.copies += weight * counts.copies;
      report.fanout_ranks += weight * counts.fanout_ranks;
      report.remote_fanout_ranks += weight * counts.remote_fanout_ranks;
      report.fanout_nodes += weight * counts.fanout_nodes;
      report.remote_fanout_nodes += weight * counts.remote_fanout_nodes;
      report.rank_load_max_over_mean += weight * counts.rank_load_max_over_mean;
    }
  }

  SimulatedRun assemble(std::size_t run) {
    const PreparedRun& prepared = runs_[run];
    SimulatedRun out;
    RunReport& report = out.report;
    report.kind = "predicted";
    report.engine = experiment_.engine;
    report.name = prepared.spec.name;
    report.policy = to_string(prepared.spec.policy);
    report.placement =
        prepared.placement.strategy.empty() ? prepared.spec.placement : prepared.placement.strategy;
    report.exact = prepared.exact;
    report.topology = experiment_.cluster.name;
    report.model = experiment_.model.name;
    report.trace = experiment_.trace.file.filename().string();
    report.num_ranks = experiment_.num_ranks;
    report.num_groups = experiment_.num_groups;
    for (const RankTokens& tokens : tokens_[run]) {
      for (std::size_t rank = 0; rank + 1 < tokens.token_begin.size(); ++rank) {
        report.tokens_per_rank = std::max(
            report.tokens_per_rank,
            static_cast<std::uint32_t>(tokens.token_begin[rank + 1] - tokens.token_begin[rank]));
      }
    }
    report.dispatch_payload = to_string(experiment_.dispatch_payload);
    report.combine_payload = to_string(experiment_.combine_payload);
    report.weight_lost = prepared.weight_lost;
    report.top1_changed = prepared.top1_changed;
    report.provenance["version"] = version();
    report.provenance["experiment"] = experiment_.name;
    report.provenance["seed"] = experiment_.seed;
    for (const auto& [key, value] : experiment_.cluster.provenance) {
      report.provenance["topology." + key] = value;
    }
    double start_s = 0.0;
    for (LayerResult& result : results_[run]) {
      append(out.timeline, std::move(result.timeline), start_s);
      start_s += result.report.time_s;
      report.layers.push_back(std::move(result.report));
    }
    return out;
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
  std::vector<PreparedRun> runs_;
  std::vector<std::vector<RankTokens>> tokens_;    // [run][group]
  std::vector<std::vector<LayerResult>> results_;  // [run][layer]
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
  return Simulation(experiment, options).compute();
}

}  // namespace coterie
