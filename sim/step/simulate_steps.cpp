#include "sim/step/simulate_steps.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <optional>
#include <set>

#include "core/progress.hpp"
#include "sim/step/memory.hpp"
#include "sim/step/operations.hpp"
#include "sim/step/step_times.hpp"
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
        times_(experiment.cluster.gpu),
        parts_(load_trace(experiment)) {
    step_options_.engine = experiment.engine;
    step_options_.relative_precision = options.relative_precision;
    step_options_.timeline = options.timelines;
    step_options_.changes = changes();
    slow_ = experiment.disturbances.slowness(step_.parallel.num_ranks(), experiment.seed);
    executed_ = options.step_method ? *options.step_method == StepMethod::kExecuted
                                    : estimated_operations(experiment) <= kExecutedOps;
  }

  SimulatedRun run(const RunSpec& spec) const {
    SimulatedRun out;
    try {
      PrepareOptions prepare;
      prepare.cache = options_.cache;
      const PreparedRun prepared = prepare_run(experiment_, spec, parts_, prepare);
      out.report = run_header(experiment_, prepared);
      if (const auto warning = fit_warning()) out.report.warnings.push_back(*warning);
      out.report.step = simulate(prepared, out);
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

  // Of a node: what its GPUs send and receive over NICs.
  [[nodiscard]] std::vector<std::uint32_t> links_of(const LinkDisturbance& disturbance) const {
    if (!disturbance.node) return {link_of(disturbance.link)};
    std::vector<std::uint32_t> out;
    const std::uint32_t gpus = experiment_.cluster.gpus_per_node;
    for (std::uint32_t i = 0; i < network_.links().size(); ++i) {
      const Link& link = network_.links()[i];
      if (link.tier != Tier::kNetwork) continue;
      for (std::uint32_t g = 0; g < gpus; ++g) {
        if (link.name.starts_with(fmt::format("gpu {} ", *disturbance.node * gpus + g))) {
          out.push_back(i);
        }
      }
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

  [[nodiscard]] StepReport simulate(const PreparedRun& run, SimulatedRun& out) const {
    std::vector<LayerPlan> plans;
    const PlanRequest request = plan_request(experiment_, run, PlanDetail::kCounts);
    double imbalance = 1.0;
    for (std::size_t layer = 0; layer < run.routing->num_layers(); ++layer) {
      plans.push_back(
          make_plan(*run.routing, layer, run.placement.layers[layer], run.tokens(), request));
      imbalance = std::max(imbalance, load_max_over_mean(plans.back()));
    }
    const MemoryBytes memory = memory_per_gpu(experiment_.model, step_, experiment_.cluster.gpu,
                                              run.spec.num_replicas, imbalance);
    if (!memory.fits() && !step_.allow_out_of_memory) {
      throw InputError(
          fmt::format("run {}: the step does not fit: a GPU {}; expected less, or "
                      "step.allow_out_of_memory: true",
                      run.spec.name, memory_sentence(memory)));
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
    const StepTimes times = executed_ ? execute_step(setup, network_, step_options_)
                                      : compose_step(setup, network_, step_options_);
    out.timeline = times.timeline;
    out.report.provenance["step"] = {{"blocks", times.num_blocks},
                                     {"operations", times.num_operations}};
    StepReport step = report(times, memory);
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
  TraceParts parts_;
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
    throw InputError(
        "step",
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
