// The `coterie-runtime` program: one process per rank, or the launcher of such processes.

#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <exception>

#include "core/command_line.hpp"
#include "core/error.hpp"
#include "core/option_text.hpp"
#include "core/provenance.hpp"
#include "kernels/cuda.hpp"
#include "runtime/control/launcher.hpp"
#include "runtime/device/communicator.hpp"
#include "runtime/session/direct_bench.hpp"
#include "runtime/session/probe.hpp"
#include "runtime/session/run.hpp"

namespace coterie {
namespace {

// Counted in a process of its own: a look at the GPUs must not leave a context behind in the
// launcher, which lives outside the MPS daemon.
int count_gpus() {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(std::min(kernels::num_gpus(), 100));
  int status = 0;
  if (child < 0 || ::waitpid(child, &status, 0) != child || !WIFEXITED(status)) return 0;
  return WEXITSTATUS(status);
}

[[noreturn]] void leave(const std::string& sentence, ExitCode code) {
  std::fflush(stdout);
  report_failure(sentence, static_cast<int>(code));
  // Not exit(): the destructors of a driver whose peers died may wait for ever.
  ::_exit(static_cast<int>(code));
}

void add_group_options(CLI::App& app, GroupOptions& options) {
  app.add_option("--deadline", options.step_s,
                 "Seconds that the ranks wait for each other, and for the device, in one step")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--rendezvous", options.rendezvous_s, "Seconds for all ranks to join")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--silence", options.silence_s,
                 "Seconds without a heartbeat after which a rank counts as stopped")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  options.last_resort = leave;
}

struct Commands {
  LaunchRequest launch;
  std::string mps = "auto";
  RunOptions run;
  std::vector<std::string> overrides;
  ProbeOptions probe;
  CLI::App* launch_app = nullptr;
  CLI::App* run_app = nullptr;
  CLI::App* probe_app = nullptr;
  DirectBenchOptions bench;
  CLI::App* bench_app = nullptr;
};

void add_bench_command(CLI::App& app, Commands& commands) {
  DirectBenchOptions& bench = commands.bench;
  commands.bench_app = app.add_subcommand(
      "bench-direct",
      "Measure the transport direct on recorded routing, beside the limits of wire and memory");
  CLI::App& own = *commands.bench_app;
  own.add_option("experiment", bench.experiment,
                 "Experiment (YAML): its trace, ranks, first layer and first run")
      ->required();
  own.add_option("--json", bench.json, "File for all medians; default: none");
  own.add_option("--set", commands.overrides, "KEY=VALUE, overrides a key (repeatable)");
  own.add_option("--hidden", bench.hidden, "Values per row")->delimiter(',')->capture_default_str();
  own.add_option("--tokens", bench.tokens, "Tokens per rank")
      ->delimiter(',')
      ->capture_default_str();
  own.add_option("--sms", bench.sms, "Multiprocessors")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::Range(1, 1024));
  own.add_option("--payloads", bench.payloads, "bf16, fp8")->delimiter(',')->capture_default_str();
  own.add_option("--put-rings", bench.put_rings,
                 "Rings to try, WARPSxSLOTS; default: the kernels' own")
      ->delimiter(',');
  own.add_option("--pull-rings", bench.pull_rings,
                 "Rings to try, WARPSxSLOTS; default: the kernels' own")
      ->delimiter(',');
  own.add_option("--samples", bench.num_samples, "Samples of each")
      ->capture_default_str()
      ->check(CLI::Range(1, 10000));
  add_group_options(own, bench.group);
  own.footer(
      "Example:\n  coterie-runtime launch --ranks 2 -- bench-direct experiment.yaml --json "
      "direct.json");
}

void add_commands(CLI::App& app, Commands& commands) {
  commands.launch_app = app.add_subcommand(
      "launch", "Start the ranks of a run or probe on this machine (what follows --)");
  commands.launch_app->add_option("--ranks", commands.launch.num_ranks, "Number of ranks")
      ->required()
      ->check(CLI::Range(1, 1024));
  commands.launch_app
      ->add_option("--mps", commands.mps,
                   "Private MPS daemon: auto (where ranks share GPUs), on or off")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "on", "off"}));
  commands.launch_app->footer(
      "Example:\n  coterie-runtime launch --ranks 8 -- run experiment.yaml -o out");

  commands.run_app =
      app.add_subcommand("run", "Carry out an experiment on the GPUs of these ranks and report it");
  commands.run_app->add_option("experiment", commands.run.experiment, "Experiment (YAML)")
      ->required();
  commands.run_app->add_option("-o,--output", commands.run.output, "Folder for the results")
      ->required();
  commands.run_app->add_option("--set", commands.overrides,
                               "KEY=VALUE, overrides a key (repeatable)");
  commands.run_app
      ->add_option("--layers", commands.run.layers,
                   "Layer numbers, comma-separated; default: the experiment's")
      ->delimiter(',');
  commands.run_app
      ->add_option("--iterations", commands.run.num_iterations,
                   "Timed iterations (dry runs: 1 unless given)")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000000));
  commands.run_app
      ->add_option("--warmup", commands.run.num_warm_up,
                   "Iterations before these (dry runs: 0 unless given)")
      ->capture_default_str()
      ->check(CLI::Range(0, 1000000));
  commands.run_app->add_flag("--capture", commands.run.capture,
                             "Replay what moves over the transport direct as a CUDA graph");
  commands.run_app
      ->add_option("--check-tokens", commands.run.num_check_tokens,
                   "Tokens per rank that the CPU recomputes")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000000));
  CLI::Option* dry_run = commands.run_app->add_flag(
      "--dry-run", commands.run.dry_run,
      "Exchange over the control connection instead of NCCL: no GPU "
      "needed, nothing is measured; rows and experts are reduced in "
      "size, so that plans, schedules and blocks are checked in seconds");
  commands.run_app
      ->add_flag("--full-size", commands.run.full_size,
                 "Dry runs: compute at the model's own sizes, which can take hours")
      ->needs(dry_run);
  add_group_options(*commands.run_app, commands.run.group);
  commands.run_app->footer(
      "Example:\n  torchrun --nproc-per-node 8 --no-python coterie-runtime run experiment.yaml -o "
      "out --set ranks=8");

  commands.probe_app = app.add_subcommand(
      "probe", "Measure this machine: exchanges, kernels, expert MLP, overlap, direct, over sizes");
  commands.probe_app->add_option("-o,--output", commands.probe.output, "Folder for the results")
      ->required();
  commands.probe_app
      ->add_option("--max-bytes", commands.probe.max_bytes,
                   "Largest message per pair; default: 256 MiB over NVLink, 64 MiB elsewhere")
      ->check(CLI::PositiveNumber);
  commands.probe_app->add_option("--samples", commands.probe.num_samples, "Samples per size")
      ->capture_default_str()
      ->check(CLI::Range(4, 10000));
  commands.probe_app
      ->add_option("--parts", commands.probe.parts,
                   "Only these, comma-separated: communication, notify, kernels, expert_mlp, "
                   "overlap, direct; default: all")
      ->delimiter(',');
  commands.probe_app->add_flag("--append", commands.probe.append,
                               "Add a start to what the folder holds; without it only what is "
                               "missing there is measured");
  commands.probe_app->add_option("--machine", commands.probe.machine,
                                 "Name for the machine; default: its host name");
  add_group_options(*commands.probe_app, commands.probe.group);
  commands.probe_app->footer("Example:\n  coterie-runtime launch --ranks 8 -- probe -o probe");
}

int run_launcher(Commands& commands) {
  if (commands.launch.arguments.empty()) {
    throw InputError("launch", "no command for the ranks",
                     "one behind --, as in: launch --ranks 8 -- run experiment.yaml -o out");
  }
  commands.launch.mps = commands.mps == "on"    ? MpsUse::kOn
                        : commands.mps == "off" ? MpsUse::kOff
                                                : MpsUse::kAuto;
  commands.launch.num_gpus = commands.launch.mps == MpsUse::kAuto ? count_gpus() : 0;
  const LaunchOutcome outcome = launch(commands.launch);
  if (outcome.exit_code != 0) report_failure(outcome.sentence, outcome.exit_code);
  return outcome.exit_code;
}

int run_program(int argc, char** argv) {
  const std::vector<std::string> arguments(argv, argv + argc);
  Commands commands;
  // What follows the first -- of `launch` belongs to the ranks.
  std::vector<std::string> own(arguments.begin() + 1, arguments.end());
  if (!own.empty() && own.front() == "launch") {
    const auto split = std::find(own.begin(), own.end(), "--");
    if (split != own.end()) {
      commands.launch.arguments.assign(split + 1, own.end());
      own.erase(split, own.end());
    }
  }
  CLI::App app{"Executes dispatch plans of MoE models on GPUs over NCCL.", "coterie-runtime"};
  app.set_version_flag("--version", [] {
    int cuda = 0;
    cudaRuntimeGetVersion(&cuda);
    return version_text("coterie-runtime", commit(),
                        {{"CUDA", fmt::format("{}.{}", cuda / 1000, cuda / 10 % 100)},
                         {"NCCL", nccl_version()},
                         {"engines, SimGrid", "not used (coterie --version)"}});
  });
  app.require_subcommand(1);
  add_commands(app, commands);
  add_bench_command(app, commands);
  check_option_numbers<CLI::Validator>(app);
  // CLI11 would only say that a subcommand is missing.
  if (!own.empty() && !own.front().starts_with("-")) {
    std::vector<std::string> names;
    for (const CLI::App* command : app.get_subcommands({})) names.push_back(command->get_name());
    if (std::find(names.begin(), names.end(), own.front()) == names.end()) {
      throw InputError("command", fmt::format("\"{}\"", own.front()),
                       fmt::format("one of {}", fmt::join(names, ", ")));
    }
  }
  try {
    std::reverse(own.begin(), own.end());  // CLI11 takes vectors from the back
    app.parse(own);
  } catch (const CLI::Success& success) {
    return app.exit(success);  // --help, --version
  } catch (const CLI::ParseError& error) {
    std::string words = "coterie-runtime";
    for (const CLI::App* command : app.get_subcommands()) words += " " + command->get_name();
    throw InputError(fmt::format("{} (see {} --help)", readable_range(error.what()), words));
  }
  if (commands.launch_app->parsed()) return run_launcher(commands);

  std::vector<std::string> shown = arguments;
  shown[0] = "coterie-runtime";
  const RankEnvironment environment = find_ranks();
  if (commands.run_app->parsed()) {
    for (const std::string& text : commands.overrides) {
      commands.run.overrides.push_back(parse_override(text));
    }
    commands.run.command = shell_quote(shown);
    if (commands.run.dry_run) {  // nothing is timed, so nothing has to be repeated
      if (commands.run_app->count("--iterations") == 0) commands.run.num_iterations = 1;
      if (commands.run_app->count("--warmup") == 0) commands.run.num_warm_up = 0;
    }
    run_experiment(commands.run, environment);
  } else if (commands.bench_app->parsed()) {
    for (const std::string& text : commands.overrides) {
      commands.bench.overrides.push_back(parse_override(text));
    }
    commands.bench.command = shell_quote(shown);
    bench_direct(commands.bench, environment);
  } else {
    commands.probe.command = shell_quote(shown);
    run_probe(commands.probe, environment);
  }
  return static_cast<int>(ExitCode::kOk);
}

}  // namespace
}  // namespace coterie

int main(int argc, char** argv) {
  using namespace coterie;
  prepare_standard_descriptors();
  set_up_messages("coterie-runtime");
  std::signal(SIGPIPE, SIG_IGN);
  try {
    const int code = run_program(argc, argv);
    flush_standard_output();
    return code;
  } catch (const Error& error) {
    leave(error.what(), error.exit_code());
  } catch (const std::exception& error) {
    if (const auto fault = file_system_fault(error)) leave(fault->what(), fault->exit_code());
    leave(std::string("internal error: ") + error.what(), ExitCode::kInternalError);
  }
}
