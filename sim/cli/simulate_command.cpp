// `coterie simulate`: the main job.

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "core/counted.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "core/provenance.hpp"
#include "core/result_table.hpp"
#include "sim/cli/commands.hpp"
#include "sim/experiment/simulate.hpp"

namespace coterie {
namespace {

constexpr const char* kKind = "predicted";

struct SimulateArguments {
  std::filesystem::path experiment;
  std::filesystem::path output;
  std::string engine;
  std::vector<std::string> overrides;
  std::vector<std::string> runs;
  std::string step_method;
  SimulateOptions options;
  bool json = false;
  bool no_timelines = false;
};

// The command line of this process, as it was typed but for quoting.
std::string own_command_line() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  const std::string raw{std::istreambuf_iterator<char>(file), {}};
  std::vector<std::string> arguments;
  std::size_t begin = 0;
  while (begin < raw.size()) {
    const std::size_t end = std::min(raw.find('\0', begin), raw.size());
    arguments.push_back(raw.substr(begin, end - begin));
    begin = end + 1;
  }
  return shell_quote(arguments);
}

void print_notes(const std::vector<RunReport>& runs) {
  const std::vector<std::string> notes = result_notes(runs);
  if (!notes.empty()) fmt::print("\n");
  for (const std::string& note : notes) fmt::print("{}\n", note);
}

void print_steps(const Experiment& experiment, const std::vector<RunReport>& runs) {
  const auto found = std::find_if(runs.begin(), runs.end(),
                                  [](const RunReport& run) { return run.step.has_value(); });
  const StepReport& step = *found->step;
  fmt::print("{}: {} step of {} on {}, {} ({}), engine {}, {}\n\n{}", experiment.name, step.kind,
             found->model, found->topology, counted(step.num_gpus, "GPU"), step.parallel,
             found->engine, step.method, render(step_table(runs)));
  if (const Table series = step_series_table(runs); !series.rows.empty()) {
    fmt::print(
        "\nthe steps of the series, with the placement of the first step and with one learnt for "
        "each:\n\n{}",
        render(series));
    for (const RunReport& run : runs) {
      if (!run.step || !run.step->static_loss()) continue;
      fmt::print("{}: placed once, the series takes {:.1f} percent longer\n", run.name,
                 100.0 * *run.step->static_loss());
    }
  }
  fmt::print("\nwhere the time of the {} goes (adds up to the step):\n\n{}",
             step.method == "executed" ? "rank that ends last" : "stage with most to do",
             render(step_parts_table(runs)));
  constexpr std::size_t kLongest = 8;
  for (const RunReport& run : runs) {
    if (!run.step) continue;
    fmt::print("\ncritical path of {}:", run.name);
    for (std::size_t i = 0; i < std::min(kLongest, run.step->critical_path.size()); ++i) {
      const StepReport::Segment& segment = run.step->critical_path[i];
      fmt::print("{} {} {:.1f}%", i == 0 ? "" : ",", segment.name,
                 100.0 * segment.seconds / run.step->time_s);
    }
    fmt::print("\n");
  }
  print_notes(runs);
}

void print_results(const Experiment& experiment, const std::vector<RunReport>& runs) {
  if (experiment.step) {
    print_steps(experiment, runs);
    return;
  }
  const auto found = std::find_if(runs.begin(), runs.end(),
                                  [](const RunReport& run) { return !run.layers.empty(); });
  const RunReport& first = found == runs.end() ? runs.front() : *found;
  fmt::print(
      "{}: {} on {}, {}{}, up to {} each, {} (means), engine {}\n\n", experiment.name, first.model,
      first.topology, counted(first.num_ranks, "rank"),
      first.num_groups > 1 ? fmt::format(" in each of {}", counted(first.num_groups, "group")) : "",
      counted(first.tokens_per_rank, "token"), counted(first.layers.size(), "layer"), first.engine);
  fmt::print("{}", render(result_table(runs)));
  if (const Table parts = breakdown_table(runs); !parts.rows.empty()) {
    fmt::print(
        "\nwhere the time of the rank that ends a layer goes (adds up to the layer time):\n\n{}",
        render(parts));
  }
  print_notes(runs);
}

// The folder of the results, made before what may take hours, so that a place where none can be made
// is refused at once. Where nothing came of it, it goes again.
class ResultsFolder {
 public:
  explicit ResultsFolder(std::filesystem::path path) : path_(std::move(path)) {
    is_new_ = !path_exists(path_);
    make_folder(path_);
  }
  ~ResultsFolder() {
    std::error_code not_empty;
    if (is_new_) std::filesystem::remove(path_, not_empty);
  }
  ResultsFolder(const ResultsFolder&) = delete;
  ResultsFolder& operator=(const ResultsFolder&) = delete;

 private:
  std::filesystem::path path_;
  bool is_new_ = false;
};

void run_simulate(SimulateArguments& arguments) {
  std::vector<Override> overrides = parse_overrides(arguments.overrides);
  if (!arguments.engine.empty()) overrides.push_back({"engine", arguments.engine});
  Experiment experiment = load_experiment(arguments.experiment, overrides);
  check_results_folder(arguments.output, experiment.name, kKind);
  keep_runs(experiment, arguments.runs);
  arguments.options.timelines = !arguments.no_timelines;
  arguments.options.progress = true;
  if (!arguments.step_method.empty()) {
    arguments.options.step_method =
        arguments.step_method == "executed" ? StepMethod::kExecuted : StepMethod::kComposed;
  }
  const ResultsFolder folder(arguments.output);
  const std::vector<SimulatedRun> runs = simulate(experiment, arguments.options);
  const ResultFiles files = result_files(experiment, runs, own_command_line());
  write_results(arguments.output, kKind, files);

  if (arguments.json) {
    fmt::print("{}\n", dump_json(to_json(files.results)));
  } else {
    print_results(experiment, files.results.runs);
    fmt::print("\nresults in {}\n", arguments.output.string());
  }
  const auto failed = std::find_if(runs.begin(), runs.end(), [](const SimulatedRun& run) {
    return run.failure_code.has_value();
  });
  if (failed == runs.end()) return;
  // The others are written and shown; the exit code is that of the first that failed.
  throw Error(*failed->failure_code,
              fmt::format("run {} failed: {}", failed->report.name, *failed->report.failure));
}

}  // namespace

void add_simulate_command(CLI::App& app) {
  auto arguments = std::make_shared<SimulateArguments>();
  arguments->options.num_jobs = std::max(1U, std::thread::hardware_concurrency());
  CLI::App* command = app.add_subcommand(
      "simulate", "Predicts every run of an experiment and compares them (the main job)");
  command->add_option("EXPERIMENT", arguments->experiment, "The experiment, a YAML file")
      ->required();
  command
      ->add_option("-o,--output", arguments->output,
                   "Folder for results.json, results.csv, timelines and configuration")
      ->required();
  command->add_option("--engine", arguments->engine, "simgrid, flow or bound; default: the file's");
  add_set_option(*command, arguments->overrides, "the experiment");
  command
      ->add_option("--run", arguments->runs,
                   "Simulate this run of the experiment only (repeatable); default: all")
      ->allow_extra_args(false);
  command
      ->add_option("--jobs", arguments->options.num_jobs,
                   "Layers simulated at once (the results do not depend on it)")
      ->check(CLI::Range(1U, 4096U))
      ->capture_default_str();
  command
      ->add_option("--precision", arguments->options.relative_precision,
                   "Width, relative to the lower bound, within which completions happen at once; "
                   "0 is exact; default: the engine's")
      ->check(CLI::Range(0.0, 0.1));
  command
      ->add_option("--timeout", arguments->options.timeout_s,
                   "Seconds that the simulation of one layer may take; default: 0, no limit")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      ->add_option(
          "--step-method", arguments->step_method,
          "How a whole step is simulated: executed (all of it) or composed (of blocks that "
          "stand for all equal ones); default: by its size")
      ->check(CLI::IsMember({"executed", "composed"}));
  command->add_flag("--no-timelines", arguments->no_timelines, "Write no timelines");
  command->add_flag("--json", arguments->json, "Print the results as JSON and nothing else");
  command->footer(
      "A run that cannot be carried out is shown as failed and the others are simulated; the exit "
      "code\n"
      "is then that of the first that failed (2: its inputs do not fit together).\n"
      "Example:\n  coterie simulate law_h200_8.yaml -o out --set trace.file=law.moet --engine "
      "flow");
  command->callback([arguments] { run_simulate(*arguments); });
}

}  // namespace coterie
