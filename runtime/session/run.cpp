#include "runtime/session/run.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <optional>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/hash.hpp"
#include "core/result_table.hpp"
#include "core/results.hpp"
#include "runtime/control/channel.hpp"
#include "runtime/control/fault.hpp"
#include "runtime/device/errors.hpp"
#include "runtime/executor/executor.hpp"
#include "runtime/executor/reference.hpp"
#include "runtime/executor/shared_experts.hpp"
#include "runtime/session/measure.hpp"
#include "topologies/network.hpp"
#include "workloads/prepare.hpp"
#include "workloads/run_report.hpp"

namespace coterie {
namespace {

constexpr const char* kKind = "measured";

// How far a layer's outputs are off, over all ranks.
struct LayerCheck {
  ErrorNorm reference;  // sampled tokens against the CPU
  ErrorNorm baseline;   // all tokens against standard + contiguous; exact runs only
};
struct RunCheck {
  std::vector<LayerCheck> layers;
  std::string plan_difference;  // empty: the devices built what the plan says
  std::optional<std::string> failure;
};

// What became of a run; with a code where it failed (report.failure has the sentence).
struct RunOutcome {
  RunReport report;
  std::optional<ExitCode> failure_code;
};

// The sampled tokens of a layer and what the CPU makes of them.
struct Samples {
  std::vector<std::size_t> tokens;
  std::vector<std::vector<std::vector<float>>> outputs;  // [layer][sample][hidden]
};

class Session {
 public:
  Session(const RunOptions& options, const Experiment& experiment, ControlGroup& group,
          Executor& executor)
      : options_(options),
        experiment_(experiment),
        group_(group),
        executor_(executor),
        network_(experiment.cluster),
        trace_(load_trace(experiment)) {
    shape_.mlp = {experiment.model.hidden, experiment.model.expert_intermediate};
    shape_.shared_intermediate =
        experiment.model.num_shared_experts * experiment.model.shared_intermediate;
    shape_.dispatch = experiment.dispatch_payload == PayloadType::kFp8 ? kernels::RowType::kFp8
                                                                       : kernels::RowType::kBf16;
    shape_.seed = experiment.seed;
    sizes_ = {row_payload(experiment.dispatch_payload, experiment.model.hidden),
              row_payload(experiment.combine_payload, experiment.model.hidden)};
  }

  // What every exact run is compared with.
  void run_baseline() {
    RunSpec spec;
    spec.name = "baseline";
    spec.placement = "contiguous";
    spec.policy = DispatchPolicy::kStandard;
    const Planned planned = plan(spec);
    if (planned.infeasible) throw InputError(*planned.infeasible);
    executor_.load(make_run_layers(shape_, planned.plans, group_.rank()));
    executor_.iterate(Iteration::kVerification, 0);
    exact_samples_ = sample(planned);
    baseline_outputs_.clear();
    for (std::size_t i = 0; i < planned.plans.size(); ++i) {
      baseline_outputs_.push_back(executor_.output(i));
    }
  }

  RunOutcome run(const RunSpec& spec) {
    const Planned planned = plan(spec);
    if (planned.infeasible) {
      RunOutcome outcome{failed_run(experiment_, spec, *planned.infeasible), ExitCode::kBadInput};
      outcome.report.kind = kKind;
      outcome.report.engine = outcome.report.transport = "nccl";
      return outcome;
    }
    if (group_.rank() == 0) spdlog::info("run {}: loading", spec.name);
    executor_.load(make_run_layers(shape_, planned.plans, group_.rank()));
    executor_.iterate(Iteration::kVerification, 0);
    const RunCheck check = verify(planned);

    RankTimes times;
    if (!check.failure) {
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
    RunOutcome outcome{describe(planned, check), {}};
    if (check.failure) outcome.failure_code = ExitCode::kCheckFailed;
    if (group_.rank() == 0 && !check.failure) {
      for (std::size_t i = 0; i < planned.plans.size(); ++i) {
        outcome.report.layers.push_back(describe_layer(planned, i, ranks));
      }
    }
    return outcome;
  }

 private:
  struct Planned {
    PreparedRun prepared;
    std::vector<LayerPlan> plans;
    std::optional<std::string> infeasible;  // why the run cannot be carried out, on all ranks alike
  };

  Planned plan(const RunSpec& spec) {
    group_.set_stage(fmt::format("planning of run {}", spec.name));
    Planned planned;
    try {
      planned = plan_layers(spec);
    } catch (const InputError& error) {
      planned.infeasible = error.what();
    }
    compare_across_ranks(planned);
    return planned;
  }

  Planned plan_layers(const RunSpec& spec) const {
    Planned planned{prepare_run(experiment_, spec, trace_), {}, {}};
    const PlanRequest request = plan_request(experiment_, planned.prepared, PlanDetail::kRows);
    for (std::size_t i = 0; i < planned.prepared.routing->num_layers(); ++i) {
      planned.plans.push_back(make_plan(*planned.prepared.routing, i,
                                        planned.prepared.placement.layers[i],
                                        planned.prepared.tokens(), request));
    }
    return planned;
  }

  // Every rank plans on its own; a rank with other inputs would send what nobody expects.
  void compare_across_ranks(const Planned& planned) {
    ContentHash hash;
    for (const LayerPlan& layer : planned.plans) {
      for (const Stage& stage : layer.stages) {
        hash.add(stage.src).add(stage.dst).add(stage.round).add(stage.parent);
        hash.add(stage.row_token).add(stage.row_mask);
      }
      hash.add(layer.rank_experts).add(layer.weights);
    }
    const auto digests = group_.all_gather(
        "comparison of the plans", planned.infeasible ? "infeasible" : hex64(hash.digest()));
    for (std::size_t r = 1; r < digests.size(); ++r) {
      if (digests[r] != digests[0]) {
        throw InputError("dispatch plans", fmt::format("another plan on rank {} than on rank 0", r),
                         "the same experiment and trace files on all ranks");
      }
    }
  }

  // The tokens' experts and weights come from the plan's routing, not from the layouts.
  Samples sample(const Planned& planned) {
    group_.set_stage("reference on the CPU");
    Samples samples;
    const LayerPlan& first = planned.plans.front();
    const std::uint64_t begin = first.token_begin[group_.rank()];
    const std::uint64_t num_tokens = first.token_begin[group_.rank() + 1] - begin;
    const std::uint64_t num_samples =
        std::min<std::uint64_t>(options_.num_check_tokens, num_tokens);
    for (std::uint64_t i = 0; i < num_samples; ++i) {
      samples.tokens.push_back(i * num_tokens / num_samples);
    }
    const auto tokens = make_tokens(shape_.seed, group_.rank(),
                                    static_cast<std::uint32_t>(num_tokens), shape_.mlp.hidden);
    for (const LayerPlan& layer : planned.plans) {
      std::vector<TokenRequest> requests;
      std::vector<std::span<const kernels::Bf16>> own_rows;
      for (const std::size_t token : samples.tokens) {
        own_rows.push_back(std::span(tokens).subspan(token * shape_.mlp.hidden, shape_.mlp.hidden));
        TokenRequest request;
        request.values = wire_values(own_rows.back(), shape_.dispatch);
        for (std::size_t j = 0; j < layer.num_topk; ++j) {
          const std::size_t at = (begin + token) * layer.num_topk + j;
          request.experts.push_back(layer.experts[at]);
          request.weights.push_back(layer.weights.empty()
                                        ? 1.0F / static_cast<float>(layer.num_topk)
                                        : layer.weights[at]);
        }
        requests.push_back(std::move(request));
      }
      samples.outputs.push_back(reference_outputs(shape_.mlp, shape_.seed, layer.layer, requests));
      add_shared_outputs(shape_, layer.layer, own_rows, samples.outputs.back());
    }
    return samples;
  }

  RunCheck verify(const Planned& planned) {
    std::optional<Samples> own_samples;
    if (!planned.prepared.exact) own_samples = sample(planned);
    const Samples& samples = own_samples ? *own_samples : exact_samples_;
    group_.set_stage("check of the outputs");
    const std::size_t hidden = shape_.mlp.hidden;
    Packer packer;
    std::string difference;
    for (std::size_t i = 0; i < planned.plans.size(); ++i) {
      std::vector<float> output = executor_.output(i);
      // The first token is always among the samples.
      if (!output.empty() && fault_point(group_.rank(), "output")) output.front() += 100.0F;
      LayerCheck check;
      for (std::size_t s = 0; s < samples.tokens.size(); ++s) {
        for (std::size_t h = 0; h < hidden; ++h) {
          check.reference.add(output[samples.tokens[s] * hidden + h], samples.outputs[i][s][h]);
        }
      }
      if (planned.prepared.exact) {
        for (std::size_t e = 0; e < output.size(); ++e) {
          check.baseline.add(output[e], baseline_outputs_[i][e]);
        }
      }
      for (const ErrorNorm& norm : {check.reference, check.baseline}) {
        packer.number(norm.difference).number(norm.reference);
      }
      if (const auto found = executor_.compare_with_plan(i); found && difference.empty()) {
        difference = *found;
      }
    }
    packer.text(difference);

    RunCheck result;
    result.layers.resize(planned.plans.size());
    for (const std::string& bytes : group_.all_gather("check of the outputs", packer.take())) {
      Unpacker unpacker(bytes);
      for (LayerCheck& layer : result.layers) {
        for (ErrorNorm* norm : {&layer.reference, &layer.baseline}) {
          norm->difference += unpacker.number<double>();
          norm->reference += unpacker.number<double>();
        }
      }
      const std::string text = unpacker.text();
      if (result.plan_difference.empty()) result.plan_difference = text;
    }
    result.failure = judge(planned, result);
    return result;
  }

  static std::optional<std::string> judge(const Planned& planned, const RunCheck& check) {
    const std::string& name = planned.prepared.spec.name;
    if (!check.plan_difference.empty()) {
      return fmt::format("run {}: {}", name, check.plan_difference);
    }
    for (std::size_t i = 0; i < check.layers.size(); ++i) {
      const std::uint32_t layer = planned.plans[i].layer;
      const double reference = check.layers[i].reference.relative();
      const double baseline = check.layers[i].baseline.relative();
      // Written so that NaN fails.
      if (!(reference <= kReferenceTolerance)) {
        return fmt::format(
            "run {}: layer {} is off the CPU reference by {:.3g} (relative norm), "
            "allowed are {:g}",
            name, layer, reference, kReferenceTolerance);
      }
      if (!(baseline <= kExactnessTolerance)) {
        return fmt::format(
            "run {}: layer {} is off standard + contiguous by {:.3g} (relative "
            "norm), allowed are {:g}",
            name, layer, baseline, kExactnessTolerance);
      }
    }
    return std::nullopt;
  }

  RunReport describe(const Planned& planned, const RunCheck& check) const {
    const PreparedRun& prepared = planned.prepared;
    RunReport report = run_header(experiment_, prepared);
    report.kind = kKind;
    report.engine = report.transport = "nccl";
    for (auto& [key, value] : executor_.facts()) report.provenance[key] = value;
    report.provenance["command"] = options_.command;
    report.provenance["enqueued_ahead"] = true;  // see Gate
    report.provenance["warm_up"] = options_.num_warm_up;
    report.provenance["iterations"] = options_.num_iterations;
    report.provenance["hidden"] = experiment_.model.hidden;
    report.provenance["expert_intermediate"] = experiment_.model.expert_intermediate;
    nlohmann::json layers = nlohmann::json::array();
    for (std::size_t i = 0; i < check.layers.size(); ++i) {
      nlohmann::json entry{{"layer", planned.plans[i].layer},
                           {"reference_error", check.layers[i].reference.relative()}};
      if (prepared.exact) entry["standard_contiguous_error"] = check.layers[i].baseline.relative();
      layers.push_back(std::move(entry));
    }
    report.provenance["correctness"] = {{"passed", !check.failure.has_value()},
                                        {"checked_tokens_per_rank", options_.num_check_tokens},
                                        {"tolerance", kReferenceTolerance},
                                        {"layers", std::move(layers)}};
    report.failure = check.failure;
    return report;
  }

  LayerReport describe_layer(const Planned& planned, std::size_t layer_idx,
                             const std::vector<RankTimes>& ranks) const {
    const LayerPlan& plan = planned.plans[layer_idx];
    const PreparedRun& prepared = planned.prepared;
    LayerReport report;
    add_counts(experiment_, prepared, layer_idx, report);
    fill_times(ranks, layer_idx, report);
    for (const PhaseTimes& times : report.phases) {
      if (times.phase != Phase::kMerge) continue;
      report.combine_ready_s = combine_ready_s(std::span(&plan, 1), times.end_s);
    }
    report.groups = transfer_groups(plan, network_, sizes_, report);
    return report;
  }

  const RunOptions& options_;
  const Experiment& experiment_;
  ControlGroup& group_;
  Executor& executor_;
  const Network network_;
  const TraceParts trace_;
  LayerShape shape_;
  PayloadSizes sizes_;
  Samples exact_samples_;
  std::vector<std::vector<float>> baseline_outputs_;  // [layer][num_tokens * hidden]
};

double worst_error(const RunReport& report, const char* key) {
  double worst = 0.0;
  for (const auto& layer : report.provenance.at("correctness").at("layers")) {
    // JSON has no NaN: it reads as null.
    if (layer.contains(key)) worst = std::max(worst, layer.at(key).get<double>());
  }
  return worst;
}

// The table that predictions get, with what only measurements have: how far outputs are off.
void print_table(const std::vector<RunReport>& reports) {
  Table table = result_table(reports);
  table.header.insert(table.header.end(), {"error", "vs exact"});
  for (std::size_t i = 0; i < reports.size(); ++i) {
    const RunReport& report = reports[i];
    const auto error = [&](const char* key) {
      return report.layers.empty() ? "-" : fmt::format("{:.1e}", worst_error(report, key));
    };
    table.rows[i].push_back(error("reference_error"));
    table.rows[i].push_back(report.exact ? error("standard_contiguous_error") : "-");
  }
  fmt::print("{}", render(table));
  if (const Table parts = breakdown_table(reports); !parts.rows.empty()) {
    fmt::print("\nwhere the time of the rank that ends a layer goes:\n\n{}", render(parts));
  }
  const std::vector<std::string> notes = result_notes(reports);
  if (!notes.empty()) fmt::print("\n{}\n", fmt::join(notes, "\n"));
}

void write_outputs(const RunOptions& options, const Experiment& experiment,
                   const std::vector<RunReport>& reports) {
  if (options.dry_run) {
    nlohmann::json document{
        {"schema_version", 1}, {"kind", "dry_run"}, {"runs", nlohmann::json::array()}};
    for (const RunReport& report : reports) {
      nlohmann::json& entry = document["runs"].emplace_back();
      entry = {{"name", report.name}, {"policy", report.policy}, {"placement", report.placement}};
      if (report.failure) entry["failure"] = *report.failure;
      const auto correctness = report.provenance.find("correctness");
      if (correctness != report.provenance.end()) entry["correctness"] = correctness->second;
    }
    make_folder(options.output);
    write_file(options.output / "effective.yaml", experiment.effective_yaml);
    write_file(options.output / "command.txt", options.command + "\n");
    write_file(options.output / "dry_run.json", document.dump(1) + "\n");
    return;
  }
  ResultFiles files{{experiment.name, reports}, {}, experiment.effective_yaml, options.command};
  for (const RunReport& report : reports) {
    if (!report.layers.empty()) files.timelines.push_back({report.name, make_timeline(report)});
  }
  write_results(options.output, kKind, files);
}

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
  const std::uint32_t unit =
      experiment.dispatch_payload == PayloadType::kFp8 ? kernels::kScaleGroup : 8;
  if (experiment.model.hidden % unit != 0 || experiment.model.expert_intermediate % 8 != 0) {
    throw InputError(where + ": model",
                     fmt::format("hidden {} and expert_intermediate {}", experiment.model.hidden,
                                 experiment.model.expert_intermediate),
                     fmt::format("multiples of {} and 8", unit));
  }
}

}  // namespace

void run_experiment(const RunOptions& options, const RankEnvironment& environment) {
  fault_point(environment.rank, "start");
  std::vector<Override> overrides = options.overrides;
  if (!options.layers.empty()) {
    overrides.push_back({"layers", fmt::format("[{}]", fmt::join(options.layers, ", "))});
  }
  const Experiment experiment = load_experiment(options.experiment, overrides);
  check_experiment(experiment, environment);
  if (environment.rank == 0) check_results_folder(options.output, experiment.name, kKind);

  ControlGroup group(environment, options.group);
  std::optional<Error> failure;  // of the first run that failed
  const auto body = [&] {
    group.barrier("rendezvous");
    fault_point(environment.rank, "rendezvous");
    group.set_stage("initialisation of the device");
    fault_point(environment.rank, "init");
    const std::unique_ptr<Executor> executor =
        options.dry_run ? make_dry_executor(group) : make_gpu_executor(group, environment);
    Session session(options, experiment, group, *executor);
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
      write_outputs(options, experiment, reports);
      if (options.dry_run) {
        fmt::print("dry run: {} runs exchanged over the control connection, nothing measured\n",
                   reports.size());
      } else {
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
