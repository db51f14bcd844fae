// `coterie sweep`: many experiments.

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "core/module.hpp"
#include "core/table.hpp"
#include "sim/cli/commands.hpp"
#include "sim/cli/mpi_module.hpp"
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
    if (!launched) {
      check_not_alone_in_step();
      return;
    }
    // Global: libsimgrid, loaded later, defines MPI_Init and its like too (its simulated MPI).
    void* const start = module_symbol("coterie_mpi", "coterie_mpi_start", ModuleScope::kGlobal);
    mpi_.reset(reinterpret_cast<StartMpi>(start)());
    if (size() == 1 && std::getenv("OMPI_COMM_WORLD_SIZE") == nullptr) check_not_alone_in_step();
  }

  void barrier() const {
    if (mpi_) mpi_->barrier();
  }
  // A rank that throws between barriers would leave the others waiting for ever.
  void abort(int code) const {
    if (mpi_) mpi_->abort(code);
  }
  [[nodiscard]] int rank() const { return mpi_ ? mpi_->rank() : 0; }
  [[nodiscard]] int size() const { return mpi_ ? mpi_->size() : 1; }

 private:
  // srun starts tasks that do not know of each other unless MPI is told of them; each would run the
  // whole sweep.
  static void check_not_alone_in_step() {
    const char* tasks = std::getenv("SLURM_STEP_NUM_TASKS");
    if (tasks == nullptr || std::strtol(tasks, nullptr, 10) <= 1) return;
    throw InputError("sweep", fmt::format("{} tasks of srun that share no MPI", tasks),
                     "srun --mpi=pmix, or one task");
  }

  std::unique_ptr<Mpi> mpi_;  // where there is a launcher
};

// Of a worker process: what points have in common.
constexpr std::size_t kMemoBytes = std::size_t{256} << 20U;

nlohmann::ordered_json evaluate_point(const SweepSpec& spec, const SweepOptions& options,
                                      const SweepPoint& point, Memo& memo) {
  Experiment experiment =
      load_experiment(spec.base, overrides_of(spec, point), EffectiveYaml::kLeaveOut);
  keep_runs(experiment, spec.runs);
  SimulateOptions simulation;
  simulation.cache = options.folder / "cache";  // and one job: the points run side by side
  simulation.memo = &memo;
  simulation.timelines = false;
  return sweep_rows(experiment, simulate(experiment, simulation));
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

// What failed first, of all points; the first process says it.
std::optional<SweepFailure> run_sweep(SweepArguments& arguments, const Job& job) {
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
    (void)load_experiment(spec.base, overrides_of(spec, point), EffectiveYaml::kLeaveOut);
  });
  make_folder(options.folder);
  make_folder(options.folder / "cache");
  options.synchronise = [&job] { job.barrier(); };
  Memo memo(kMemoBytes);  // empty here; every worker fills its own
  SweepCounts counts = run_points(spec, options, [&](const SweepPoint& point) {
    return evaluate_point(spec, options, point, memo);
  });
  job.barrier();
  if (job.rank() != 0) return std::nullopt;
  const std::vector<nlohmann::json> entries = collect(spec, options.folder);
  counts.failed = static_cast<std::size_t>(
      std::count_if(entries.begin(), entries.end(),
                    [](const nlohmann::json& entry) { return entry.at("status") != "ok"; }));
  write_sweep_tables(spec, entries, options.folder);
  print_summary(arguments, counts);
  return first_failure(entries);
}

std::optional<SweepFailure> run_as_job(SweepArguments& arguments) {
  const Job job;
  try {
    return run_sweep(arguments, job);
  } catch (const Error& error) {
    if (job.size() > 1) {
      // What is wrong with the inputs is wrong for every rank: the first one says it for all.
      if (job.rank() != 0) std::this_thread::sleep_for(std::chrono::seconds(2));
      fmt::print(stderr, "coterie: error: {}\n", error.what());
      job.abort(static_cast<int>(error.exit_code()));
    }
    throw;
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
  // A test runs this file.
  command->footer(
      "The file (sim/sweep/README.md says more):\n"
      "  schema_version: 1\n"
      "  base: experiment.yaml            # relative to this file\n"
      "  axes:                            # every combination; the first varies slowest\n"
      "    - {key: tokens_per_rank, values: [128, 1024]}\n"
      "    - zip:                         # these vary together\n"
      "        - {key: payload.dispatch, values: [bf16, fp8]}\n"
      "        - {key: payload.combine, values: [bf16, bf16]}\n"
      "  skip:                            # points to leave out: one value, a list, or < <= > >= "
      "!=\n"
      "    - {tokens_per_rank: \"> 512\", payload.dispatch: fp8}\n"
      "  runs: [standard, dedup]          # of the base; absent: all\n"
      "  baseline: {run: standard}        # what speedup_over_baseline refers to\n\n"
      "Example:\n  coterie sweep bandwidth.yaml -o out\n  mpirun -n 16 coterie sweep "
      "bandwidth.yaml -o out");
  command->callback([arguments] {
    const std::optional<SweepFailure> failure = run_as_job(*arguments);
    // Only now, when MPI has come to its end: the other processes are done, and none is to be ended.
    if (failure) throw Error(failure->code, failure->sentence);
  });
}

}  // namespace coterie
