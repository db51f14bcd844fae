// `coterie trace`: traces in and out.

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <string>
#include <vector>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "sim/cli/commands.hpp"
#include "sim/cli/trace_info.hpp"
#include "workloads/trace/generate.hpp"
#include "workloads/trace/importer.hpp"
#include "workloads/trace/moet.hpp"

namespace coterie {
namespace {

struct ImportArguments {
  std::vector<std::filesystem::path> inputs;
  std::string format;
  std::filesystem::path output;
  std::string model;
  ImportOptions options;
};

void run_import(ImportArguments& arguments) {
  if (!arguments.model.empty()) arguments.options.model = load_model(arguments.model);
  const Imported imported = import_traces(arguments.inputs, arguments.format, arguments.options);
  for (const std::string& note : imported.notes) spdlog::info("{}", note);
  if (imported.num_dropped_rows > 0) {
    spdlog::info("{} dropped in all", counted(imported.num_dropped_rows, "row"));
  }
  write_moet(arguments.output, imported.trace);
  fmt::print("{}: {}\n", arguments.output.string(), trace_summary(imported.trace));
}

void add_import(CLI::App& trace) {
  auto arguments = std::make_shared<ImportArguments>();
  CLI::App* command = trace.add_subcommand("import", "Converts recorded routing to a .moet trace");
  std::string formats;
  for (const Importer& importer : importers()) {
    formats += fmt::format("\n  {:14} {}", importer.name, importer.description);
  }
  command->add_option("INPUT", arguments->inputs, "Files to read, one after the other")->required();
  command->add_option("--format", arguments->format,
                      "Format of the inputs (listed below); default: told from the files");
  command->add_option("-o,--output", arguments->output, "The trace to write")->required();
  command->add_option("--num-experts", arguments->options.num_experts,
                      "Routed experts per layer; default: the input's or the model's");
  command
      ->add_option("--layers", arguments->options.layers,
                   "Numbers of the MoE layers, comma-separated; default: found by their rows")
      ->delimiter(',');
  command->add_option(
      "--model", arguments->model,
      "Model preset or file that gives the experts, top-k and layers; default: none");
  command->add_option(
      "--num-topk", arguments->options.num_topk,
      "Experts per token, which the input is held against; default: the input's or the model's");
  command->add_option("--selection", arguments->options.selection,
                      "hf-json: softmax_topk, topk_softmax or sigmoid_group; default: the model's");
  command->footer("Formats:" + formats +
                  "\n\nExample:\n  coterie trace import law.npz -o law.moet");
  command->callback([arguments] { run_import(*arguments); });
}

struct GenerateArguments {
  std::filesystem::path workload;
  std::filesystem::path output;
  std::vector<std::string> overrides;
};

void add_generate(CLI::App& trace) {
  auto arguments = std::make_shared<GenerateArguments>();
  CLI::App* command =
      trace.add_subcommand("generate", "Makes a synthetic trace from a workload description");
  command->add_option("WORKLOAD", arguments->workload, "YAML file (workloads/TRACES.md)")
      ->required();
  command->add_option("-o,--output", arguments->output, "The trace to write")->required();
  add_set_option(*command, arguments->overrides, "the workload");
  command->footer(
      "Example:\n  coterie trace generate workloads/examples/zipf.yaml --set seed=2 -o zipf.moet");
  command->callback([arguments] {
    const std::vector<Override> overrides = parse_overrides(arguments->overrides);
    const Trace generated = generate(read_workload(load_yaml(arguments->workload, overrides)));
    write_moet(arguments->output, generated);
    fmt::print("{}: {}\n", arguments->output.string(), trace_summary(generated));
  });
}

}  // namespace

void add_trace_command(CLI::App& app) {
  CLI::App* trace = app.add_subcommand("trace", "Imports, generates and describes routing traces");
  trace->require_subcommand(1);
  trace->footer("Example:\n  coterie trace info law.moet");
  add_import(*trace);
  add_generate(*trace);
  add_trace_info(*trace);
}

}  // namespace coterie
