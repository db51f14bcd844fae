#include "runtime/session/run.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <optional>

#include "core/error.hpp"
#include "core/results.hpp"
#include "runtime/control/fault.hpp"
#include "runtime/device/errors.hpp"
#include "runtime/executor/executor.hpp"
#include "runtime/session/measure.hpp"
#include "runtime/session/outputs.hpp"
#include "runtime/session/planning.hpp"
#include "runtime/session/transport.hpp"
#include "runtime/session/verification.hpp"
#include "topologies/network.hpp"
#include "workloads/prepare.hpp"

namespace coterie {
namespace {

// What became of a run; with a code where it failed (report.failure has the sentence).
struct RunOutcome {
  RunReport report;
  std::optional<ExitCode> failure_code;
};

LayerShape layer_shape(const Experiment& experiment) {
  const ModelShape& model = experiment.model;
  LayerShape shape;
  shape.mlp = {model.hidden, model.expert_intermediate};
  shape.shared_intermediate = model.num_shared_experts * model.shared_intermediate;
  shape.dispatch = experiment.dispatch_payload == PayloadType::kFp8 ? kernels::RowType::kFp8
                                                                    : kernels::RowType::kBf16;
  shape.experts = experiment.expert_type == PayloadType::kFp8 ? kernels::GemmType::kFp8
                                                              : kernels::GemmType::kBf16;
  shape.seed = experiment.seed;
  return shape;
}

// The sizes at which a dry run checks plans, schedules and blocks in seconds. The plans stay those
// of the full size, their rounds included. Hidden keeps one FP8 scale; both are multiples of 8.
constexpr std::uint32_t kDryHidden = kernels::kScaleGroup;
constexpr std::uint32_t kDryIntermediate = 64;  // FP8 experts: one block of their scales

LayerShape reduced_shape(const Experiment& experiment) {
  const ModelShape& model = experiment.model;
  LayerShape shape = layer_shape(experiment);
  shape.mlp.hidden = std::min(model.hidden, kDryHidden);
  shape.mlp.intermediate = std::min(
      model.expert_intermediate,
      shape.experts == kernels::GemmType::kFp8 ? kernels::kGemmScaleBlock : kDryIntermediate);
  shape.shared_intermediate =
      model.num_shared_experts * std::min(model.shared_intermediate, kDryIntermediate);
  return shape;
}

// The runs of an experiment, one after the other on the same ranks.
class Session {
 public:
  Session(const RunOptions& options, const Experiment& experiment, ControlGroup& group,
          Executor& executor)
      : options_(options),
        experiment_(experiment),
        group_(group),
        executor_(executor),
        network_(experiment.cluster),
        trace_(load_trace(experiment)),
        shape_(options.dry_run && !options.full_size ? reduced_shape(experiment)
                                                     : layer_shape(experiment)),
        verifier_(shape_, options.num_check_tokens, group, executor) {}

  [[nodiscard]] const LayerShape& shape() const { return shape_; }

  // What every exact run is compared with.
  void run_baseline() {
    RunSpec spec;
    spec.name = "baseline";
    spec.placement = "contiguous";
    spec.policy = DispatchPolicy::kStandard;
    const PlannedRun planned = plan_run(experiment_, spec, trace_, group_);
    if (planned.infeasible) throw InputError(*planned.infeasible);
    executor_.load(make_run_layers(shape_, planned.plans, group_.rank(),
                                   chosen_direct(experiment_.cluster, experiment_.transport)));
    executor_.iterate(Iteration::kVerification, 0);
    verifier_.keep_baseline(planned);
  }

  RunOutcome run(const RunSpec& spec) {
    const PlannedRun planned = plan_run(experiment_, spec, trace_, group_);
    if (planned.infeasible) {
      return {infeasible_run(experiment_, spec, *planned.infeasible), ExitCode::kBadInput};
    }
    if (group_.rank() == 0) spdlog::info("run {}: loading", spec.name);
    std::optional<DirectOptions> direct =
        chosen_direct(experiment_.cluster, experiment_.transport_of(spec));
    if (direct) direct->capture = options_.capture;
    executor_.load(make_run_layers(shape_, planned.plans, group_.rank(), direct));
    executor_.iterate(Iteration::kVerification, 0);
    const RunCheck check = verifier_.verify(planned);
    const std::vector<RankTimes> ranks = measure(spec, !check.failure);
    RunOutcome outcome{measured_run(options_, experiment_, planned, check, executor_), {}};
    if (check.failure) outcome.failure_code = ExitCode::kCheckFailed;
    if (group_.rank() == 0 && !check.failure) {
      for (std::size_t i = 0; i < planned.plans.size(); ++i) {
        outcome.report.layers.push_back(measured_layer(experiment_, planned, i, network_, ranks));
      }
    }
    return outcome;
  }

 private:
  // The times of all ranks at rank 0; without `correct` nothing is timed.
  std::vector<RankTimes> measure(const RunSpec& spec, bool correct) {
    RankTimes times;
    if (correct) {
      if (group_.rank() == 0) spdlog::info("run {}: measuring", spec.name);
      for (std::uint32_t i = 0; i < options_.num_warm_up; ++i) {
        executor_.iterate(Iteration::kWarmUp, i);
      }
      group_.barrier("end of the warm-up");
      for (std::uint32_t i = 0; i < options_.num_iterations; ++i) {
        times.push_back(executor_.iterate(Iteration::kTimed, i));
      }
    }
    std::vector<RankTimes> ranks;
    for (const std::string& bytes : group_.gather("collection of the times", pack_times(times))) {
      ranks.push_back(unpack_times(bytes));
    }
    return ranks;
  }

  const RunOptions& options_;
  const Experiment& experiment_;
  ControlGroup& group_;
  Executor& executor_;
  const Network network_;
  const TraceParts trace_;
  const LayerShape shape_;  // as executed; the plans are those of the model's own size
  Verifier verifier_;
};

void check_experiment(const Experiment& experiment, const RankEnvironment& environment) {
  const std::string where = experiment.name;
  if (experiment.num_ranks != environment.num_ranks) {
    throw InputError(where + ": ranks", fmt::format("{} ranks", experiment.num_ranks),
                     fmt::format("{}, the number of processes that were started (--set ranks={})",
                                 environment.num_ranks, environment.num_ranks));
  }
  if (experiment.num_groups != 1) {
    throw InputError(where + ": groups", fmt::format("{} EP groups", experiment.num_groups),
                     "one group (start the runtime once per group)");
  }
  if (experiment.combine_payload != PayloadType::kBf16) {
    throw InputError(where + ": payload.combine", to_string(experiment.combine_payload),
                     "bf16, the type in which the kernels return results");
  }
  (void)chosen_direct(experiment.cluster, experiment.transport);
  for (const RunSpec& run : experiment.runs) {
    (void)chosen_direct(experiment.cluster, experiment.transport_of(run));
  }
  const bool fp8_experts = experiment.expert_type == PayloadType::kFp8;
  const std::uint32_t unit =
      fp8_experts || experiment.dispatch_payload == PayloadType::kFp8 ? kernels::kScaleGroup : 8;
  const std::uint32_t inner = fp8_experts ? kernels::kGemmScaleBlock : 8;
  if (experiment.model.hidden % unit != 0 || experiment.model.expert_intermediate % inner != 0) {
    throw InputError(where + ": model",
                     fmt::format("hidden {} and expert_intermediate {}", experiment.model.hidden,
                                 experiment.model.expert_intermediate),
                     fmt::format("multiples of {} and {}", unit, inner));
  }
}

// Said before anything takes time.
void announce_size(const Experiment& experiment, const LayerShape& executed) {
  const ModelShape& model = experiment.model;
  if (executed.mlp.hidden == model.hidden &&
      executed.mlp.intermediate == model.expert_intermediate) {
    return;
  }
  spdlog::info(
      "dry run: rows of {} values instead of {}, expert intermediates of {} instead of {}; plans, "
      "rounds and blocks are those of the full size (--full-size computes at it, slowly)",
      executed.mlp.hidden, model.hidden, executed.mlp.intermediate, model.expert_intermediate);
}

}  // namespace

void run_experiment(const RunOptions& options, const RankEnvironment& environment) {
  fault_point(environment.rank, "start");
  std::vector<Override> overrides = options.overrides;
  if (!options.layers.empty()) {
    overrides.push_back({"layers", fmt::format("[{}]", fmt::join(options.layers, ", "))});
  }
  const Experiment experiment = load_experiment(options.experiment, overrides);
  if (experiment.step) {
    throw InputError(options.experiment.string(), "a whole step (\"step\")",
                     "an experiment of MoE layers, which the runtime executes alone");
  }
  check_experiment(experiment, environment);
  if (environment.rank == 0) check_results_folder(options.output, experiment.name, kMeasured);

  ControlGroup group(environment, options.group);
  std::optional<Error> failure;  // of the first run that failed
  const auto body = [&] {
    group.barrier("rendezvous");
    fault_point(environment.rank, "rendezvous");
    group.set_stage("initialisation of the device");
    fault_point(environment.rank, "init");
    const std::unique_ptr<Executor> executor =
        options.dry_run ? make_dry_executor(group) : make_gpu_executor(group, environment);
    if (!options.dry_run && experiment.expert_type == PayloadType::kFp8 &&
        !kernels::grouped_gemm_available()) {
      throw InputError(experiment.name + ": precision.experts", "fp8",
                       "bf16: FP8 products need CUTLASS at build time and compute capability 9.0");
    }
    Session session(options, experiment, group, *executor);
    if (environment.rank == 0) announce_size(experiment, session.shape());
    session.run_baseline();
    std::vector<RunReport> reports;
    for (const RunSpec& spec : experiment.runs) {
      RunOutcome outcome = session.run(spec);
      if (outcome.failure_code && !failure) {
        failure.emplace(*outcome.failure_code, *outcome.report.failure);
      }
      reports.push_back(std::move(outcome.report));
    }
    fault_point(environment.rank, "report");
    // Nothing is written before every rank has come this far.
    group.barrier("start of the report");
    if (environment.rank == 0) {
      group.set_stage("writing of the report");
      if (options.dry_run) {
        write_dry_run(options, experiment, session.shape(), reports);
        fmt::print("dry run: {} runs exchanged over the control connection, nothing measured\n",
                   reports.size());
      } else {
        write_measurement(options, experiment, reports);
        print_table(reports);
      }
    }
    executor->finish();
    group.finish();
  };
  run_in_group(group, [&] { with_device_errors(body); });
  if (failure) throw Error(*failure);
}

}  // namespace coterie
