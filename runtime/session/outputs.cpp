#include "runtime/session/outputs.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <span>

#include "core/file.hpp"
#include "core/json.hpp"
#include "core/result_table.hpp"
#include "core/results.hpp"
#include "runtime/session/transport.hpp"
#include "workloads/run_report.hpp"

namespace coterie {
namespace {

void label(const Experiment& experiment, const RunSpec& spec, RunReport& report) {
  report.kind = kMeasured;
  report.engine = report.transport = executed_transport(experiment.transport_of(spec));
}

double worst_error(const RunReport& report, const char* key) {
  double worst = 0.0;
  for (const auto& layer : report.provenance.at("correctness").at("layers")) {
    // JSON has no NaN: it reads as null.
    if (layer.contains(key)) worst = std::max(worst, layer.at(key).get<double>());
  }
  return worst;
}

// What a dry run carried out, beside what the model has.
nlohmann::json executed_size(const Experiment& experiment, const LayerShape& executed) {
  const ModelShape& model = experiment.model;
  const std::uint32_t shared = model.num_shared_experts * model.shared_intermediate;
  return {{"reduced", executed.mlp.hidden != model.hidden ||
                          executed.mlp.intermediate != model.expert_intermediate ||
                          executed.shared_intermediate != shared},
          {"hidden", executed.mlp.hidden},
          {"expert_intermediate", executed.mlp.intermediate},
          {"shared_intermediate_total", executed.shared_intermediate},
          {"model_hidden", model.hidden},
          {"model_expert_intermediate", model.expert_intermediate},
          {"model_shared_intermediate_total", shared}};
}

}  // namespace

RunReport measured_run(const RunOptions& options, const Experiment& experiment,
                       const PlannedRun& planned, const RunCheck& check, const Executor& executor) {
  const PreparedRun& prepared = planned.prepared;
  RunReport report = run_header(experiment, prepared);
  label(experiment, prepared.spec, report);
  for (auto& [key, value] : executor.facts()) report.provenance[key] = value;
  report.provenance["command"] = options.command;
  report.provenance["enqueued_ahead"] = true;  // see Gate
  report.provenance["warm_up"] = options.num_warm_up;
  report.provenance["iterations"] = options.num_iterations;
  report.provenance["hidden"] = experiment.model.hidden;
  report.provenance["expert_intermediate"] = experiment.model.expert_intermediate;
  nlohmann::json layers = nlohmann::json::array();
  for (std::size_t i = 0; i < check.layers.size(); ++i) {
    nlohmann::json entry{{"layer", planned.plans[i].layer},
                         {"rounds", planned.plans[i].num_rounds},
                         {"reference_error", check.layers[i].reference.relative()}};
    if (prepared.exact) entry["standard_contiguous_error"] = check.layers[i].baseline.relative();
    layers.push_back(std::move(entry));
  }
  report.provenance["correctness"] = {{"passed", !check.failure.has_value()},
                                      {"checked_tokens_per_rank", options.num_check_tokens},
                                      {"tolerance", kReferenceTolerance},
                                      {"layers", std::move(layers)}};
  report.failure = check.failure;
  return report;
}

RunReport infeasible_run(const Experiment& experiment, const RunSpec& spec,
                         const std::string& sentence) {
  RunReport report = failed_run(experiment, spec, sentence);
  label(experiment, spec, report);
  return report;
}

LayerReport measured_layer(const Experiment& experiment, const PlannedRun& planned,
                           std::size_t layer_idx, const Network& network,
                           const std::vector<RankTimes>& ranks) {
  const LayerPlan& plan = planned.plans[layer_idx];
  const PreparedRun& prepared = planned.prepared;
  LayerReport report;
  add_counts(prepared, layer_idx, count_groups(experiment, prepared, layer_idx), report);
  fill_times(ranks, layer_idx, report);
  for (const PhaseTimes& times : report.phases) {
    if (times.phase != Phase::kMerge) continue;
    report.combine_ready_s = combine_ready_s(std::span(&plan, 1), times.end_s);
  }
  const PayloadSizes sizes{row_payload(experiment.dispatch_payload, experiment.model.hidden),
                           row_payload(experiment.combine_payload, experiment.model.hidden)};
  report.groups = transfer_groups(plan, network, sizes, report);
  return report;
}

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

void write_measurement(const RunOptions& options, const Experiment& experiment,
                       const std::vector<RunReport>& reports) {
  ResultFiles files{{experiment.name, reports}, {}, experiment.effective_yaml, options.command};
  for (const RunReport& report : reports) {
    if (!report.layers.empty()) files.timelines.push_back({report.name, make_timeline(report)});
  }
  write_results(options.output, kMeasured, files);
}

void write_dry_run(const RunOptions& options, const Experiment& experiment,
                   const LayerShape& executed, const std::vector<RunReport>& reports) {
  nlohmann::json document{{"schema_version", 1},
                          {"kind", "dry_run"},
                          {"warm_up", options.num_warm_up},
                          {"iterations", options.num_iterations},
                          {"size", executed_size(experiment, executed)},
                          {"runs", nlohmann::json::array()}};
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
  write_file(options.output / "dry_run.json", dump_json(document, 1) + "\n");
}

}  // namespace coterie
