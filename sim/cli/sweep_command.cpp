// `coterie sweep`: many experiments.

#include <fmt/format.h>
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "core/table.hpp"
#include "sim/cli/commands.hpp"
#include "sim/experiment/simulate.hpp"
#include "sim/sweep/rows.hpp"
#include "sim/sweep/runner.hpp"

namespace coterie {
namespace {

struct SweepArguments {
  std::filesystem::path sweep;
  SweepOptions options;
  std::vector<std::string> overrides;
  bool json = false;
};

// MPI, where a launcher started this process as one of several; a lone process never touches it.
class Job {
 public:
  Job() {
    const bool launched = std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr ||
                          std::getenv("PMI_SIZE") != nullptr || std::getenv("PMIX_RANK") != nullptr;
    if (!launched) return;
    MPI_Init(nullptr, nullptr);
    active_ = true;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
  }
  ~Job() {
    if (active_) MPI_Finalize();
  }
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;

  void barrier() const {
    if (active_) MPI_Barrier(MPI_COMM_WORLD);
  }
  // A rank that throws between barriers would leave the others waiting for ever.
  void abort(int code) const {
    if (active_) MPI_Abort(MPI_COMM_WORLD, code);
  }
  [[nodiscard]] int rank() const { return rank_; }
  [[nodiscard]] int size() const { return size_; }

 private:
  bool active_ = false;
  int rank_ = 0;
  int size_ = 1;
};

nlohmann::ordered_json evaluate(const SweepSpec& spec, const SweepOptions& options,
                                const SweepPoint& point) {
  Experiment experiment = load_experiment(spec.base, overrides_of(spec, point));
  keep_runs(experiment, spec.runs);
  SimulateOptions simulation;
  simulation.cache = options.folder / "cache";  // and one job: the points run side by side
  simulation.timelines = false;
  return sweep_rows(experiment, results_of(experiment, simulate(experiment, simulation)).runs);
}

void print_summary(const SweepArguments& arguments, const SweepCounts& counts) {
  if (arguments.json) {
    const nlohmann::json summary{{"schema_version", 1},
                                 {"points", counts.total},
                                 {"reused", counts.reused},
                                 {"failed", counts.failed},
                                 {"csv", (arguments.options.folder / "sweep.csv").string()}};
    fmt::print("{}\n", dump_json(summary));
    return;
  }
  fmt::print(
      "{}",
      render({{"points", "recorded before", "run now", "failed"},
              {{std::to_string(counts.total), std::to_string(counts.reused),
                std::to_string(counts.total - counts.reused), std::to_string(counts.failed)}}}));
  fmt::print("\nrows in {}; commands to repeat a point in {}\n",
             (arguments.options.folder / "sweep.csv").string(),
             (arguments.options.folder / "commands.txt").string());
}

void run_sweep(SweepArguments& arguments, const Job& job) {
  const std::vector<Override> overrides = parse_overrides(arguments.overrides);
  const SweepSpec spec = load_sweep(arguments.sweep, overrides);
  SweepOptions& options = arguments.options;
  options.rank = job.rank();
  options.size = job.size();
  if (options.num_jobs == 0) {
    // Under a launcher every rank stands for one core.
    options.num_jobs = job.size() > 1 ? 1 : std::max(1U, std::thread::hardware_concurrency());
  }
  check_some_point_loads(spec, arguments.sweep, [&](const SweepPoint& point) {
    (void)load_experiment(spec.base, overrides_of(spec, point));
  });
  make_folder(options.folder);
  make_folder(options.folder / "cache");
  options.synchronise = [&job] { job.barrier(); };
  SweepCounts counts = run_points(
      spec, options, [&](const SweepPoint& point) { return evaluate(spec, options, point); });
  job.barrier();
  if (job.rank() != 0) return;
  const std::vector<nlohmann::json> entries = collect(spec, options.folder);
  counts.failed = static_cast<std::size_t>(
      std::count_if(entries.begin(), entries.end(),
                    [](const nlohmann::json& entry) { return entry.at("status") != "ok"; }));
  write_sweep_tables(spec, options.folder);
  print_summary(arguments, counts);
  const auto first = std::find_if(entries.begin(), entries.end(), [](const nlohmann::json& entry) {
    return entry.at("status") != "ok";
  });
  if (first != entries.end() && !arguments.json) {
    fmt::print("the first that failed: {}\n", first->at("error").get<std::string>());
  }
}

}  // namespace

void add_sweep_command(CLI::App& app) {
  auto arguments = std::make_shared<SweepArguments>();
  arguments->options.num_jobs = 0;
  CLI::App* command = app.add_subcommand(
      "sweep", "Runs an experiment over axes of its keys; resumable, parallel, also under mpirun");
  command->add_option("SWEEP", arguments->sweep, "The sweep, a YAML file")->required();
  command
      ->add_option("-o,--output", arguments->options.folder,
                   "Folder for sweep.csv, commands.txt and the record of finished points")
      ->required();
  add_set_option(*command, arguments->overrides, "the base experiment");
  command
      ->add_option("--jobs", arguments->options.num_jobs,
                   "Points at once (default: all cores; one per process under mpirun)")
      ->check(CLI::Range(1U, 4096U));
  command
      ->add_option("--timeout", arguments->options.timeout_s,
                   "Seconds that one point may take; 0: no limit")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_flag("--retry-failed", arguments->options.retry_failed,
                    "Run points again that failed before");
  command->add_flag("--json", arguments->json, "Print the summary as JSON and nothing else");
  command->footer(
      "Example:\n  coterie sweep bandwidth.yaml -o out\n  mpirun -n 16 coterie sweep "
      "bandwidth.yaml -o out");
  command->callback([arguments] {
    const Job job;
    try {
      run_sweep(*arguments, job);
    } catch (const Error& error) {
      if (job.size() > 1) {
        // What is wrong with the inputs is wrong for every rank: the first one says it for all.
        if (job.rank() != 0) std::this_thread::sleep_for(std::chrono::seconds(2));
        fmt::print(stderr, "coterie: error: {}\n", error.what());
        job.abort(static_cast<int>(error.exit_code()));
      }
      throw;
    }
  });
}

}  // namespace coterie
