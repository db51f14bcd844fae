// `coterie plan`: builds, checks and exports dispatch plans.

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "core/progress.hpp"
#include "core/table.hpp"
#include "core/units.hpp"
#include "sim/cli/commands.hpp"
#include "sim/experiment/layer_times.hpp"
#include "workloads/plan/check.hpp"
#include "workloads/plan/matrix.hpp"
#include "workloads/prepare.hpp"

namespace coterie {
namespace {

std::string name_list(const std::vector<std::string>& items) {
  return fmt::format("{}", fmt::join(items, ", "));
}

// ------------------------------------------------------------ build

struct BuildArguments {
  std::filesystem::path experiment;
  std::vector<std::string> overrides;
  std::string run;
  std::optional<std::uint32_t> layer;
  std::filesystem::path output;
};

const RunSpec& find_run(const Experiment& experiment, const std::string& name) {
  std::vector<std::string> names;
  for (const RunSpec& run : experiment.runs) {
    if (run.name == name) return run;
    names.push_back(run.name);
  }
  throw InputError("--run", fmt::format("\"{}\"", name), "one of " + name_list(names));
}

void run_build(const BuildArguments& arguments) {
  Experiment experiment =
      load_experiment(arguments.experiment, parse_overrides(arguments.overrides));
  if (arguments.layer) experiment.layers = {*arguments.layer};
  const RunSpec& spec = find_run(experiment, arguments.run);
  PrepareOptions options;
  options.times = [&](const RunSpec& of_run, const Routing& training) {
    return layer_times_of(experiment, of_run, training);
  };
  const PreparedRun run = prepare_run(experiment, spec, load_trace(experiment), options);

  DispatchPlan plan;
  plan.model = experiment.model.name;
  plan.hidden = experiment.model.hidden;
  plan.dispatch_payload = experiment.dispatch_payload;
  plan.combine_payload = experiment.combine_payload;
  Progress progress("planning", run.routing->num_layers());
  for (std::size_t i = 0; i < run.routing->num_layers(); ++i) {
    plan.layers.push_back(make_plan(*run.routing, i, run.placement.layers[i], run.tokens(),
                                    plan_request(experiment, run, PlanDetail::kRows)));
    plan.layers.back().exact = run.exact;
    progress.advance();
  }
  write_plan(arguments.output, plan);
  fmt::print("{}: {} of run {}, {} dispatch, {} on {}\n", arguments.output.string(),
             counted(plan.layers.size(), "layer"), spec.name, to_string(spec.policy),
             counted(plan.layers[0].num_tokens(), "token"),
             counted(plan.layers[0].num_ranks, "rank"));
}

void add_build(CLI::App& plan) {
  auto arguments = std::make_shared<BuildArguments>();
  CLI::App* command = plan.add_subcommand("build", "Plans the layers of one run of an experiment");
  command->add_option("EXPERIMENT", arguments->experiment, "The experiment's YAML file")
      ->required();
  command->add_option("--run", arguments->run, "Name of the run")->required();
  command->add_option(
      "--layer", arguments->layer,
      "This layer only, by its number in the model; default: all of the experiment");
  add_set_option(*command, arguments->overrides, "the experiment");
  command->add_option("-o,--output", arguments->output, "The plan file to write")->required();
  command->footer(
      "Example:\n  coterie plan build law.yaml --run dedup --layer 5 -o dedup.plan\n"
      "  coterie plan check dedup.plan");
  command->callback([arguments] { run_build(*arguments); });
}

// ------------------------------------------------------------ check

struct CheckArguments {
  std::filesystem::path plan;
  bool json = false;
};

void print_check(const CheckArguments& arguments, const DispatchPlan& plan,
                 const PlanCheck& check) {
  const PlanTotals& totals = check.totals;
  if (arguments.json) {
    const nlohmann::json document{{"schema_version", 1},
                                  {"layers", plan.layers.size()},
                                  {"tokens", totals.num_tokens},
                                  {"copies", totals.num_copies},
                                  {"rows", totals.num_rows},
                                  {"remote_rows", totals.num_remote_rows},
                                  {"remote_dispatch_bytes", totals.dispatch_bytes},
                                  {"remote_combine_bytes", totals.combine_bytes},
                                  {"num_violations", check.num_violations},
                                  {"violations", check.violations}};
    fmt::print("{}\n", dump_json(document, 2));
    return;
  }
  for (const std::string& violation : check.violations) fmt::print("{}\n", violation);
  if (check.num_violations > check.violations.size()) {
    fmt::print("and {} more\n", check.num_violations - check.violations.size());
  }
  if (check.num_violations > 0) return;
  const auto bytes = [](std::int64_t value) { return format_bytes(static_cast<double>(value)); };
  fmt::print(
      "{}", render({{"plan", "layers", "tokens", "copies", "rows", "remote rows", "remote dispatch",
                     "remote combine"},
                    {{arguments.plan.filename().string(), fmt::format("{}", plan.layers.size()),
                      fmt::format("{}", totals.num_tokens), fmt::format("{}", totals.num_copies),
                      fmt::format("{}", totals.num_rows), fmt::format("{}", totals.num_remote_rows),
                      bytes(totals.dispatch_bytes), bytes(totals.combine_bytes)}}}));
  fmt::print("sound: every (token, expert) is served once and every byte is accounted for\n");
}

void run_check(const CheckArguments& arguments) {
  const DispatchPlan plan = read_plan(arguments.plan);
  const PlanCheck check = check_plan(plan);
  print_check(arguments, plan, check);
  std::fflush(stdout);
  if (check.num_violations > 0) {
    throw CheckError(fmt::format("{}: {} violation(s), the first: {}", arguments.plan.string(),
                                 check.num_violations, check.violations.front()));
  }
}

void add_check(CLI::App& plan) {
  auto arguments = std::make_shared<CheckArguments>();
  CLI::App* command = plan.add_subcommand(
      "check",
      "Verifies that every (token, expert) is served once and every byte is accounted for");
  command->add_option("PLAN", arguments->plan, "A plan file")->required();
  command->add_flag("--json", arguments->json, "Print JSON only");
  command->footer(
      "Exit code 4 if the plan is not sound.\n\nExample:\n"
      "  coterie plan check dedup.plan");
  command->callback([arguments] { run_check(*arguments); });
}

// ------------------------------------------------------------ export

struct ExportArguments {
  std::filesystem::path plan;
  std::string format;
  std::optional<std::uint32_t> layer;
  std::size_t stage = 0;
  std::string direction = "dispatch";
  std::string unit = "B";
  std::filesystem::path output;
};

const LayerPlan& find_layer(const DispatchPlan& plan, const ExportArguments& arguments) {
  if (!arguments.layer) {
    if (plan.layers.size() == 1) return plan.layers[0];
    throw InputError(fmt::format("{}: found {}, expected --layer to name one of them",
                                 arguments.plan.string(), counted(plan.layers.size(), "layer")));
  }
  for (const LayerPlan& layer : plan.layers) {
    if (layer.layer == *arguments.layer) return layer;
  }
  throw InputError("--layer", fmt::format("{}", *arguments.layer),
                   fmt::format("a layer of {}", arguments.plan.string()));
}

// The format that the name of the output says, where none is given.
std::string format_of(const ExportArguments& arguments) {
  if (!arguments.format.empty()) return arguments.format;
  const std::string extension = arguments.output.extension().string();
  if (extension == ".cm") return "htsim";
  return extension == ".goal" ? "goal" : "matrix";
}

void run_export(const ExportArguments& arguments) {
  const std::string format = format_of(arguments);
  const DispatchPlan plan = read_plan(arguments.plan);
  if (plan.layers.empty()) throw InputError(arguments.plan.string(), "no layers", "at least one");
  const LayerPlan& layer = find_layer(plan, arguments);
  const Direction direction =
      arguments.direction == "dispatch" ? Direction::kDispatch : Direction::kCombine;
  if (arguments.unit != "B" && format != "matrix") {
    throw InputError("--unit", arguments.unit, "B: only the matrix format has another unit");
  }
  std::string text;
  if (format == "goal") {
    text = format_goal(layer, direction, plan.sizes());
  } else {
    const TrafficMatrix traffic = stage_traffic(layer, arguments.stage, direction, plan.sizes());
    text = format == "htsim" ? format_htsim(traffic)
                             : format_matrix(traffic, arguments.unit == "KiB" ? 1024 : 1);
  }
  if (arguments.output.empty()) {
    fmt::print("{}", text);
  } else {
    write_file(arguments.output, text);
  }
}

void add_export(CLI::App& plan) {
  auto arguments = std::make_shared<ExportArguments>();
  CLI::App* command = plan.add_subcommand(
      "export", "Writes a plan's traffic in the format of other simulators and benchmarks");
  command->add_option("PLAN", arguments->plan, "A plan file")->required();
  command
      ->add_option("--format", arguments->format,
                   "matrix, htsim or goal; default: the name of the output says so (.cm is htsim, "
                   ".goal is goal), else matrix")
      ->check(CLI::IsMember({"matrix", "htsim", "goal"}));
  command->add_option("--layer", arguments->layer,
                      "Layer number; default: that of a plan with one layer");
  command->add_option("--stage", arguments->stage,
                      "Stage 0 (default), or 1 of hierarchical plans; goal holds all stages");
  command->add_option("--direction", arguments->direction, "dispatch (default) or combine")
      ->check(CLI::IsMember({"dispatch", "combine"}));
  command
      ->add_option("--unit", arguments->unit,
                   "B (default), or KiB as nccl-tests' alltoallv takes its matrix")
      ->check(CLI::IsMember({"B", "KiB"}));
  command->add_option("-o,--output", arguments->output, "File to write; default: stdout");
  command->footer(
      "Formats:\n"
      "  matrix  one row of bytes per source rank\n"
      "  htsim   connection matrix: Nodes, Connections, src->dst id i start t size bytes\n"
      "  goal    LogGOPSim and ATLAHS: sends and receives with their dependencies\n\n"
      "Example:\n  coterie plan export dedup.plan --format htsim -o dedup.cm");
  command->callback([arguments] { run_export(*arguments); });
}

}  // namespace

void add_plan_command(CLI::App& app) {
  CLI::App* plan = app.add_subcommand("plan", "Builds, checks and exports dispatch plans");
  plan->require_subcommand(1);
  plan->footer("Example:\n  coterie plan check dedup.plan");
  add_build(*plan);
  add_check(*plan);
  add_export(*plan);
}

}  // namespace coterie
