#include "sim/step/simulate_steps.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <optional>
#include <set>

#include "core/progress.hpp"
#include "sim/experiment/layer_times.hpp"
#include "sim/step/memory.hpp"
#include "sim/step/operations.hpp"
#include "sim/step/step_times.hpp"
#include "workloads/placement/strategies.hpp"
#include "workloads/prepare.hpp"
#include "workloads/run_report.hpp"

namespace coterie {
namespace {

// Steps of up to so many operations are executed whole.
constexpr double kExecutedOps = 200'000.0;

class StepSimulation {
 public:
  StepSimulation(const Experiment& experiment, const SimulateOptions& options)
      : experiment_(experiment),
        options_(options),
        step_(*experiment.step),
        network_(experiment.cluster),
        times_(experiment.cluster.gpu) {
    for (const RunSpec& run : experiment.runs) {
      (void)chosen_transport(experiment.cluster, experiment.transport_of(run));
    }
    if (step_.series) {
      parts_ = load_series(experiment);
    } else {
      parts_.push_back(load_trace(experiment));
    }
    step_options_.engine = experiment.engine;
    step_options_.relative_precision = options.relative_precision;
    step_options_.timeline = options.timelines;
    step_options_.changes = changes();
    step_options_.reroute_after_s = experiment.disturbances.reroute_after_s;
    step_options_.timeout_s = experiment.disturbances.timeout_s;
    slow_ = experiment.disturbances.slowness(step_.parallel.num_ranks(), experiment.seed);
    executed_ = options.step_method
                    ? *options.step_method == StepMethod::kExecuted
                    : estimated_operations(experiment) <= kExecutedOps &&
                          (experiment.engine == "flow" || !reroutes_under_way(step_options_));
  }

  SimulatedRun run(const RunSpec& spec) const {
    SimulatedRun out;
    try {
      PrepareOptions prepare;
      prepare.cache = options_.cache;
      prepare.times = [&](const RunSpec& run, const Routing& training) {
        return layer_times_of(experiment_, run, training);
      };
      const PreparedRun prepared = prepare_run(experiment_, spec, parts_.front(), prepare);
      out.report = run_header(experiment_, prepared);
      if (const auto warning = fit_warning()) out.report.warnings.push_back(*warning);
      if (step_.series) {
        out.report.step = simulate_series(prepared, prepare, out);
      } else {
        out.report.step = report(simulate(prepared), out);
      }
    } catch (const Error& error) {
      out.report = failed_run(experiment_, spec, error.what());
      out.failure_code = error.exit_code();
    }
    RunReport& report = out.report;
    report.kind = "predicted";
    report.engine = experiment_.engine;
    report.transport =
        transport_name(chosen_transport(experiment_.cluster, experiment_.transport_of(spec)));
    report.num_groups = step_.parallel.num_ranks() / step_.parallel.ep;
    if (step_.routing == StepRouting::kBalanced) report.trace = "balanced";
    if (step_.routing == StepRouting::kSkewed) {
      report.trace = fmt::format("skew {}", step_.routing_skew);
    }
    if (step_.routing != StepRouting::kTrace) report.token_repeats.reset();
    return out;
  }

 private:
  [[nodiscard]] std::uint32_t link_of(const std::string& name) const {
    const auto links = network_.links();
    const auto found = std::find_if(links.begin(), links.end(),
                                    [&](const Link& link) { return link.name == name; });
    if (found != links.end()) return static_cast<std::uint32_t>(found - links.begin());
    throw InputError("disturbances", fmt::format("no link \"{}\"", name),
                     fmt::format("a link's name, as \"{}\"", links.front().name));
  }

  // Of a node or rail: what its GPUs send and receive over NICs.
  [[nodiscard]] std::vector<std::uint32_t> links_of(const LinkDisturbance& disturbance) const {
    if (!disturbance.node && !disturbance.rail) return {link_of(disturbance.link)};
    const std::uint32_t gpus = experiment_.cluster.gpus_per_node;
    std::set<std::string> ports;
    for (std::uint32_t gpu = 0; gpu < network_.num_gpus(); ++gpu) {
      if (disturbance.node && gpu / gpus != *disturbance.node) continue;
      if (disturbance.rail && gpu % gpus != *disturbance.rail) continue;
      ports.insert(fmt::format("gpu {} nic out", gpu));
      ports.insert(fmt::format("gpu {} nic in", gpu));
    }
    std::vector<std::uint32_t> out;
    for (std::uint32_t i = 0; i < network_.links().size(); ++i) {
      if (ports.contains(network_.links()[i].name)) out.push_back(i);
    }
    return out;
  }

  [[nodiscard]] std::vector<CapacityChange> changes() const {
    std::vector<CapacityChange> out;
    for (const LinkDisturbance& disturbance : experiment_.disturbances.links) {
      for (const std::uint32_t link : links_of(disturbance)) {
        const double whole = network_.links()[link].bandwidth.value;
        out.push_back({disturbance.from_s, link, whole * disturbance.share});
        if (disturbance.until_s) out.push_back({*disturbance.until_s, link, whole});
      }
    }
    return out;
  }

  // What of the step no measurement of this GPU stands behind. A topology without any fit is a data
  // sheet, which says so itself.
  [[nodiscard]] std::optional<std::string> fit_warning() const {
    const GpuModel& gpu = experiment_.cluster.gpu;
    if (gpu.operations.empty()) return std::nullopt;
    std::set<std::string> kinds;
    const auto add = [&](const std::vector<ModelOperation>& operations) {
      kinds.merge(kinds_without_fit(gpu, operations));
    };
    const LayerWork work = layer_work(step_);
    for (std::uint32_t layer = 0; layer < experiment_.model.num_layers; ++layer) {
      const LayerOperations operations =
          layer_operations(experiment_.model, step_, work, layer, Pass::kForward);
      for (const auto* list :
           {&operations.attention, &operations.dense_mlp, &operations.router, &operations.shared}) {
        add(*list);
      }
    }
    add(head_operations(experiment_.model, step_, work, Pass::kForward));
    if (kinds.empty()) return std::nullopt;
    return fmt::format(
        "the topology has no fit of {}: they take the usual share of the data sheet's peak, as no "
        "measurement of this GPU says (gpu.operations)",
        fmt::join(kinds, ", "));
  }

  // One step: how long it takes, what it needs, and the load of its fullest rank.
  struct OneStep {
    StepTimes times;
    MemoryBytes memory;
    double imbalance = 1.0;
  };

  [[nodiscard]] OneStep simulate(const PreparedRun& run) const {
    OneStep out;
    std::vector<LayerPlan> plans;
    const PlanRequest request = plan_request(experiment_, run, PlanDetail::kCounts);
    for (const RankTokens& tokens : *run.group_tokens) {
      for (std::size_t layer = 0; layer < run.routing->num_layers(); ++layer) {
        plans.push_back(
            make_plan(*run.routing, layer, run.placement.layers[layer], tokens, request));
        out.imbalance = std::max(out.imbalance, load_max_over_mean(plans.back()));
      }
    }
    out.memory = memory_per_gpu(experiment_.model, step_, experiment_.cluster.gpu,
                                num_replicas(run.placement), out.imbalance);
    if (!out.memory.fits() && !step_.allow_out_of_memory) {
      throw InputError(
          fmt::format("run {}: the step does not fit: a GPU {}; expected less, or "
                      "step.allow_out_of_memory: true",
                      run.spec.name, memory_sentence(out.memory)));
    }
    const StepCosts costs(experiment_.model, step_, times_, plans);
    const std::uint32_t hidden = experiment_.model.hidden;
    const Bytes bf16 = row_payload(PayloadType::kBf16, hidden);
    const StepSetup setup{experiment_.cluster,
                          experiment_.model,
                          step_,
                          costs,
                          plans,
                          {row_payload(experiment_.dispatch_payload, hidden),
                           row_payload(experiment_.combine_payload, hidden)},
                          {bf16, bf16},
                          experiment_.dispatch_payload,
                          experiment_.transport_of(run.spec),
                          slow_,
                          optimizer_s()};
    out.times = executed_ ? execute_step(setup, network_, step_options_)
                          : compose_step(setup, network_, step_options_);
    return out;
  }

  // The placement of the first step meets the routing of every step, and so does one that is learnt for
  // it. What is reported besides is the mean over the steps.
  [[nodiscard]] StepReport simulate_series(const PreparedRun& first, const PrepareOptions& options,
                                           SimulatedRun& out) const {
    const bool learns = strategy_learns_here(first.spec);
    OneStep mean;
    std::vector<StepReport::SeriesStep> series;
    const double share = 1.0 / static_cast<double>(parts_.size());
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      TraceParts parts = parts_[i];
      parts.train = parts_.front().train;
      PreparedRun placed_once = first;
      if (first.spec.prune) {
        placed_once = prepare_run(experiment_, first.spec, parts, options);
      } else {
        placed_once.routing = parts.eval;
        placed_once.group_tokens = parts.tokens;
      }
      OneStep step = simulate(placed_once);
      StepReport::SeriesStep& one = series.emplace_back();
      one.time_s = step.times.time_s;
      one.rank_load_max_over_mean = step.imbalance;
      if (learns) {
        one.relearnt_time_s =
            i == 0
                ? step.times.time_s
                : simulate(prepare_run(experiment_, first.spec, parts_[i], options)).times.time_s;
      }
      if (i == 0) {
        mean = std::move(step);
        mean.times.scale(share);
      } else {
        mean.times.add(step.times, share);
        if (step.memory.total() > mean.memory.total()) mean.memory = step.memory;
      }
    }
    StepReport result = report(mean, out);
    result.series = std::move(series);
    return result;
  }

  static bool strategy_learns_here(const RunSpec& spec) {
    const std::vector<std::string> names = placement_strategies();
    return std::find(names.begin(), names.end(), spec.placement) != names.end() &&
           strategy_learns(spec.placement);
  }

  [[nodiscard]] StepReport report(const OneStep& one, SimulatedRun& out) const {
    const StepTimes& times = one.times;
    out.timeline = times.timeline;
    out.report.provenance["step"] = {{"blocks", times.num_blocks},
                                     {"operations", times.num_operations}};
    if (times.longest_stall_s > 0.0) {
      out.report.provenance["step"]["longest_stall_s"] = times.longest_stall_s;
      out.report.warnings.push_back(
          fmt::format("transfers over failed links stood still for up to {}",
                      format_seconds(Seconds{times.longest_stall_s})));
    }
    StepReport step = report(times, one.memory);
    step.rank_load_max_over_mean = one.imbalance;
    if (experiment_.decode_pool > 0) {
      // Each layer's keys and values leave when it has made them: the step hides all but the last
      // layer's, as long as the NICs keep up.
      const double layers = experiment_.model.num_layers;
      const double kv_s = transfer_s();
      const double last_s = std::max(kv_s / layers, kv_s - times.time_s * (1.0 - 1.0 / layers));
      out.report.provenance["step"]["kv_transfer_s"] = kv_s;
      out.report.provenance["step"]["kv_transfer_exposed_s"] = last_s;
      step.ttft_s = times.time_s + last_s;
    }
    return step;
  }

  // Of the keys and values of all prompts of the step, to the GPUs behind it that decode.
  [[nodiscard]] double transfer_s() const {
    const double values = experiment_.model.attention->cached_values();
    const double bytes = static_cast<double>(step_.prefill.tokens_per_gpu) * values *
                         experiment_.model.num_layers * bytes_per_value(step_.precision.kv_cache);
    const std::uint32_t num_ranks = step_.parallel.num_ranks();
    ProgramBuilder builder;
    for (std::uint32_t rank = 0; rank < num_ranks; ++rank) {
      builder.add_transfer(rank, num_ranks + rank % experiment_.decode_pool, bytes, kStartEvent,
                           {});
    }
    const Program program = std::move(builder).finish();
    EngineOptions engine;
    engine.relative_precision = options_.relative_precision;
    return run_engine(experiment_.engine, resolve(program, network_), engine).makespan_s;
  }

  // Of the layer with most; placement files have them, too.
  static std::uint32_t num_replicas(const Placement& placement) {
    std::size_t most = placement.num_experts;
    for (const LayerPlacement& layer : placement.layers) {
      std::size_t copies = 0;
      for (const auto& experts : layer.rank_experts) copies += experts.size();
      most = std::max(most, copies);
    }
    return static_cast<std::uint32_t>(most - placement.num_experts);
  }

  static double load_max_over_mean(const LayerPlan& plan) {
    std::vector<double> loads;
    for (std::uint32_t rank = 0; rank < plan.num_ranks; ++rank) {
      double load = 0.0;
      for (std::uint32_t i = plan.rank_expert_begin[rank]; i < plan.rank_expert_begin[rank + 1];
           ++i) {
        load += static_cast<double>(plan.rank_expert_tokens[i]);
      }
      loads.push_back(load);
    }
    double sum = 0.0;
    for (const double load : loads) sum += load;
    return sum > 0.0 ? *std::max_element(loads.begin(), loads.end()) *
                           static_cast<double>(loads.size()) / sum
                     : 1.0;
  }

  // Of the stage with most parameters.
  [[nodiscard]] double optimizer_s() const {
    if (step_.kind != StepKind::kTrain) return 0.0;
    double seconds = 0.0;
    for (std::uint32_t stage = 0; stage < step_.parallel.pp; ++stage) {
      const StageParameters parameters = stage_parameters(experiment_.model, step_, stage);
      const double dense_shards =
          step_.distributed_optimizer ? step_.parallel.dp * step_.parallel.cp : 1.0;
      const double expert_shards = step_.distributed_optimizer ? step_.parallel.edp() : 1.0;
      const double own = parameters.dense / dense_shards + parameters.experts / expert_shards;
      seconds = std::max(seconds, times_.time(optimizer_operations(step_, own)).total.value);
    }
    return seconds;
  }

  [[nodiscard]] double tokens() const {
    switch (step_.kind) {
      case StepKind::kTrain:
        return static_cast<double>(step_.train.global) * step_.train.sequence;
      case StepKind::kPrefill:
        return static_cast<double>(step_.prefill.tokens_per_gpu) * step_.parallel.num_ranks();
      case StepKind::kDecode:
        return static_cast<double>(step_.decode.sequences_per_gpu) * step_.parallel.num_ranks();
    }
    return 0.0;
  }

  [[nodiscard]] StepReport report(const StepTimes& times, const MemoryBytes& memory) const {
    const ParallelSizes& p = step_.parallel;
    StepReport out;
    out.kind = to_string(step_.kind);
    out.method = executed_ ? "executed" : "composed";
    out.num_gpus = p.num_ranks();
    out.parallel =
        fmt::format("tp {}, pp {}, vp {}, cp {}, ep {}, dp {}", p.tp, p.pp, p.vp, p.cp, p.ep, p.dp);
    out.time_s = times.time_s;
    if (const auto uncertainty = experiment_.cluster.relative_uncertainty) {
      out.low_s = times.time_s * (1.0 - *uncertainty);
      out.high_s = times.time_s * (1.0 + *uncertainty);
    }
    out.tokens_per_s_per_gpu = tokens() / times.time_s / p.num_ranks();
    const double token_flops =
        model_flops_per_token(experiment_.model, step_, step_.mtp_layers > 0);
    out.model_flops_per_s_per_gpu = out.tokens_per_s_per_gpu * token_flops;
    out.communication_s = times.communication_s;
    out.exposed_communication_s = times.exposed_s;
    out.bubble_s = times.bubble_s;
    for (std::size_t i = 0; i < kNumStepParts; ++i) {
      out.parts.emplace_back(to_string(static_cast<StepPart>(i)), times.parts[i]);
    }
    out.busy = {{"compute", times.compute_s / times.time_s},
                {"scale_up", times.scale_up_busy_s / times.time_s},
                {"network", times.network_busy_s / times.time_s}};
    for (const CriticalSegment& segment : times.critical_path) {
      out.critical_path.push_back({segment.name, segment.seconds, segment.count});
    }
    out.memory_bytes = {{"weights", memory.weights},     {"gradients", memory.gradients},
                        {"optimizer", memory.optimizer}, {"activations", memory.activations},
                        {"kv_cache", memory.kv_cache},   {"buffers", memory.buffers},
                        {"total", memory.total()},       {"available", memory.available}};
    if (step_.kind == StepKind::kDecode) out.tpot_s = times.time_s;
    if (step_.kind == StepKind::kPrefill) out.ttft_s = times.time_s;
    return out;
  }

  const Experiment& experiment_;
  const SimulateOptions& options_;
  const StepSpec& step_;
  Network network_;
  OperationTimes times_;
  std::vector<TraceParts> parts_;  // of every step of a series; else of the only one
  StepOptions step_options_;
  std::map<std::uint32_t, double> slow_;
  bool executed_ = false;
};

}  // namespace

double estimated_operations(const Experiment& experiment) {
  const StepSpec& step = *experiment.step;
  const double ep = step.parallel.ep;
  const double directions = step.kind == StepKind::kTrain ? 2.0 : 1.0;
  // Messages both ways between all pairs, and about 20 kernels and waits per rank.
  return directions * experiment.model.num_layers * step.num_micro_batches() *
         step.parallel.num_ranks() / step.parallel.pp * (2.0 * ep + 20.0);
}

std::vector<SimulatedRun> simulate_steps(const Experiment& experiment,
                                         const SimulateOptions& options) {
  if (experiment.cluster.ranks_per_gpu > 1) {
    throw InputError("step",
                     fmt::format("topology {} with {} ranks on each GPU", experiment.cluster.name,
                                 experiment.cluster.ranks_per_gpu),
                     "a GPU for every rank (ranks_per_gpu: 1)");
  }
  const StepSimulation simulation(experiment, options);
  std::vector<SimulatedRun> out;
  std::optional<Progress> progress;
  if (options.progress) progress.emplace("simulating steps", experiment.runs.size());
  for (const RunSpec& run : experiment.runs) {
    out.push_back(simulation.run(run));
    if (progress) progress->advance();
  }
  const bool any = std::any_of(out.begin(), out.end(),
                               [](const SimulatedRun& run) { return !run.failure_code; });
  if (any || out.empty()) return out;
  const SimulatedRun& first = out.front();
  if (*first.failure_code == ExitCode::kBadInput) throw InputError(*first.report.failure);
  throw Error(*first.failure_code, *first.report.failure);
}

}  // namespace coterie
